"""Training data of any kind as episodes: evenly sampled steps with images, actions, an instruction.

A reader (`sources`) turns its format into this, a policy's windows are cut out of it (`windows`).
Numbers are SI, stamps are those of the data, images are read on access.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.schema import ConfigError, did_you_mean
from robovlms_ros.core.types import RoboVLMsError

Array = NDArray[np.float64]
Images = dict[str, NDArray[np.uint8]]

UNKNOWN = "unknown"
"""Outcome of an episode without a mark."""


class DataError(RoboVLMsError):
    """Recorded data that a policy cannot be trained on: what, where, and what to do about it."""


@dataclass(frozen=True)
class EpisodeArrays:
    """The numbers of one episode of T steps, `1 / rate_hz` apart.

    stamps_ns: (T,) int64, of the reference camera's images, on the data's own clock.
    actions: (T, D) float64 in the space and frame of the policy's `action` block, metres and
        radians; the last column is the gripper's opening, 0 closed to 1 open. Row t leads from step
        t to step t + 1.
    proprioception: (T, P) float64, as `inference.proprioception.state_vector`; None where the
        policy takes none.
    chunks: (T, n, D) float64, the n actions that follow each step as one chunk of the policy's
        `composition`, and known: (T, n) bool, those that the recording contains. Both None: a
        chunk is n rows of `actions`.
    robot_type: the recording's own name of the robot, "" where it has none.
    poses: (T, 4, 4) float64, base_T_eef measured, and openings: (T,) float64, the gripper's, 0
        closed to 1 open; None where the recording or the policy has no tool pose or no gripper.
    hindsight: (T, 7) float64, `hindsight.relative` of where the gripper took hold in the end; NaN
        where unknown. None without `training.hindsight`.
    takeover: (T,) float64, s to the first command of the person who takes over next; 0 while a
        person drives, infinite where nobody takes over. None where the recording does not show who
        drives.
    outcome: `success` or `failure` by a mark of the recording, else UNKNOWN.
    """

    stamps_ns: NDArray[np.int64]
    actions: Array
    proprioception: Array | None
    instruction: str
    source: str
    chunks: Array | None = None
    known: NDArray[np.bool_] | None = None
    robot_type: str = ""
    poses: Array | None = None
    openings: Array | None = None
    hindsight: Array | None = None
    takeover: Array | None = None
    outcome: str = UNKNOWN

    def __len__(self) -> int:
        return len(self.stamps_ns)


def time_to_takeover(times: Array, person: NDArray[np.bool_], begins: Array) -> Array:
    """(T,) as EpisodeArrays.takeover, of frames at `times` (s): flags of who drives at each, and
    the times, in order, at which a person begins."""
    following = np.append(begins, np.inf)[np.searchsorted(begins, times)]
    return np.where(person, 0.0, following - times)


@dataclass(frozen=True)
class Flaw:
    """Flaw of the recording itself that its episodes no longer show.

    kind: `clock`, `gap`, `cameras`, `short`, `lost`, ... refuse: training on it would go wrong.
        remedy: what to do.
    episodes: names of the episodes that it concerns, where `where` is none of them.
    """

    kind: str
    where: str
    text: str
    remedy: str
    refuse: bool = False
    episodes: tuple[str, ...] = ()


class EpisodeSource(Protocol):
    """Episodes by number, from 0. Can be pickled and forked: files are opened where they are read.

    cameras: the policy's names. rate_hz: steps per second. flaws: what was wrong with the
        recordings.
    notes: how the data was understood, one sentence each. accept: kinds of flaws that do not forbid
        training.
    dropped: names of recorded episodes that are not among these, and the reason.
    """

    cameras: tuple[str, ...]
    rate_hz: float
    flaws: Sequence[Flaw]
    notes: Sequence[str]
    accept: Sequence[str]
    dropped: Mapping[str, str]

    def __len__(self) -> int:
        """Episodes."""

    def length(self, i: int) -> int:
        """Steps of an episode, without reading it."""

    def origin(self, i: int) -> str:
        """Name of the recorded episode. Pieces of one share it: they belong on one side of a
        split."""

    def arrays(self, i: int) -> EpisodeArrays:
        """Its numbers. Raises DataError."""

    def images(self, i: int, steps: Sequence[int] | NDArray[np.int64]) -> Images:
        """camera -> (n, H, W, 3) uint8 RGB of the steps, in the given order. Raises
        DataError."""


class Joined:
    """Several sources one after another; `exclude` leaves out what `origin` calls by these names;
    `accept`: see `EpisodeSource`. policies: ids of the policies whose chunks were recorded.

    Raises DataError for an unknown name, for nothing left, and for rates that differ.
    """

    def __init__(
        self, sources: Sequence[EpisodeSource], exclude: Sequence[str] = (), accept: Sequence[str] = ()
    ) -> None:
        self._sources = list(sources)
        self.accept: Sequence[str] = tuple(accept)
        self.cameras = sources[0].cameras
        self.rate_hz = sources[0].rate_hz
        self.flaws: Sequence[Flaw] = [
            flaw for source in sources for flaw in source.flaws if not _concerns_only(flaw, exclude)
        ]
        already = [f"data.exclude: {name} was left out already: {why}" for source in sources
                   for name, why in source.dropped.items() if name in exclude]
        self.notes: Sequence[str] = [*(note for source in sources for note in source.notes), *already]
        self.dropped: Mapping[str, str] = {
            name: why for source in sources for name, why in source.dropped.items() if name not in exclude
        }
        dropped = {name for source in sources for name in source.dropped}
        places = [(s, i) for s, source in enumerate(sources) for i in range(len(source))]
        recorded = (getattr(source, "policies", ()) for source in sources)
        self.policies = dict.fromkeys(name for names in recorded for name in names)
        names = {self._sources[s].origin(i) for s, i in places}
        for name in exclude:
            if name not in names | dropped:
                raise DataError(f"data.exclude: there is no '{name}'.{did_you_mean(name, names | dropped)}")
        self._places = [(s, i) for s, i in places if self._sources[s].origin(i) not in exclude]
        if not self._places:
            why = "; ".join(f"{name}: {reason}" for name, reason in list(self.dropped.items())[:5])
            raise DataError(f"no episode is left to train on. Record some, or exclude fewer. {why}".rstrip())
        for source in sources:
            if abs(source.rate_hz - self.rate_hz) > 0.01 * self.rate_hz:
                raise DataError(f"sources of {self.rate_hz:g} Hz and of {source.rate_hz:g} Hz cannot be trained on "
                                "together: a policy has one step duration.")

    def __len__(self) -> int:
        return len(self._places)

    def _at(self, i: int) -> tuple[EpisodeSource, int]:
        s, inner = self._places[i]
        return self._sources[s], inner

    def length(self, i: int) -> int:
        source, inner = self._at(i)
        return source.length(inner)

    def origin(self, i: int) -> str:
        source, inner = self._at(i)
        return source.origin(inner)

    def arrays(self, i: int) -> EpisodeArrays:
        source, inner = self._at(i)
        return source.arrays(inner)

    def images(self, i: int, steps: Sequence[int] | NDArray[np.int64]) -> Images:
        source, inner = self._at(i)
        return source.images(inner, steps)


def _concerns_only(flaw: Flaw, names: Sequence[str]) -> bool:
    """True for a flaw of these episodes alone."""
    return flaw.where in names or (len(flaw.episodes) > 0 and set(flaw.episodes) <= set(names))


def require_action(config: PolicyConfig) -> None:
    """Raise ConfigError unless the configuration defines what actions mean: nothing can be read
    without."""
    if config.action is None:
        raise ConfigError(
            "action is missing: without space, frame, rotation, composition, step_duration, units and gripper nobody "
            "knows what the recorded numbers have to become. See docs/actions.md."
        )


def split(source: EpisodeSource, validation_fraction: float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Episodes to train on, and to validate on: whole recorded episodes, drawn by the seed and
    their names.

    Raises DataError when a requested side would be empty.
    """
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction = {validation_fraction}: must be 0 or more and below 1.")
    groups: dict[str, list[int]] = {}
    for i in range(len(source)):
        groups.setdefault(source.origin(i), []).append(i)
    ranked = sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    count = round(validation_fraction * len(groups))
    if validation_fraction > 0:
        count = max(count, 1)
    if len(groups) - count < 1:
        raise DataError(
            f"{len(groups)} recorded episodes cannot be split into training and validation_fraction = "
            f"{validation_fraction:g}: one side would be empty. Record more, or set validation_fraction to 0."
        )
    held = sorted(i for name in ranked[:count] for i in groups[name])
    return tuple(sorted(i for name in ranked[count:] for i in groups[name])), tuple(held)
