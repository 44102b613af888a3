"""Detection of an arm that is commanded and does not move.

Causes: a protective stop, a speed scaling of zero, brakes, a controller that is inactive and keeps
its subscription. The distance from the command alone does not show them: targets that are composed
from the measured pose stay near an arm that does not move.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from robovlms_ros.core.types import NANOSECONDS, Array

LAG_SHARE = 0.5
"""Part of the observed time that a command may take to move the arm: 0.25 s of 0.5 s."""

NOISE_SHARE = 0.2
"""Part of the commanded displacement that is measured of an arm at rest (noise, brakes)."""

SUSPECT_SHARE = 0.4
"""Part of the commanded displacement that suffices for an arm that stood still before."""

MIN_SAMPLES = 4


@dataclass(frozen=True)
class JointSample:
    """Commanded and measured joints (J,), rad, at one stamp."""

    stamp_ns: int
    commanded: Array
    measured: Array


class StandstillDetector:
    """Compares commanded with measured displacement since the arm began to stand still.

    time: s that no joint is measured to move. motion: rad that a joint is commanded to move
        meanwhile,
    LAG_SHARE of `time` ago already. All joints must be at rest: one joint in contact is none.
    suspect: True from a standstill until the arm is measured to move.
    """

    def __init__(self, time: float, motion: float) -> None:
        self._time_ns = round(time * NANOSECONDS)
        self._lag_ns = round(LAG_SHARE * time * NANOSECONDS)
        self._motion = motion
        self._noise = NOISE_SHARE * motion
        self.suspect = False
        self.forget()

    def forget(self) -> None:
        """Observe from the next sample on. The suspicion stays."""
        self._begin: JointSample | None = None
        self._recent: deque[JointSample] = deque()
        self._count = 0

    def add(self, sample: JointSample) -> tuple[int, float] | None:
        """The joint that is commanded to move furthest and its displacement (rad) in a standstill.

        A stamp that does not advance is ignored; one that goes back begins the observation anew.
        """
        if self._recent and sample.stamp_ns == self._recent[-1].stamp_ns:
            return None
        if self._recent and sample.stamp_ns < self._recent[-1].stamp_ns:
            self.forget()
        begin = self._begin
        if begin is None or np.abs(sample.measured - begin.measured).max() > self._noise:
            self.suspect = self.suspect and begin is None
            self.forget()
            self._begin = begin = sample
        self._recent.append(sample)
        self._count += 1
        earliest_ns = sample.stamp_ns - self._lag_ns
        while len(self._recent) > 1 and self._recent[1].stamp_ns <= earliest_ns:
            self._recent.popleft()
        if self._count < MIN_SAMPLES or sample.stamp_ns - begin.stamp_ns < self._time_ns:
            return None
        # No motion is missing where the command came back, or where it came to the arm. A command
        # that is younger than the lag may still be followed.
        earlier = np.abs(self._recent[0].commanded - begin.commanded)
        now = np.abs(sample.commanded - begin.commanded)
        away = np.abs(sample.commanded - sample.measured)
        moved = np.minimum(np.minimum(earlier, now), away)
        joint = int(np.argmax(moved))
        if moved[joint] <= self._motion * (SUSPECT_SHARE if self.suspect else 1.0):
            return None
        self.suspect = True
        return joint, float(moved[joint])
