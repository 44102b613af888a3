"""One training run, whatever supplies its windows: forward, backward, optimiser, averaged weights,
resumable state.

Two loops are built on it: `fit.Engine` (epochs over recordings, validation, best checkpoint) and
`stages.StageTrainer` (stages of drawn windows). Both write the same state and the same curve.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robovlms_ros.config.training import TrainingConfig
from robovlms_ros.training.engine import state as states
from robovlms_ros.training.engine.batches import TrainingError
from robovlms_ros.training.engine.devices import build_accelerator, hold_frozen
from robovlms_ros.training.engine.objective import Objective
from robovlms_ros.training.engine.state import AveragedWeights
from robovlms_ros.training.engine.trainable import optimiser, prepare


class Trainer:
    """Trains `objective.policy` in place; `folder` holds the state that a later run goes on from.

    training: the optimisation. loaders: of windows, spread over the processes. device: None is
    accelerate's choice. threads: parts of a batch that are computed side by side on a CPU, each on
    a core; their weighted mean is the step's gradient.

    Raises TrainingError when `folder` holds the state of another run.
    """

    def __init__(
        self,
        objective: Objective,
        training: TrainingConfig,
        folder: Path,
        loaders: Sequence[Any] = (),
        device: torch.device | str | None = None,
        threads: int = 1,
    ) -> None:
        self.training = training
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator = build_accelerator(training, device)
        self.device = self.accelerator.device
        seed_step(training.seed, 0, 0)
        prepare(objective.policy, training)
        # FSDP shards float32 and computes in the precision that it is set to
        if not self.accelerator.is_fsdp2:
            hold_frozen(objective.policy, training)
        adam = optimiser(objective, training, self.device)
        prepared = self.accelerator.prepare(objective, adam, *loaders)
        self.objective = prepared[0]
        self.optimiser = prepared[1]
        self.loaders = prepared[2:]
        self.module: Objective = self.accelerator.unwrap_model(self.objective)
        self.policy = self.module.policy
        self.parameters = states.trained_parameters(self.module)
        self.average = (
            AveragedWeights(self.parameters, training.average) if training.average else None
        )
        self.threads = threads if self.device.type == "cpu" else 1
        # A small model's products are too small to be split among cores, and every split waits for
        # the slower core.
        self._pool = ThreadPoolExecutor(
            self.threads, initializer=torch.set_num_threads, initargs=(1,)
        )
        self.progress = states.TrainingProgress(setup=self.setup())
        self._resume()

    @property
    def step(self) -> int:
        """Steps of the optimiser that are done."""
        return self.progress.step

    def backward(self, batch: Any, generator: torch.Generator, **options: Any) -> dict[str, Tensor]:
        """Gradients of one batch, added to those that are there; the objective's results, detached.

        generator: of the augmentation, on the run's device. options: for `Objective.inputs`.
        """
        result = self.objective(self.module.inputs(batch, generator, **options))
        self.accelerator.backward(result["loss"])
        return {name: value.detach() for name, value in result.items()}

    def backward_side_by_side(
        self, batches: Sequence[Any], sizes: Sequence[int], seed: int, **options: Any
    ) -> dict[str, Tensor]:
        """Gradients of the parts of one batch, computed in threads: their mean, weighted by their
        sizes.

        Returns the weighted means of the scalars in `Objective.reported`, and `windows` of all
        parts in order.
        """
        part = partial(self._part, options)
        done = list(self._pool.map(part, batches, range(seed, seed + len(batches))))
        shares = [size / sum(sizes) for size in sizes]
        for i, parameter in enumerate(self.parameters.values()):
            each = [(share, gradients[i]) for share, (_, gradients) in zip(shares, done, strict=True)]
            found = [share * gradient for share, gradient in each if gradient is not None]
            parameter.grad = sum(found[1:], found[0]) if found else None
        means = {
            name: sum(
                (share * part[name] for share, (part, _) in zip(shares, done, strict=True)),
                torch.zeros(()),
            )
            for name in self.module.reported
        }
        windows = [part["windows"] for part, _ in done if "windows" in part]
        return {**means, "windows": torch.cat(windows)} if windows else means

    def _part(
        self, options: dict[str, Any], batch: Any, seed: int
    ) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
        """The results of one part, detached, and its gradients in the order of the parameters."""
        generator = torch.Generator(self.device).manual_seed(seed)
        result = self.objective(self.module.inputs(batch, generator, **options))
        gradients = torch.autograd.grad(
            result["loss"], tuple(self.parameters.values()), allow_unused=True
        )
        return {name: value.detach() for name, value in result.items()}, gradients

    def update(self, rate: float) -> Tensor:
        """Clip the gradients, step, average; returns the gradients' norm before clipping."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        largest = self.training.gradient_clip or math.inf
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), largest)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.progress.step += 1
        if self.average is not None:
            self.average.update(self.progress.step)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the policy has the averaged weights, where the configuration requires
        an average."""
        if self.average is None:
            yield
            return
        with self.average.applied():
            yield

    def require_finite(self, loss: float) -> None:
        """Raises TrainingError for a loss that is not finite."""
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {self.progress.step + 1}: the loss is {loss}. The state of the last save is "
                f"kept in {self.folder}. A smaller learning_rate, a gradient_clip above 0 or "
                "precision bfloat16 may help; `--inspect` looks for bad data."
            )

    def save(self) -> None:
        """Write the state; a reader sees the old one or the new one."""
        tensors = states.collect(self.module, self._adam, self.average)
        tensors |= self.extra_state()
        if self.accelerator.scaler is not None:
            self.progress.scaler = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process:
            states.save_state(self.folder, tensors, self.progress)
        self.accelerator.wait_for_everyone()

    def setup(self) -> dict[str, Any]:
        """Settings that a run which goes on must share with the one that began, JSON-ready."""
        return {}

    def extra_state(self) -> dict[str, Tensor]:
        """Further tensors of the state, by names that no parameter's tensor has."""
        return {}

    def restore_extra(self, tensors: dict[str, Tensor]) -> None:
        """Put `extra_state` back in place."""

    @property
    def _adam(self) -> torch.optim.Optimizer:
        return getattr(self.optimiser, "optimizer", self.optimiser)

    def _resume(self) -> None:
        found = states.load_state(self.folder)
        if found is None:
            return
        tensors, progress = found
        differing = [k for k, v in self.progress.setup.items() if progress.setup.get(k) != v]
        if differing:
            told = "; ".join(f"{k}: {progress.setup.get(k)} then, {self.progress.setup[k]} now" for k in differing)
            raise TrainingError(
                f"{self.folder}: holds a run of another set-up ({told[:600]}). Give another --output, or the "
                "configuration and data that it was begun with."
            )
        states.restore(
            self.module, self._adam, tensors, str(self.folder / states.STATE), self.average
        )
        self.restore_extra(tensors)
        if self.accelerator.scaler is not None and progress.scaler:
            self.accelerator.scaler.load_state_dict(progress.scaler)
        self.progress = progress


def seed_step(seed: int, step: int, process: int, device: Any = "cpu") -> torch.Generator:
    """Seed torch's own generators (dropout) for one batch of one process; returns one for the
    augmentation."""
    drawn = int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.manual_seed(drawn)
    return torch.Generator(device).manual_seed(drawn)
