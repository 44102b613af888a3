"""The frames of one robot by time, and which of them a prediction sees."""

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

from robovlms_ros.core.types import ObservationError

T = TypeVar("T")


@dataclass
class HistoryFrame(Generic[T]):
    """One observation's place in time, and what has been computed from it so far (None until it
    is).

    anchor: whether it may stand in the history of a later frame; all do unless the history is
        thinned out.
    """

    stamp_ns: int
    content: T
    anchor: bool = True


@dataclass(frozen=True)
class HistoryReport:
    """have: places of the history that are filled, of `want`. held: how many of them hold an older
    frame.

    every: 1, or that only one frame in so many steps is seen. stamps_ns: of the frames in the
        places, oldest first.
    """

    have: int
    want: int
    held: int = 0
    every: int = 1
    stamps_ns: tuple[int, ...] = ()


def thinning(frame_seconds: float, step_seconds: float) -> int:
    """Every how many steps a frame is worth seeing, for a policy that spends `frame_seconds` on
    one.

    1 when it keeps up. Else so many that the frames of the history take at most half of its time:
    the newest frame, which every prediction sees besides, has the other half.
    """
    return 1 if frame_seconds <= step_seconds else math.ceil(2 * frame_seconds / step_seconds - 1e-9)


class FrameHistory(Generic[T]):
    """A buffer of frames ordered by stamp, sampled at stamp - k * step, nearest frame within a
    tolerance.

    Before the buffer reaches back far enough the window is shorter (RoboVLMs: the last min(t, W)
    features). A place
    within the covered time without a frame near it is a gap: `hold` takes the newest frame before
        it, `refuse` raises.

    Thinned out (every > 1), time is cut into cells of `every` steps, counted from stamp 0. The
    first frame of a cell is its anchor. The newest frame takes the newest place; every other place
    takes the nearest anchor (the older of two equally near ones), and is a gap when its cell has
    none. So a frame's stamp alone decides whether it is seen.
    """

    def __init__(self, window: int, step_ns: int, tolerance_ns: int, gap: str = "hold", every: int = 1):
        self.window = window
        self.step_ns = step_ns
        self.tolerance_ns = tolerance_ns
        self.gap = gap
        self.every = every
        self._frames: list[HistoryFrame[T]] = []

    def __len__(self) -> int:
        return len(self._frames)

    def clear(self) -> None:
        self._frames = []

    def thin_out(self, every: int) -> None:
        """See one frame in `every` steps from now on; 1 sees all. Forgets the frames."""
        self.every = every
        self.clear()

    def add(self, stamp_ns: int, content: T) -> HistoryFrame[T]:
        """Keep a frame and drop those that no later window can name.

        Raises ObservationError for a frame older than the newest; a frame of the same stamp
        replaces it.
        """
        if self._frames and stamp_ns < self._frames[-1].stamp_ns:
            late = (self._frames[-1].stamp_ns - stamp_ns) / 1e9
            raise ObservationError(
                f"observation stamped {stamp_ns} ns: {late:.3f} s older than the newest one. Stamps must not go back; "
                "after a jump of the clock reset the session."
            )
        if self._frames and stamp_ns == self._frames[-1].stamp_ns:
            return self._frames[-1]
        anchor = self.every == 1 or not self._frames or self._cell(stamp_ns) != self._cell(self._frames[-1].stamp_ns)
        if self._frames and not self._frames[-1].anchor:
            self._frames.pop()
        self._frames.append(HistoryFrame(stamp_ns, content, anchor))
        horizon = stamp_ns - (self.window - 1) * self.step_ns - self.tolerance_ns
        # One frame before the horizon stays: it fills the oldest place when that has a gap.
        while len(self._frames) > 1 and self._frames[1].stamp_ns < horizon:
            self._frames.pop(0)
        return self._frames[-1]

    def sample(self) -> tuple[list[HistoryFrame[T]], HistoryReport]:
        """The window that ends with the newest frame, oldest first. Raises ObservationError when
        empty or refused."""
        if not self._frames:
            raise ObservationError("no observation yet.")
        newest = self._frames[-1]
        first = self._frames[0].stamp_ns
        anchors = [frame for frame in self._frames if frame.anchor]
        chosen = []
        held = 0
        for k in reversed(range(1, self.window)):
            wanted = newest.stamp_ns - k * self.step_ns
            if wanted < first - self.tolerance_ns:
                continue
            frame = min(anchors, key=lambda f: abs(f.stamp_ns - wanted))
            if self._is_gap(wanted, frame, anchors):
                frame = max((f for f in anchors if f.stamp_ns <= wanted), key=lambda f: f.stamp_ns)
                held += 1
                if self.gap == "refuse":
                    raise ObservationError(
                        f"history: no frame within {self._reach()} of the place {k} steps back "
                        f"({k * self.step_ns / 1e9:.3f} s before the newest image). The camera skipped frames."
                    )
            chosen.append(frame)
        chosen.append(newest)
        stamps = tuple(frame.stamp_ns for frame in chosen)
        return chosen, HistoryReport(len(chosen), self.window, held, self.every, stamps)

    def _cell(self, stamp_ns: int) -> int:
        return stamp_ns // (self.every * self.step_ns)

    def _is_gap(self, wanted_ns: int, nearest: HistoryFrame[T], anchors: list[HistoryFrame[T]]) -> bool:
        if abs(nearest.stamp_ns - wanted_ns) <= self.tolerance_ns:
            return False
        return self.every == 1 or all(self._cell(frame.stamp_ns) != self._cell(wanted_ns) for frame in anchors)

    def _reach(self) -> str:
        if self.every == 1:
            return f"{self.tolerance_ns / 1e6:.0f} ms"
        return f"the cell of {self.every * self.step_ns / 1e6:.0f} ms"
