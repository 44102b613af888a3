"""The few statistics that reports need."""

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927); (0, 1) when
    nothing was tried."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    z = Z95
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At 0 and 1 the exact bounds are 0 and 1; rounding would miss them by 1e-17.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile (0 to 100, linear between samples), or None of nothing."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), q)) if len(values) else None
