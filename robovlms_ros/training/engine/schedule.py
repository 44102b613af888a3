"""Learning rates as a factor of the base rate, by step."""

import math
from dataclasses import dataclass


def constant(step: float, warmup: float) -> float:
    """Linear from 0 over `warmup` steps, then 1."""
    return min(1.0, step / warmup) if warmup else 1.0


def half_cosine(step: float, warmup: float, total: float, minimum: float = 0.01) -> float:
    """Linear from 0 over `warmup` steps, then half a cosine down to `minimum` at `total`, and
    `minimum` after it."""
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return minimum + (1.0 - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class StageSchedule:
    """The course of a stage: warm-up, a constant part, then half a cosine.

    warmup: steps. constant_part: share of the stage before the cosine. final_rate: factor at the
    end.
    """

    warmup: int = 100
    constant_part: float = 0.4
    final_rate: float = 0.05

    def factor(self, step: int, steps: int) -> float:
        """The factor at `step` of a stage of `steps` steps; the first step has 1 / warmup."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = self.constant_part * steps
        if step < start:
            return 1.0
        return half_cosine(step - start, 0, steps - start, self.final_rate)
