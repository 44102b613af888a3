"""Images of several cameras put together into one observation, by stamp."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.types import NANOSECONDS

KEEP = 16


@dataclass(frozen=True, eq=False)
class SyncedFrame:
    """One camera's image: (H, W, 3) uint8 RGB and when it was taken."""

    stamp_ns: int
    image: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FrameSet:
    """One image of every camera; `stamp_ns` is the reference camera's."""

    stamp_ns: int
    images: dict[str, NDArray[np.uint8]]


class FrameSync:
    """Pairs each image of the reference camera (the first) with the other cameras' nearest in time.

    A set is complete as soon as every other camera has an image within `tolerance` seconds of the
    reference's. A reference image that a camera has passed without one is dropped. Sets come out
    once each, in time's order; what comes out depends on the order of arrival only where several
    images lie within the tolerance. Not thread-safe.
    """

    def __init__(self, cameras: tuple[str, ...], tolerance: float) -> None:
        self._reference = cameras[0]
        self._tolerance_ns = int(tolerance * NANOSECONDS)
        self._frames: dict[str, deque[SyncedFrame]] = {name: deque(maxlen=KEEP) for name in cameras}
        self._last: dict[str, int] = {}
        self.dropped = 0

    def clear(self) -> None:
        """Forget every image, as after a reset or a clock jump."""
        for frames in self._frames.values():
            frames.clear()
        self._last.clear()

    def last_stamp(self, camera: str) -> int | None:
        """Stamp of the camera's newest image, ns; None before the first."""
        return self._last.get(camera)

    def add(self, camera: str, frame: SyncedFrame) -> list[FrameSet]:
        """Take one image; returns the sets that it completes. An image whose stamp does not advance
        is ignored."""
        if frame.stamp_ns <= self._last.get(camera, -1):
            return []
        self._last[camera] = frame.stamp_ns
        self._frames[camera].append(frame)
        others = [name for name in self._frames if name != self._reference]
        complete = []
        for reference in list(self._frames[self._reference]):
            partners = {name: self._partner(name, reference.stamp_ns) for name in others}
            if any(self._passed(name, reference.stamp_ns) for name, partner in partners.items() if partner is None):
                self._frames[self._reference].remove(reference)
                self.dropped += 1
            elif None not in partners.values():
                images = {name: partner.image for name, partner in partners.items() if partner is not None}
                complete.append(FrameSet(reference.stamp_ns, {self._reference: reference.image, **images}))
                self._forget_until(reference.stamp_ns)
        return complete

    def _partner(self, camera: str, stamp_ns: int) -> SyncedFrame | None:
        near = [f for f in self._frames[camera] if abs(f.stamp_ns - stamp_ns) <= self._tolerance_ns]
        return min(near, key=lambda f: abs(f.stamp_ns - stamp_ns), default=None)

    def _passed(self, camera: str, stamp_ns: int) -> bool:
        frames = self._frames[camera]
        return bool(frames) and frames[-1].stamp_ns > stamp_ns + self._tolerance_ns

    def _forget_until(self, stamp_ns: int) -> None:
        """Drop the reference images up to `stamp_ns`: they are used or superseded."""
        frames = self._frames[self._reference]
        while frames and frames[0].stamp_ns <= stamp_ns:
            frames.popleft()
