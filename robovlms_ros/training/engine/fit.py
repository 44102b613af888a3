"""The training of any policy on any windows, on top of Hugging Face accelerate.

Several processes, GPUs, FSDP 2 and mixed precision are `accelerate launch`'s configuration
(`devices`). A run's folder: `state.safetensors` (where it goes on), `curve.csv` (every step),
`validation.csv` (every epoch), `checkpoint/` (lowest validation loss), `last/` (newest epoch),
`tensorboard/`, `report.html`, `report.json`. What is random depends on the seed and the step alone:
a run that was killed goes on to the same losses.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from robovlms_ros.config.policy import PolicyConfig, config_to_mapping
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.training.engine import state as states
from robovlms_ros.training.engine.batches import (
    EpochSampler,
    build_loader,
    model_batch,
    require_windows,
    split_batch,
    watching_workers,
)
from robovlms_ros.training.engine.curves import Curves
from robovlms_ros.training.engine.objective import Objective, open_loop_errors
from robovlms_ros.training.engine.schedule import constant, half_cosine
from robovlms_ros.training.engine.trainable import count, merge_adapters
from robovlms_ros.training.engine.trainer import Trainer, seed_step

log = logging.getLogger(__name__)
# What may differ when a run goes on: none of it changes what was computed so far.
FREE = ("epochs", "max_steps", "workers", "save_every", "gradient_checkpointing", "trackers")
Reported = Callable[[int, dict[str, float]], None]


def fit(
    policy: VLAPolicy, train: Dataset, validation: Dataset | None, config: PolicyConfig, folder: Path,
    on_step: Reported | None = None, files: dict[str, str] | None = None,
    objective: Objective | None = None, shares: NDArray[np.float64] | None = None,
) -> Path:
    """Train `policy` in place, or go on with the run in `folder`; returns the checkpoint's folder.

    train, validation: map-style data sets of windows (see `batches`). on_step: called with every
    step of the optimiser. objective: of `policy`; None is RoboVLMs'. files: name -> text, written
    beside every checkpoint's weights (statistics). shares: of the windows of `train`, see
    `batches.EpochSampler`. In mixed precision, matrices that do not train
    are left rounded (`devices.hold_frozen`): load the checkpoint to run it.

    Raises TrainingError, ConfigError.
    """
    with torch.random.fork_rng(devices=[]):
        return Engine(policy, train, validation, config, Path(folder), on_step, files or {},
                      objective, shares).run()


class Engine(Trainer):
    """One run; see `fit`."""

    def __init__(
        self, policy: VLAPolicy, train: Dataset, validation: Dataset | None, config: PolicyConfig, folder: Path,
        on_step: Reported | None, files: dict[str, str], objective: Objective | None = None,
        shares: NDArray[np.float64] | None = None,
    ):
        policy.config = config
        self.config = config
        self.on_step = on_step
        self.files = files
        for name in ("checkpoint", "last"):
            states.recover_folder(folder / name)
        require_windows(train, validation)
        self.sampler = EpochSampler(len(cast(Sized, train)), config.training.seed, shares)
        size = policy.vlm.image_size
        loaders = [build_loader(config, size, train, self.sampler)]
        if validation is not None:
            windows = range(len(cast(Sized, validation)))
            loaders.append(build_loader(config, size, validation, windows))
        super().__init__(
            objective or Objective(policy),
            config.training,
            folder,
            loaders,
            threads=config.training.threads,
        )
        self.loader = self.loaders[0]
        self.validation = self.loaders[1] if validation is not None else None
        processes = self.accelerator.num_processes
        self.batches = math.ceil(math.ceil(self.sampler.length / self.training.batch_size) / processes)
        self.epoch_steps = math.ceil(self.batches / self.training.accumulation)
        planned = self.epoch_steps * self.training.epochs
        self.total = min(planned, self.training.max_steps or planned)
        if self.step:
            log.info("going on at step %d of %d in %s", self.step, self.total, folder)
        self.curves = Curves(
            folder,
            self.step,
            self.total,
            self.accelerator.is_main_process,
            trackers=config.training.trackers,
            settings=self.setup(),
        )

    def setup(self) -> dict[str, Any]:
        """The configuration without what may differ (`FREE`), the number of windows and that of
        processes."""
        mapping = config_to_mapping(self.config)
        training = mapping.pop("training")
        kept = {f"training.{k}": v for k, v in training.items() if k not in FREE}
        shares = self.sampler.shares
        drawn = {} if shares is None else {"shares": hashlib.sha256(shares.tobytes()).hexdigest()}
        return {
            **mapping,
            **kept,
            **drawn,
            "windows": self.sampler.length,
            "processes": self.accelerator.num_processes,
        }

    def run(self) -> Path:
        """Train to the end; returns the checkpoint's folder."""
        everything, trained = count(self.module.policy)
        log.info("%d windows, %d steps; %.1f of %.1f million parameters train, on %d x %s", self.sampler.length,
                 self.total, trained / 1e6, everything / 1e6, self.accelerator.num_processes, self.accelerator.device)
        try:
            with watching_workers(self.training):
                while self.progress.step < self.total:
                    self._epoch()
                    self._end_epoch()
        finally:
            self.curves.close()
        if self.accelerator.is_main_process:
            from robovlms_ros.training.engine.report import write_report

            write_report(self.folder, self.config, self.sampler.length, (everything, trained))
        self.accelerator.wait_for_everyone()
        self.policy.is_random = False
        return self.folder / "checkpoint"

    def _epoch(self) -> None:
        """The rest of the current epoch, or of the run."""
        progress = self.progress
        accumulation = self.training.accumulation
        if progress.batch >= self.batches:
            return
        done = progress.batch * self.training.batch_size * self.accelerator.num_processes
        self.sampler.begin(progress.epoch, done)
        self.objective.train()
        parts: list[dict[str, float]] = []
        for batch in self.loader:
            seed = progress.epoch * self.batches + progress.batch
            generator = seed_step(self.training.seed, seed, self.accelerator.process_index, self.accelerator.device)
            with self.accelerator.accumulate(self.objective):
                parts.append(self._batch(batch, generator))
                progress.batch += 1
                if self.accelerator.sync_gradients:
                    self._step(parts)
                    parts = []
            if progress.step >= self.total:
                return
            if not parts and progress.step % self.training.save_every == 0:
                self.save()
        assert progress.batch % accumulation == 0 or not parts

    def _batch(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, float]:
        """Forward and backward of one batch; the means of its losses over all processes."""
        names = self.module.reported
        if self.threads > 1:
            parts = split_batch(batch, self.threads)
            sizes = [len(part["instruction"]) for part in parts]
            result = self.backward_side_by_side(parts, sizes, generator.initial_seed() >> 1)
        else:
            result = self.backward(batch, generator)
        values = torch.stack([result[name].float() for name in names])
        means = self.accelerator.reduce(values, reduction="mean").tolist()
        self.require_finite(means[0])
        return dict(zip(names, means, strict=True))

    def _step(self, parts: list[dict[str, float]]) -> None:
        """Clip, step, report."""
        training = self.training
        warmup = round(training.warmup_ratio * self.epoch_steps)
        factor = constant(self.step, warmup)
        if training.schedule == "cosine":
            factor = half_cosine(self.step, warmup, self.total, training.minimum_rate)
        norm = self.update(training.learning_rate * factor)
        values = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
        values |= {"learning_rate": training.learning_rate * factor, "gradient_norm": float(norm)}
        self.curves.step(self.step, values, self.progress.epoch)
        if self.on_step is not None:
            self.on_step(self.step, values)

    def _end_epoch(self) -> None:
        """Validation and checkpoints, of the averaged weights where there are some; state."""
        with self.averaged():
            self._evaluate()
        if self.progress.batch >= self.batches:
            self.progress.epoch += 1
            self.progress.batch = 0
        self.save()

    def _evaluate(self) -> None:
        values = self._validate() if self.validation is not None else {}
        best = self.progress.best
        better = self.validation is None or best is None or values["loss"] < best
        if better and values:
            self.progress.best = values["loss"]
        if values:
            self.curves.validation(self.progress.step, self.progress.epoch, values)
        tensors = states.full_state(self.module.policy)  # gathered by all processes
        if self.accelerator.is_main_process:
            for name in ("last", "checkpoint") if better else ("last",):
                states.replace_folder(self.folder / name, lambda place: self._write(place, tensors, values))

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Losses, weighted by their steps, and the open-loop errors of the newest frames, over
        the held-out windows."""
        self.objective.eval()
        sums: dict[str, list[float]] = {}
        assert self.validation is not None
        for batch in self.validation:
            inputs = model_batch(self.policy, batch)
            if "hindsight" in batch:
                inputs["hindsight"] = batch["hindsight"].to(self.policy.device)
            result = self.objective(inputs)
            weight = int(result["count"])
            parts = {name: (float(result[name]) * weight, weight) for name in self.module.reported}
            for name, (value, number) in {**parts, **open_loop_errors(self.config, result["newest"], inputs)}.items():
                total = sums.setdefault(name, [0.0, 0.0])
                total[0], total[1] = total[0] + value, total[1] + number
        table = torch.tensor(list(sums.values()), dtype=torch.float64, device="cpu")
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table.float().to(self.accelerator.device)).cpu().double()
        means = (table[:, 0] / table[:, 1].clamp(min=1)).tolist()
        return dict(zip(sums, means, strict=True))

    def _write(self, place: Path, tensors: dict[str, Tensor], values: dict[str, float]) -> None:
        """A checkpoint folder: adapters merged into the weights, and kept beside them."""
        from safetensors.torch import save_file

        from robovlms_ros.checkpoints.checkpoint import DTYPES, save_policy

        merged, adapters = merge_adapters(self.policy, tensors)
        # what it will run in; the state keeps float32
        precision = DTYPES[self.config.vlm.precision]
        merged = {k: v.to(precision) if v.is_floating_point() else v for k, v in merged.items()}
        save_policy(self.policy, place, merged)
        if adapters:
            save_file(adapters, place / "adapters.safetensors")
        record = {
            "step": self.progress.step,
            "epoch": self.progress.epoch + 1,
            "validation": values,
            "training": config_to_mapping(self.config)["training"],
        }
        for name, text in {**self.files, "training.json": json.dumps(record, indent=1)}.items():
            (place / name).write_text(text, encoding="utf-8")
