"""Is one policy better than another on the same images? Differences per episode, with bootstrap
intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robovlms_ros.core.types import Array

Errors = Mapping[str, Sequence[Sequence[float]]]

DRAWS = 2000
SEED = 20_241_122
FEW = 5
"""Episodes below which the interval comes from blocks of chunks instead."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval. unit: `episodes` or `blocks of chunks`, what was drawn; count:
    how many of them."""

    mean: float
    low: float
    high: float
    unit: str
    count: int


def mean_interval(errors: Errors, block: int) -> Interval | None:
    """The mean error over all chunks."""
    series = [np.array([error for _, error in rows]) for rows in errors.values() if rows]
    return _interval(series, block)


def paired_interval(a: Errors, b: Errors, block: int) -> tuple[Interval | None, dict[str, Interval]]:
    """The mean of b minus a over the chunks that both answered, and the same for every episode.

    Positive: b errs more. block: chunks that overlap in time and so count as one.
    """
    differences: dict[str, Array] = {}
    for episode in a.keys() & b.keys():
        mine = {stamp: error for stamp, error in a[episode]}
        theirs = {stamp: error for stamp, error in b[episode]}
        common = sorted(mine.keys() & theirs.keys())
        if common:
            differences[episode] = np.array([theirs[stamp] - mine[stamp] for stamp in common])
    each = {}
    for episode in sorted(differences):
        interval = _interval([differences[episode]], block)
        if interval is not None:
            each[episode] = interval
    return _interval([differences[episode] for episode in sorted(differences)], block), each


def _interval(series: Sequence[Array], block: int) -> Interval | None:
    """Bootstrap of episodes where there are enough, else of blocks of neighbouring chunks."""
    if not series:
        return None
    rng = np.random.default_rng(SEED)
    if len(series) >= FEW:
        units = series
        name = "episodes"
    else:
        units = [piece for one in series for piece in _blocks(one, block)]
        name = "blocks of chunks"
    sums = np.array([unit.sum() for unit in units])
    counts = np.array([len(unit) for unit in units])
    picks = rng.integers(0, len(units), (DRAWS, len(units)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), name, len(units))


def _blocks(values: Array, length: int) -> list[Array]:
    return [values[i:i + length] for i in range(0, len(values), max(1, length))]
