"""The simulated arm's training loop: resumable to the bit, its weights averaged over time, its curve in a CSV file.

Beside `engine`, which trains any policy on recordings by its own losses: here a window is learned under several
instructions at once, what the simulator knows is learned beside the action, and the result is a running average.

A run's folder: `state.safetensors` (where it goes on) and `curve.csv`. What is drawn at a step depends on the seed, the
step and the number of threads alone, so that an interrupted run ends where an uninterrupted one does: to the bit on a
CPU; on a GPU sums are taken in an order that differs from run to run.
"""

import logging
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from robovlms_ros.core.schema import ConfigError
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.sim.training.behaviour_cloning import (
    SCALARS,
    Learner,
    Losses,
    Recipe,
    TrainingStage,
    learning_rate,
)
from robovlms_ros.sim.training.prioritized_sampling import PrioritizedSampling
from robovlms_ros.sim.training.shards import DemonstrationSet
from robovlms_ros.training.engine.curves import STEPS, append_row

log = logging.getLogger(__name__)
Now = Callable[[], float]
LossesOf = Callable[[Any, torch.Generator], Losses]

REPORT_EVERY = 20
SAVE_EVERY = 200
_STATE = "state.safetensors"


class Trainer:
    """Trains `policy` in place by `recipe`; `folder` holds what a later run needs to go on.

    learner: makes what turns windows into losses; by default the easy demo's. save_every: steps between saved states.
    threads: parts of a step's batch that are computed side by side, each on a core; their mean is the step's gradient.
    device: where the policy is trained; elsewhere than on a CPU a step has one part, and float32 products of matrices
    are rounded to TF32 where the device does that. Raises ConfigError when `folder` holds the state of another model.
    """

    def __init__(
        self,
        policy: VLAPolicy,
        recipe: Recipe,
        folder: Path,
        learner: Callable[[VLAPolicy, Recipe], Any] = Learner,
        save_every: int = SAVE_EVERY,
        threads: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.recipe, self.folder, self.save_every = recipe, folder, save_every
        self.device = torch.device(device)
        self._on_cpu = self.device.type == "cpu"
        if not self._on_cpu:
            torch.set_float32_matmul_precision("high")
        self._threads = threads = threads if self._on_cpu else 1
        # A small model's products are too small to be split among cores, and every split waits for the slower core.
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        torch.manual_seed(recipe.seed)
        self.learner = learner(policy.to(self.device), recipe).to(self.device)
        self.step = 0
        self._focus: PrioritizedSampling | None = None
        self._parameters = dict(self.learner.named_parameters())
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        decayed = [p for p in self._parameters.values() if p.ndim > 1]
        others = [p for p in self._parameters.values() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._optimiser = torch.optim.AdamW(groups, fused=not self._on_cpu)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / _STATE).exists():
            self._restore()

    def run(
        self,
        data: DemonstrationSet,
        stage: TrainingStage,
        begin: int = 0,
        total: int | None = None,
        now: Now = time.monotonic,
    ) -> None:
        """Train through `stage`, which begins at step `begin`, saving as it goes.

        total: steps of all stages (default: to this one's end), and now: seconds, for the time left in the log alone.
        """
        until = begin + stage.steps
        if self.step == begin:
            self._focus = None  # the windows are others now
        began, first, sums = now(), self.step, torch.zeros(4, device=self.device)
        while self.step < until:
            rate = learning_rate(self.step - begin, stage, self.recipe)
            losses = self.train_step(data, rate, stage)
            sums += torch.stack((losses.total.detach(), losses.arm, losses.gripper, losses.target_error))
            if self.step % REPORT_EVERY == 0:
                means = (sums / REPORT_EVERY).tolist()  # waits for the device
                pace = (now() - began) / (self.step - first)
                self._report(means, rate, until, pace * ((total or until) - self.step))
                sums.zero_()
            if self.step % self.save_every == 0 or self.step == until:
                self.save()

    def train_step(self, data: DemonstrationSet, rate: float, stage: TrainingStage | None = None) -> Losses:
        """One step of AdamW at a learning rate, and of the average. stage: what is learned, from how many windows."""
        recipe = self.recipe
        count = stage.windows if stage and stage.windows else recipe.windows
        losses_of = self.learner.seeing if stage and stage.seeing else self.learner.losses
        if stage and stage.frozen_vision:
            losses_of = partial(losses_of, frozen_vision=True)
        focus = self._focus_on(data, stage)
        rng = np.random.default_rng((recipe.seed, self.step))
        seed = int(rng.integers(2**62))
        drawn = focus.draw(rng, count)
        parts = np.array_split(data.starts[drawn], self._threads)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self.learner.train()
        losses = self._backward(losses_of, data, parts, seed)
        if focus.share and losses.windows is not None:
            focus.learned(drawn, losses.windows.cpu().numpy())
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), recipe.gradient_clip)
        self._optimiser.step()
        self.step += 1
        keep = min(recipe.average, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self._average.values()), list(self._parameters.values()), 1 - keep)
        return losses

    def _focus_on(self, data: DemonstrationSet, stage: TrainingStage | None) -> PrioritizedSampling:
        """What was learned how well so far, of the windows of this stage."""
        if self._focus is None or len(self._focus.losses) != len(data.starts):
            self._focus = PrioritizedSampling(len(data.starts))
        self._focus.share = stage.focus if stage else 0.0
        return self._focus

    def _backward(self, losses_of: LossesOf, data: DemonstrationSet, parts: list[np.ndarray], seed: int) -> Losses:
        """The mean over all windows, of the losses, and of their gradients into the parameters."""
        done = list(self._pool.map(partial(self._part, losses_of, data), parts, range(seed, seed + len(parts))))
        total = sum(len(part) for part in parts)
        shares = [len(part) / total for part in parts]
        for i, parameter in enumerate(self._parameters.values()):
            each = [(share, gradients[i]) for share, (_, gradients) in zip(shares, done, strict=True)]
            found = [share * gradient for share, gradient in each if gradient is not None]
            parameter.grad = sum(found[1:], found[0]) if found else None
        told = [losses.windows for losses, _ in done if losses.windows is not None]
        return Losses(windows=torch.cat(told) if told else None, **{
            name: sum(share * getattr(losses, name) for share, (losses, _) in zip(shares, done, strict=True))
            for name in SCALARS
        })

    def _part(
        self, losses_of: LossesOf, data: DemonstrationSet, starts: np.ndarray, seed: int
    ) -> tuple[Losses, tuple[torch.Tensor | None, ...]]:
        """The losses of the windows at `starts`, and their gradients in the order of the parameters."""
        losses = losses_of(data.windows(starts), torch.Generator(self.device).manual_seed(seed))
        gradients = torch.autograd.grad(losses.total, tuple(self._parameters.values()), allow_unused=True)
        told = {name: getattr(losses, name).detach() for name in SCALARS}
        return Losses(windows=losses.windows, **told), gradients

    def averaged(self) -> VLAPolicy:
        """The policy with the averaged weights put in. Training goes on from the raw ones after `restore_raw`."""
        self._raw = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._fill(self._average)
        self.learner.policy.is_random = False
        return self.learner.policy.eval()

    def restore_raw(self) -> None:
        """Undo `averaged`."""
        self._fill(self._raw)

    def _fill(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(values[name])

    def save(self) -> None:
        """Write the state; a reader sees the old one or the new one."""
        tensors = {f"raw.{k}": v.detach() for k, v in self._parameters.items()}
        tensors |= {f"average.{k}": v for k, v in self._average.items()}
        for name, parameter in self._parameters.items():
            state = self._optimiser.state.get(parameter, {})
            tensors |= {f"{key}.{name}": value for key, value in state.items()}
        if self._focus is not None and self._focus.share:
            tensors["focus"] = torch.from_numpy(self._focus.losses)
        part = self.folder / "state.part"
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, part, metadata={"step": str(self.step)})
        os.replace(part, self.folder / _STATE)

    def _restore(self) -> None:
        path = self.folder / _STATE
        with safe_open(path, framework="pt") as file:
            self.step = int(file.metadata()["step"])
        tensors = load_file(path, device=str(self.device))
        others = [name for name, parameter in self._parameters.items()
                  if f"raw.{name}" not in tensors or tensors[f"raw.{name}"].shape != parameter.shape]
        if others:
            raise ConfigError(
                f"{path}: {len(others)} of its weights are not this run's ({others[0]}): it was begun with another "
                "policy or by an older version. Give another --output, or delete the folder to begin anew."
            )
        self._fill({name: tensors[f"raw.{name}"] for name in self._parameters})
        self._average = {name: tensors[f"average.{name}"] for name in self._parameters}
        for name, parameter in self._parameters.items():
            if f"exp_avg.{name}" in tensors:
                self._optimiser.state[parameter] = {
                    key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
        if "focus" in tensors:
            self._focus = PrioritizedSampling(len(tensors["focus"]), tensors["focus"].cpu().numpy())
        log.info("going on at step %d of %s", self.step, self.folder)

    def _report(self, means: list[float], rate: float, until: int, left: float) -> None:
        total, arm, gripper, error = means
        seen = "" if math.isnan(error) else f"target {100 * error:.1f} cm, "
        log.info("step %d of %d: loss %.3f, arm %.4f, gripper %.4f, %s%.0f min of training left",
                 self.step, until, total, arm, gripper, seen, left / 60)
        row = dict(zip(("loss", "arm", "gripper", "target_error_m"), (f"{x:.5f}" for x in means), strict=True))
        append_row(self.folder / STEPS, {"step": self.step, **row, "learning_rate": f"{rate:.2e}"})
