"""Training in stages: every step draws windows with replacement, every stage has its own learning
rate curve.

A stage draws all windows alike, or some of them by their loss when they were last drawn:
prioritised experience replay (Schaul et al., arXiv 1511.05952) without its correction for the bias,
since rare windows with a high loss are to weigh more. A step's draw depends on the seed, the step
and the number of threads
alone, so that an interrupted run ends where an uninterrupted one does: to the bit on a CPU; on a
GPU sums are taken in an order that differs from run to run.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robovlms_ros.config.training import TrainingConfig
from robovlms_ros.core.schema import require
from robovlms_ros.training.engine.curves import Curves
from robovlms_ros.training.engine.objective import Objective
from robovlms_ros.training.engine.schedule import StageSchedule
from robovlms_ros.training.engine.trainer import Trainer

Array = NDArray[np.float32]


class PrioritizedSampling:
    """count: windows that there are. losses (count,): the last loss of each, NaN before it was
    drawn."""

    share = 0.0
    """Part of the windows that are drawn in proportion to their last loss, 0 to below 1; the
    others are drawn alike."""

    def __init__(self, count: int, losses: Array | None = None) -> None:
        self.losses = np.full(count, np.nan, np.float32) if losses is None else losses

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """(count,) indices of windows, with replacement. One that was never drawn counts as the
        mean of the others."""
        seen = ~np.isnan(self.losses)
        known = float(self.losses[seen].mean()) if self.share and seen.any() else 0.0
        if known == 0.0:
            return rng.choice(len(self.losses), count)
        weights = np.where(seen, self.losses, known).astype(np.float64)
        chances = (1.0 - self.share) / len(weights) + self.share * weights / weights.sum()
        return rng.choice(len(weights), count, p=chances / chances.sum())

    def learned(self, windows: NDArray[np.int64], losses: Array) -> None:
        """Keep the losses (B,) of the windows (B,) that a step has drawn."""
        self.losses[windows] = losses


log = logging.getLogger(__name__)
REPORT_EVERY = 20
_LOSSES = "sampling.losses"


class WindowSource(Protocol):
    """Windows that a step draws from. starts: (N,) the windows' numbers."""

    starts: NDArray[np.int64]

    def windows(self, starts: NDArray[np.int64]) -> Any:
        """The windows of these numbers as `Objective.inputs` takes them."""
        ...


@dataclass(frozen=True)
class Stage:
    """Part of a run with a learning rate's whole course: `steps` steps, `learning_rate` at its
    highest.

    windows: of a step's batch; 0 for the configuration's batch_size. focus: part of the windows
    that are drawn in proportion to their last loss.
    """

    steps: int
    learning_rate: float = 1e-3
    windows: int = 0
    focus: float = 0.0

    def __post_init__(self) -> None:
        require(self.steps >= 1, "stages.steps", self.steps, "1 or more")
        require(0 < self.learning_rate <= 1, "stages.learning_rate", self.learning_rate, "above 0 and at most 1")
        require(self.windows >= 0, "stages.windows", self.windows, "0 or more")
        require(0 <= self.focus < 1, "stages.focus", self.focus, "0 to below 1")

    @property
    def options(self) -> dict[str, Any]:
        """For `Objective.inputs`."""
        return {}


class StageTrainer(Trainer):
    """Trains through stages; see `Trainer`. schedule: the course of every stage."""

    def __init__(
        self,
        objective: Objective,
        training: TrainingConfig,
        folder: Path,
        schedule: StageSchedule | None = None,
        device: torch.device | str | None = None,
        threads: int = 1,
    ) -> None:
        self.schedule = schedule or StageSchedule()
        self._sampling: PrioritizedSampling | None = None
        super().__init__(objective, training, folder, device=device, threads=threads)
        self.curves = Curves(folder, self.step, 0, self.accelerator.is_main_process, bar=False)
        if self.step:
            log.info("going on at step %d of %s", self.step, folder)

    def run(
        self, data: WindowSource, stage: Stage, begin: int = 0, total: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Train through `stage`, which begins at step `begin`, saving as it goes.

        total: steps of all stages (default: to this one's end). now: seconds, for the time left in
        the log alone. Raises TrainingError for a loss that is not finite.
        """
        until = begin + stage.steps
        if self.step == begin:
            self._sampling = None  # the windows are others now
        began = now()
        first = self.step
        sums = torch.zeros(len(self.module.reported), device=self.device)
        while self.step < until:
            rate = stage.learning_rate * self.schedule.factor(self.step - begin, stage.steps)
            result = self.train_step(data, rate, stage)
            sums += torch.stack([result[name] for name in self.module.reported])
            if self.step % REPORT_EVERY == 0:
                means = (sums / REPORT_EVERY).tolist()  # waits for the device
                pace = (now() - began) / (self.step - first)
                values = dict(zip(self.module.reported, means, strict=True))
                self._report(values, rate, until, pace * ((total or until) - self.step))
                sums.zero_()
            if self.step % self.training.save_every == 0 or self.step == until:
                self.save()

    def train_step(
        self, data: WindowSource, rate: float, stage: Stage | None = None
    ) -> dict[str, Tensor]:
        """One step at a learning rate; the objective's results. stage: what is learned, from how
        many windows."""
        stage = stage or Stage(1)
        sampling = self._sampling_of(data, stage)
        rng = np.random.default_rng((self.training.seed, self.step))
        seed = int(rng.integers(2**62))
        drawn = sampling.draw(rng, stage.windows or self.training.batch_size)
        torch.manual_seed(seed)
        self.objective.train()
        if self.threads > 1:
            parts = np.array_split(data.starts[drawn], self.threads)
            batches = [data.windows(part) for part in parts]
            result = self.backward_side_by_side(
                batches, [len(part) for part in parts], seed, **stage.options
            )
        else:
            generator = torch.Generator(self.device).manual_seed(seed)
            result = self.backward(data.windows(data.starts[drawn]), generator, **stage.options)
        if sampling.share and "windows" in result:
            sampling.learned(drawn, result["windows"].cpu().numpy())
        self.update(rate)
        return result

    def extra_state(self) -> dict[str, Tensor]:
        if self._sampling is None or not self._sampling.share:
            return {}
        return {_LOSSES: torch.from_numpy(self._sampling.losses).clone()}

    def restore_extra(self, tensors: dict[str, Tensor]) -> None:
        if _LOSSES in tensors:
            losses = tensors[_LOSSES].numpy()
            self._sampling = PrioritizedSampling(len(losses), losses)

    def _sampling_of(self, data: WindowSource, stage: Stage) -> PrioritizedSampling:
        """The last losses of this stage's windows."""
        if self._sampling is None or len(self._sampling.losses) != len(data.starts):
            self._sampling = PrioritizedSampling(len(data.starts))
        self._sampling.share = stage.focus
        return self._sampling

    def _report(self, values: dict[str, float], rate: float, until: int, left: float) -> None:
        self.require_finite(values["loss"])
        known = ", ".join(
            f"{name} {value:.4f}" for name, value in values.items() if not math.isnan(value)
        )
        log.info("step %d of %d: %s, %.0f min of training left", self.step, until, known, left / 60)
        self.curves.step(self.step, {**values, "learning_rate": rate})
