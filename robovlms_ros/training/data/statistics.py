"""Statistics of a training set's actions, in one pass: the base of a policy's normalisation
of."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.config.action import NormalizationConfig
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.inference.action_pipeline import ActionPipeline
from robovlms_ros.training.data.episodes import DataError, EpisodeSource, require_action
from robovlms_ros.training.data.windows import chunks_at

Array = NDArray[np.float64]
Method = Literal["min_max", "quantile", "mean_std"]

EXACT_ROWS = 1 << 20
NARROW = 1e-3


class Running:
    """Minimum, maximum, mean and standard deviation of rows (N, D), and quantiles, without keeping
    all of them.

    Quantiles are exact up to EXACT_ROWS rows; of more, every second, fourth, ... row is kept for
    them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._every = 1
        self._seen = 0
        self.low: Array | None = None
        self._sample: list[NDArray[np.float32]] = []
        self._kept = 0

    def add(self, rows: Array) -> None:
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        squares = ((rows - rows.mean(axis=0)) ** 2).sum(axis=0)
        if self.low is None:
            self.low = rows.min(axis=0)
            self.high = rows.max(axis=0)
            self.mean = mean
            self._squares = squares
        else:
            self.low, self.high = np.minimum(self.low, rows.min(axis=0)), np.maximum(self.high, rows.max(axis=0))
            shift = mean - self.mean
            total = self.count + len(rows)
            self._squares = self._squares + squares + shift**2 * self.count * len(rows) / total
            self.mean = self.mean + shift * len(rows) / total
        self.count += len(rows)
        first = -self._seen % self._every
        self._keep(rows[first::self._every].astype(np.float32))
        self._seen += len(rows)

    def _keep(self, rows: NDArray[np.float32]) -> None:
        self._sample.append(rows)
        self._kept += len(rows)
        while self._kept > EXACT_ROWS:
            thinned = np.concatenate(self._sample)[::2]
            self._sample = [thinned]
            self._kept = len(thinned)
            self._every = 2 * self._every

    @property
    def std(self) -> Array:
        return np.sqrt(self._squares / self.count)

    def quantile(self, q: float) -> Array:
        return np.quantile(np.concatenate(self._sample).astype(np.float64), q, axis=0)


@dataclass(frozen=True)
class Statistics:
    """Of the arm's part of the actions, in the units of `action.units`, and of proprioception (SI).

    count: actions. unit: what one is, in words. low, high, mean, std, q01, q99: one number per arm
        dimension.
    """

    names: tuple[str, ...]
    unit: str
    count: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    proprioception_mean: tuple[float, ...] = ()
    proprioception_std: tuple[float, ...] = ()

    def as_table(self, key: str) -> dict[str, Any]:
        """The layout that `statistics: FILE, key: NAME` of a configuration reads: NAME -> action ->
        numbers."""
        arm = {"q01": self.q01, "q99": self.q99, "min": self.low, "max": self.high, "mean": self.mean, "std": self.std}
        fill = {"q01": 0.0, "q99": 1.0, "min": 0.0, "max": 1.0, "mean": 0.0, "std": 1.0}
        action: dict[str, Any] = {name: [*values, fill[name]] for name, values in arm.items()}
        return {key: {"action": {**action, "unit": self.unit}, "num_transitions": self.count}}


def compute_statistics(source: EpisodeSource, episodes: Sequence[int], config: PolicyConfig) -> Statistics:
    """One pass over the numbers of some episodes: every action that a window would hold. Reads no
    image.

    Raises DataError when there is none, and when a number is not finite.
    """
    require_action(config)
    assert config.action is not None
    units = ActionPipeline(config.action).steps[-1]
    actions = Running()
    states = Running()
    for rows, proprioception, where in _rows(source, episodes, config.model.action_chunk_size):
        if not np.isfinite(rows).all():
            raise DataError(f"{where}: an action is not finite. Repair the recording, or exclude the episode.")
        actions.add(units.encode(rows[:, :-1]))
        if proprioception is not None:
            states.add(proprioception)
    if actions.low is None:
        raise DataError("no action to take statistics of: the episodes are empty.")
    numbers = {"low": actions.low, "high": actions.high, "mean": actions.mean, "std": actions.std,
               "q01": actions.quantile(0.01), "q99": actions.quantile(0.99)}
    plain: dict[str, Any] = {name: _floats(values) for name, values in numbers.items()}
    if states.low is not None:
        plain |= {"proprioception_mean": _floats(states.mean), "proprioception_std": _floats(states.std)}
    return Statistics(config.action.names[:-1], config.action.unit, actions.count, **plain)


def _rows(
    source: EpisodeSource, episodes: Sequence[int], horizon: int
) -> Iterator[tuple[Array, Array | None, str]]:
    """(N, D) SI actions that an episode teaches, its proprioception, its name."""
    for i in episodes:
        arrays = source.arrays(i)
        if arrays.chunks is None:
            yield arrays.actions, arrays.proprioception, arrays.source
        else:
            values, known = chunks_at(arrays, np.arange(len(arrays)), horizon)
            yield values[known], arrays.proprioception, arrays.source


def _floats(values: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def with_statistics(config: PolicyConfig, statistics: Statistics, method: Method | None = None) -> PolicyConfig:
    """`config` with the statistics put in, where it does not bring its own: normalisation of
    actions, with the unit that its numbers are in, and of proprioception.

    method: None is `quantile` for deltas and `min_max` for absolute spaces, whose ends must stay
    within reach. A dimension that never changes is given a width of 2e-3, so that it stays where it
    was.
    """
    action = config.action
    assert action is not None
    if not action.normalization:
        method = method or ("quantile" if action.space.endswith("_delta") else "min_max")
        action = dataclasses.replace(action, normalization=(_normalization(statistics, method),))
    state = config.proprioception
    if state is not None and not state.mean and statistics.proprioception_mean:
        std = tuple(max(value, NARROW) for value in statistics.proprioception_std)
        state = dataclasses.replace(state, mean=statistics.proprioception_mean, std=std)
    return dataclasses.replace(config, action=action, proprioception=state)


def _normalization(statistics: Statistics, method: Method) -> NormalizationConfig:
    """The gripper's number, which takes no part, is 0 to 1 (mean 0, std 1)."""
    if method == "mean_std":
        std = tuple(max(value, NARROW) for value in statistics.std)
        return NormalizationConfig(method, mean=(*statistics.mean, 0.0), std=(*std, 1.0), unit=statistics.unit)
    low, high = (statistics.q01, statistics.q99) if method == "quantile" else (statistics.low, statistics.high)
    narrow = [b - a < 2 * NARROW for a, b in zip(low, high, strict=True)]
    low = tuple((a + b) / 2 - NARROW if thin else a for a, b, thin in zip(low, high, narrow, strict=True))
    high = tuple(a + 2 * NARROW if thin else b for a, b, thin in zip(low, high, narrow, strict=True))
    return NormalizationConfig(method, low=(*low, 0.0), high=(*high, 1.0), unit=statistics.unit)
