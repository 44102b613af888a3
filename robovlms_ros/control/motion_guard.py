"""The last check of every command of one arm: nothing reaches a publisher or an action client
without it.

Every trajectory (a chunk's, a stop's, a person's) is compared with the last *commanded* motion,
never with a measurement alone. A command that is not finite, leaves the limits or is not continuous
with the commanded motion is not sent. Controller adapters accept `AdmittedCommand` and
`AdmittedOpening` only, and this module alone creates them.
"""

import math
from dataclasses import dataclass

import numpy as np

from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.safety_gate import ARRIVAL_NS, discontinuity, malformed
from robovlms_ros.control.trajectory import Array, Spline, bounds_of, curve_of, cut, followed_by, relaxed, violations
from robovlms_ros.control.trajectory_shape import takeover_times
from robovlms_ros.core.types import NANOSECONDS, RobotState, RoboVLMsError, TrajectoryCommand

HISTORY_NS = 2 * NANOSECONDS
"""Length of the commanded motion that is kept: a measurement is compared with it at its own
stamp."""

KINK_TOLERANCE = 1.02


class CommandRejected(RoboVLMsError):
    """The motion guard rejected a command; nothing was sent."""


@dataclass(frozen=True)
class AdmittedCommand(TrajectoryCommand):
    """A trajectory that passed the motion guard."""


class AdmittedOpening(float):
    """A gripper opening, 0 closed to 1 open, that passed the motion guard."""


class MotionGuard:
    """Checks commands against the limits and against the commanded motion, which it records.

    robot: joints and limits (rad, rad/s, rad/s^2). Not thread safe; time comes in as stamps.
    """

    def __init__(self, robot: RobotSpec) -> None:
        self._robot = robot
        self._bounds = bounds_of(robot.limits, len(robot.joints))
        seconds = ARRIVAL_NS / NANOSECONDS
        self._kink = self._bounds.acceleration * (KINK_TOLERANCE * seconds)
        self._commanded: Spline | None = None

    def reset(self) -> None:
        """Forget the commanded motion: the next command must begin at rest at the measured pose."""
        self._commanded = None

    @property
    def commanded(self) -> Spline | None:
        """The commanded motion from HISTORY_NS before the last command to its end; None before the
        first command."""
        return self._commanded

    def commanded_at(self, t_ns: int) -> tuple[Array, Array] | None:
        """Commanded positions and velocities (J,) at a time; None before the first command."""
        if self._commanded is None:
            return None
        positions, velocities = self._commanded(np.array([t_ns]))
        return positions[0], velocities[0]

    def admit(self, command: TrajectoryCommand, now_ns: int, measured: RobotState | None) -> AdmittedCommand:
        """The command, ready to be sent; `record` it when it is.

        measured: the accepted pose; read only while nothing has been commanded. Raises
            CommandRejected.
        """
        reason = malformed(command, self._robot)
        if reason is not None:
            raise CommandRejected(f"the motion guard rejected a command: {reason}.")
        curve = curve_of(command, now_ns)
        before = self._reference(curve, now_ns, measured)
        future = cut(curve, now_ns)
        position, velocity = before(np.array([now_ns]))
        bounds = relaxed(self._bounds, position[0], velocity[0])
        found = violations(future, bounds, self._robot.joints)
        takeover_ns = takeover_times(command, now_ns, ARRIVAL_NS)
        found += discontinuity(curve, before, takeover_ns, self._kink)
        if found:
            texts = "; ".join(violation.text for violation in found)
            raise CommandRejected(f"the motion guard rejected a command: {texts}.")
        return AdmittedCommand(**vars(command))

    def admit_opening(self, opening: float) -> AdmittedOpening:
        """A gripper opening, ready to be sent. Raises CommandRejected unless it is a number from 0
        to 1."""
        if not math.isfinite(opening) or not 0.0 <= opening <= 1.0:
            raise CommandRejected(
                f"the motion guard rejected a gripper opening of {opening}: allowed is 0 (closed) to 1 (open)."
            )
        return AdmittedOpening(opening)

    def _reference(self, curve: Spline, now_ns: int, measured: RobotState | None) -> Spline:
        """The motion that a command must continue: the commanded one, else rest at the measured
        pose."""
        if self._commanded is not None and self._commanded.times_ns[0] <= now_ns:
            return self._commanded
        if measured is None or not np.isfinite(measured.positions).all():
            raise CommandRejected(
                "the motion guard rejected a command: nothing was commanded before, and no believed joint state says "
                "where the arm is. Check the joint states."
            )
        both = np.stack([measured.positions, measured.positions]).astype(np.float64)
        begin_ns = min(now_ns, int(curve.times_ns[0]))
        return Spline(np.array([begin_ns, begin_ns + ARRIVAL_NS]), both, np.zeros_like(both))

    def record(self, command: AdmittedCommand, now_ns: int) -> None:
        """The command counts as commanded from now on."""
        curve = curve_of(command, now_ns)
        before = self._commanded
        if before is None or before.times_ns[0] > now_ns:
            self._commanded = curve
            return
        first = int(np.searchsorted(before.times_ns, now_ns - HISTORY_NS, side="right")) - 1
        first = max(0, first)
        past = Spline(before.times_ns[first:], before.positions[first:], before.velocities[first:])
        # A command that begins later than now leaves the old motion in force up to its beginning.
        self._commanded = followed_by(past, curve)
