"""The frames of one robot by time, and which of them a prediction sees."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from robovlms_ros.types import ObservationError

T = TypeVar("T")


@dataclass
class Frame(Generic[T]):
    """One observation's place in time, and what has been computed from it so far (None until it is)."""

    stamp_ns: int
    content: T


@dataclass(frozen=True)
class HistoryReport:
    """have: places of the history that are filled, of `want`. held: how many of them an older frame stands in for."""

    have: int
    want: int
    held: int = 0


class FrameHistory(Generic[T]):
    """A buffer of frames ordered by stamp, sampled at stamp - k * step, nearest frame within a tolerance.

    Before the buffer reaches back far enough the window is shorter (RoboVLMs: the last min(t, W) features). A place
    within the covered time without a frame near it is a gap: `hold` takes the newest frame before it, `refuse` raises.
    """

    def __init__(self, window: int, step_ns: int, tolerance_ns: int, gap: str = "hold"):
        self.window, self.step_ns, self.tolerance_ns, self.gap = window, step_ns, tolerance_ns, gap
        self._frames: list[Frame[T]] = []

    def __len__(self) -> int:
        return len(self._frames)

    def clear(self) -> None:
        self._frames = []

    def add(self, stamp_ns: int, content: T) -> Frame[T]:
        """Keep a frame and drop those that no later window can name.

        Raises ObservationError for a frame older than the newest; a frame of the same stamp replaces it.
        """
        if self._frames and stamp_ns < self._frames[-1].stamp_ns:
            late = (self._frames[-1].stamp_ns - stamp_ns) / 1e9
            raise ObservationError(
                f"observation stamped {stamp_ns} ns: {late:.3f} s older than the newest one. Stamps must not go back; "
                "after a jump of the clock reset the session."
            )
        if self._frames and stamp_ns == self._frames[-1].stamp_ns:
            return self._frames[-1]
        self._frames.append(Frame(stamp_ns, content))
        horizon = stamp_ns - (self.window - 1) * self.step_ns - self.tolerance_ns
        # One frame before the horizon stays: it stands in when the oldest place has a gap.
        while len(self._frames) > 1 and self._frames[1].stamp_ns < horizon:
            self._frames.pop(0)
        return self._frames[-1]

    def sample(self) -> tuple[list[Frame[T]], HistoryReport]:
        """The window that ends with the newest frame, oldest first. Raises ObservationError when empty or refused."""
        if not self._frames:
            raise ObservationError("no observation yet.")
        newest, first = self._frames[-1].stamp_ns, self._frames[0].stamp_ns
        chosen, held = [], 0
        for k in reversed(range(self.window)):
            wanted = newest - k * self.step_ns
            if wanted < first - self.tolerance_ns:
                continue
            frame = min(self._frames, key=lambda f: abs(f.stamp_ns - wanted))
            if abs(frame.stamp_ns - wanted) > self.tolerance_ns:
                frame = max((f for f in self._frames if f.stamp_ns <= wanted), key=lambda f: f.stamp_ns)
                held += 1
                if self.gap == "refuse":
                    raise ObservationError(
                        f"history: no frame within {self.tolerance_ns / 1e6:.0f} ms of the place {k} steps back "
                        f"({k * self.step_ns / 1e9:.3f} s before the newest image). The camera skipped frames."
                    )
            chosen.append(frame)
        return chosen, HistoryReport(len(chosen), self.window, held)
