"""Faults of one controller: absent, commanded by others too, away from its command, or executing
another motion than the commanded one.

Causes of the last: another source of trajectories that the graph does not show (a publisher that is
gone again, another interface of the same controller), a command that the controller rejected. The
controller's reference is compared with the commanded positions of a window, not of one instant: a
message on its way, a scaled speed and clocks that differ by milliseconds leave the reference on the
commanded path.
"""

import math
from collections.abc import Iterator

import numpy as np

from robovlms_ros.control.faults import Fault, SafetyMonitorConfig
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

REMEMBERED_NS = 10 * NANOSECONDS
"""Other commanders are named for so long after they were last seen."""

CONTROLLER_REFERENCE = "controller_reference"


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


class ControllerCheck:
    """The last reports about one controller. Not thread safe.

    absence: the reason why no controller receives commands, empty where one does.
    """

    def __init__(self, config: SafetyMonitorConfig) -> None:
        self.absence = ""
        self._config = config
        self._name = ""
        self._others: tuple[str, ...] = ()
        self._seen: tuple[str, ...] = ()  # the last that were there
        self._seen_ns = 0
        self._reference = ReferenceDetector(
            config.reference_error or math.inf, config.reference_time
        )
        self.restart()

    def restart(self) -> None:
        """Forget the arm's motion; the controller and other commanders stay."""
        self._joint = ""
        self._error = 0.0
        self._off_since_ns: int | None = None
        self._foreign_motion = ""
        self._reference.forget()

    def commanders(self, name: str, others: tuple[str, ...], now_ns: int) -> None:
        """Nodes beside this one that command the controller. name: the topic or action."""
        self._name = name
        self._others = others
        if others:
            self._seen = others
            self._seen_ns = now_ns

    def following(self, joint: str, error: float, now_ns: int) -> None:
        """The joint furthest from its command, rad."""
        self._joint = joint
        self._error = abs(error)
        if self._error <= self._config.following_error:
            self._off_since_ns = None
        elif self._off_since_ns is None:
            self._off_since_ns = now_ns

    def reference(
        self,
        reference: RobotState | None,
        commanded: Array | None,
        joints: tuple[str, ...],
        now_ns: int,
    ) -> None:
        """The set point that the controller executes; None where it is not reported.

        commanded: (N, J) rad at its `window_stamps`; None while nothing is commanded.
        """
        if reference is None:
            self._reference.forget()
        else:
            found = self._reference.add(reference, commanded)
            if found is not None:
                joint, distance = found
                self._foreign_motion = (
                    "the controller executes another motion than commanded: its reference of "
                    f"{joints[joint]} is {distance:.3f} rad from the command ({self._name}); "
                    f"{self._cause(now_ns)}"
                )
        if not self._reference.found:
            self._foreign_motion = ""

    def _cause(self, now_ns: int) -> str:
        recent = 0 <= now_ns - self._seen_ns <= REMEMBERED_NS
        names = self._others or (self._seen if recent else ())
        if names:
            return f"{', '.join(names)} also commands it or did so"
        return "the graph shows no other sender; it may have rejected a command"

    def faults(self, now_ns: int) -> Iterator[Fault]:
        """The faults at a time."""
        off_ns = 0 if self._off_since_ns is None else now_ns - self._off_since_ns
        if self.absence:
            yield Fault("controller_absent", self.absence, "cease_commands")
        elif self._others:
            text = (
                f"{', '.join(self._others)} also commands {self._name}: two that command one "
                "arm make it jump. Stop one of them."
            )
            yield Fault("controller_shared", text)
        elif off_ns > self._config.following_time * NANOSECONDS:
            text = (
                f"the controller does not follow: {self._joint} is {self._error:.3f} rad from "
                f"its command, allowed {self._config.following_error} rad. Is the arm stopped, or "
                "in collision?"
            )
            yield Fault("controller_not_following", text)
        if self._foreign_motion:
            # A stop along the commanded motion would begin where the controller is not.
            yield Fault(CONTROLLER_REFERENCE, self._foreign_motion, "cease_commands")
