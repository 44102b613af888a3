"""Which windows a step draws: all alike, or some of them by how badly they were learned when they
were last drawn.

After prioritised experience replay (Schaul et al., arXiv 1511.05952), without its correction for
the bias: what is rare and still wrong (another thing of the same colour, the last centimetre of a
stack) is to weigh more.
"""

import numpy as np
from numpy.typing import NDArray

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
