"""Learning rates as a factor of the base rate, by step."""

import math


def constant(step: float, warmup: float) -> float:
    """Linear from 0 over `warmup` steps, then 1."""
    return min(1.0, step / warmup) if warmup else 1.0


def half_cosine(step: float, warmup: float, total: float, minimum: float = 0.01) -> float:
    """Linear from 0 over `warmup` steps, then half a cosine down to `minimum` at `total`, and `minimum` after it."""
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return minimum + (1.0 - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))
