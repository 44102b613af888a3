"""Detection of a controller that executes another motion than the commanded one.

Causes: another source of trajectories that the graph does not show (a publisher that is gone again,
another interface of the same controller), a command that the controller rejected. The controller's
reference is compared with the commanded positions of a window, not of one instant: a message on its
way, a scaled speed and clocks that differ by milliseconds leave the reference on the commanded
path.
"""

import numpy as np

from robovlms_ros.control.trajectory import Array, Stamps
from robovlms_ros.core.types import NANOSECONDS, RobotState

BEHIND_NS = NANOSECONDS // 2
AHEAD_NS = NANOSECONDS // 10
"""The window around a reference's stamp in which its position may have been commanded."""

SAMPLE_NS = NANOSECONDS // 100

LONGEST_STEP_NS = NANOSECONDS // 10
"""A longer time between two references counts as so much."""

REST = 0.001
"""rad: a reference that moves by less is at rest."""

REST_NS = NANOSECONDS
"""A foreign motion is over after so long at rest."""


def window_stamps(stamp_ns: int) -> Stamps:
    """The instants (N,) whose commanded positions a reference is compared with."""
    return np.arange(stamp_ns - BEHIND_NS, stamp_ns + AHEAD_NS + 1, SAMPLE_NS, dtype=np.int64)


class ReferenceDetector:
    """Compares a controller's reference with the commanded motion.

    error: rad, a reference further from every commanded position of the window is foreign. time: s
    of foreign references, less the time of others in between, until it counts: two senders that
    alternate are found too. found: True until the reference rests, which takes REST_NS at least.
    """

    def __init__(self, error: float, time: float) -> None:
        self._error = error
        self._time_ns = round(time * NANOSECONDS)
        self.forget()

    def forget(self) -> None:
        """Observe from the next reference on."""
        self.found = False
        self._stamp_ns: int | None = None
        self._off_ns = 0
        self._rest: RobotState | None = None

    def add(self, reference: RobotState, commanded: Array | None) -> tuple[int, float] | None:
        """The joint that is furthest from its command and its distance (rad), once, when it counts.

        commanded: (N, J) rad at `window_stamps`; None while nothing is commanded, when any
        reference is right. A stamp that does not advance is ignored; one that goes back begins the
        observation anew.
        """
        step_ns = 0 if self._stamp_ns is None else reference.stamp_ns - self._stamp_ns
        if step_ns < 0:
            self.forget()
        elif step_ns == 0 and self._stamp_ns is not None:
            return None
        self._stamp_ns = reference.stamp_ns
        if self.found:
            self._wait_for_rest(reference)
            return None
        if commanded is None:
            self._off_ns = 0
            return None
        apart = np.abs(commanded - reference.positions)  # (N, J)
        nearest = int(np.argmin(apart.max(axis=1)))
        joint = int(np.argmax(apart[nearest]))
        distance = float(apart[nearest, joint])
        counted_ns = min(max(step_ns, 0), LONGEST_STEP_NS)
        if distance <= self._error:
            self._off_ns = max(0, self._off_ns - counted_ns)
            return None
        self._off_ns += counted_ns
        if self._off_ns < self._time_ns:
            return None
        self.found = True
        self._rest = reference
        return joint, distance

    def _wait_for_rest(self, reference: RobotState) -> None:
        rest = self._rest
        if rest is None or np.abs(reference.positions - rest.positions).max() > REST:
            self._rest = reference
        elif reference.stamp_ns - rest.stamp_ns >= REST_NS:
            self.found = False
            self._off_ns = 0
