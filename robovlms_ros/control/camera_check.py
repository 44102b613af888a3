"""Faults of one camera: no images, a clock that is off, the same image while the arm moves."""

import zlib
from collections.abc import Iterator

import numpy as np

from robovlms_ros.control.faults import Fault, SafetyMonitorConfig
from robovlms_ros.core.types import NANOSECONDS, Array

CLOCK_OFF = 3
"""Images in a row with a stamp far from now: one or two are a busy machine, whose clock came
late."""


def image_digest(data: bytes | memoryview) -> int:
    """A checksum of an image's bytes as they arrived (1 MB in about 0.5 ms): equal for identical
    frames."""
    return zlib.crc32(data)


class CameraCheck:
    """The last images of one camera. Not thread safe.

    begin_ns: the first image must arrive within `max_age` from then on. arrived: True from the
    first image on.
    """

    def __init__(self, name: str, config: SafetyMonitorConfig, begin_ns: int) -> None:
        self.arrived = False
        self._name = name
        self._config = config
        self._arrived_ns = begin_ns
        self._ahead = 0.0  # s, of the last stamp before the clock
        self._off = 0  # images in a row with such a stamp, or one behind
        self._digest: int | None = None
        self._same_since_ns = 0
        self._same_from: Array | None = None  # joint positions when the bytes last changed
        self._frozen = False

    def add(self, stamp_ns: int, digest: int, positions: Array | None, now_ns: int) -> None:
        """An image arrived. positions: (J,) rad, of the arm now; None before the first."""
        self.arrived = True
        self._arrived_ns = now_ns
        self._ahead = (stamp_ns - now_ns) / NANOSECONDS
        in_time = -self._config.max_age <= self._ahead <= self._config.clock_tolerance
        self._off = 0 if in_time else self._off + 1
        if digest != self._digest or self._same_from is None:
            self._digest = digest
            self._same_since_ns = now_ns
            self._same_from = positions
            self._frozen = False

    def faults(self, positions: Array | None, now_ns: int) -> Iterator[Fault]:
        """The faults at a time, while the arm is at `positions` (J,), rad."""
        camera = f"camera {self._name}"
        max_age = self._config.max_age
        if (now_ns - self._arrived_ns) / NANOSECONDS > max_age:
            state = "stopped" if self.arrived else "sent no image yet"
            text = f"{camera} {state}: no image for more than {max_age} s (max_age). Check it."
            yield Fault(f"image_stale {self._name}", text)
            return
        if self._off >= CLOCK_OFF:
            ahead = self._ahead
            offset = f"{ahead:.3f} s ahead of" if ahead > 0 else f"{-ahead:.3f} s behind"
            text = (
                f"{camera}'s clock is {offset} the node's. Synchronise the machines (chrony, PTP), "
                "let the driver stamp with the host's clock, and set use_sim_time alike on all "
                "nodes."
            )
            yield Fault(f"camera_clock {self._name}", text)
        if self._is_frozen(positions, now_ns):
            text = (
                f"{camera} is frozen: the same bytes for {self._config.frozen_time} s or more "
                f"while a joint moved {self._config.frozen_motion} rad or more. Restart it."
            )
            yield Fault(f"image_frozen {self._name}", text)

    def _is_frozen(self, positions: Array | None, now_ns: int) -> bool:
        begin = self._same_from
        if begin is None or positions is None or begin.shape != positions.shape:
            return False
        same = (now_ns - self._same_since_ns) / NANOSECONDS
        moved = float(np.max(np.abs(positions - begin), initial=0.0))
        if same >= self._config.frozen_time and moved >= self._config.frozen_motion:
            # Until new bytes come: the arm, held, may be where it was when they stopped changing.
            self._frozen = True
        return self._frozen
