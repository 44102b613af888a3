"""What a bag's observations are kept as until their episode is known: frames on an even grid, their images by time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.types import RobotState
from robovlms_ros.evaluation.bags.reader import Bag, ClockJump, RawMessage
from robovlms_ros.training.data.episodes import Array


@dataclass(frozen=True)
class Picture:
    """An image that was seen and not kept."""

    log_ns: int
    stamp_ns: int


class WatchedBag(Bag):
    """A bag that knows which message is being looked at."""

    current: RawMessage

    def messages(self, topics: set[str] | None = None) -> Iterator[RawMessage | ClockJump]:
        for message in super().messages(topics):
            if isinstance(message, RawMessage):
                self.current = message
            yield message


@dataclass(frozen=True)
class BagFrame:
    """One observation: its stamp, the arm at that instant, where its images are."""

    stamp_ns: int
    state: RobotState
    images: dict[str, Picture]


@dataclass
class Piece:
    """Frames one step apart; chunks (n, D) and which of their steps are known, in the order of the frames."""

    instruction: str
    frames: list[BagFrame] = field(default_factory=list)
    chunks: list[tuple[Array, NDArray[np.bool_]]] = field(default_factory=list)


@dataclass
class Recorded:
    """One recorded episode. end_ns: when the next one began; None for the last."""

    origin: str
    pieces: list[Piece] = field(default_factory=list)
    end_ns: int | None = None


class Grid:
    """Takes frames at the camera's rate and puts the nearest on each place of an even grid, piece by piece."""

    def __init__(self, step_ns: int, tolerance_ns: int) -> None:
        self._step_ns, self._tolerance_ns = step_ns, tolerance_ns
        self._last: BagFrame | None = None
        self._place_ns = 0

    def restart(self) -> None:
        """What comes next begins a new piece."""
        self._last = None

    def take(self, frame: BagFrame) -> tuple[list[BagFrame], int]:
        """The frames that the new one settles, and the ns that were missing before it: above 0, it begins a piece."""
        last, self._last = self._last, frame
        if last is None:
            self._place_ns = frame.stamp_ns + self._step_ns
            return [frame], 0
        settled: list[BagFrame] = []
        while frame.stamp_ns >= self._place_ns:
            best = min((last, frame), key=lambda f: abs(f.stamp_ns - self._place_ns))
            if abs(best.stamp_ns - self._place_ns) > self._tolerance_ns:
                missing = frame.stamp_ns - last.stamp_ns
                self._place_ns = frame.stamp_ns + self._step_ns
                return [*settled, frame], missing
            settled.append(best)
            self._place_ns += self._step_ns
        return settled, 0


def numbers_of(message: Any) -> Array:
    """What a command asks for, all numbers in one row; empty for a message without any."""
    if hasattr(message, "points"):
        return np.concatenate([np.asarray(p.positions, dtype=np.float64) for p in message.points] or [np.empty(0)])
    if hasattr(message, "position"):
        return np.asarray(message.position, dtype=np.float64)
    if hasattr(message, "twist"):
        parts = (message.twist.linear, message.twist.angular)
        return np.array([getattr(part, axis) for part in parts for axis in "xyz"])
    if hasattr(message, "pose"):
        return np.array([getattr(message.pose.position, axis) for axis in "xyz"])
    return np.asarray(getattr(message, "data", ()), dtype=np.float64)
