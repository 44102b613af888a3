"""Targets for controllers that take one at a time: samples of an admitted trajectory, each
reachable from the last."""

import numpy as np

from robovlms_ros.control.motion_guard import AdmittedCommand
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.trajectory import Array, Spline, advance, curve_of
from robovlms_ros.core.types import NANOSECONDS

TAIL_NS = NANOSECONDS // 5
"""Time for which the last target is repeated after a trajectory's end, so that one lost message
does not matter."""

LATE_TICKS = 2.5
"""Tick periods after which a tick counts as late: the stream then catches up within the limits."""

ON_CURVE = 1e-6  # rad


class TargetStream:
    """The targets of one arm at `rate` Hz.

    A tick in time yields the trajectory's own point. After a late tick (a busy machine, a
    controller that was not ready) the point is far ahead; the stream then moves towards it within
    the joints' speed and acceleration limits.
    """

    def __init__(self, robot: RobotSpec, rate: float) -> None:
        limits = robot.limits
        self._joints = list(
            zip(limits.velocity, limits.acceleration, limits.position_lower, limits.position_upper, strict=True)
        )
        self._period_ns = round(NANOSECONDS / rate)
        self._curve: Spline | None = None
        self._last_ns = 0
        self._last: tuple[Array, Array] | None = None
        self._on_curve = True
        self._braking = False

    def follow(self, command: AdmittedCommand, now_ns: int) -> None:
        """Take the targets from `command` from now on."""
        under_way = self._curve is not None or self._braking
        self._braking = False
        self._curve = curve_of(command, now_ns)
        if not under_way:
            positions, velocities = self._curve(np.array([now_ns]))
            self._last = (positions[0], velocities[0])
            self._last_ns = now_ns
            self._on_curve = True

    def brake(self) -> None:
        """Leave the trajectory: the next targets slow down at the acceleration limits, a period a
        tick.

        No clock enters, so that a stop is smooth where the clock jumped. Nothing is sent at rest.
        """
        self._curve = None
        self._braking = self._last is not None

    def target(self, now_ns: int) -> tuple[Array, Array] | None:
        """Positions and velocities (J,), rad and rad/s, to be sent now; None where there is nothing
        to send."""
        if self._braking:
            return self._slower(now_ns)
        if self._curve is None or self._last is None:
            return None
        if now_ns > self._curve.end_ns + TAIL_NS and self._on_curve:
            self._curve = None
            return None
        positions, velocities = self._curve(np.array([now_ns]))
        wanted = (positions[0], velocities[0])
        since_ns = now_ns - self._last_ns
        late = since_ns > LATE_TICKS * self._period_ns or since_ns < 0
        self._on_curve = self._on_curve and not late
        self._last = wanted if self._on_curve else self._catch_up(wanted, since_ns)
        self._last_ns = now_ns
        return self._last

    def _slower(self, now_ns: int) -> tuple[Array, Array] | None:
        assert self._last is not None
        positions, velocities = self._last
        if not velocities.any():
            self._braking = False
            return None
        seconds = self._period_ns / NANOSECONDS
        change = np.array([acceleration for _, acceleration, _, _ in self._joints]) * seconds
        slower = velocities - np.clip(velocities, -change, change)
        self._last = (positions + (velocities + slower) * (seconds / 2), slower)
        self._last_ns = now_ns
        return self._last

    def _catch_up(self, wanted: tuple[Array, Array], since_ns: int) -> tuple[Array, Array]:
        assert self._last is not None
        seconds = min(max(since_ns, 0), self._period_ns) / NANOSECONDS
        if seconds == 0.0:
            return self._last
        moved = [
            advance(p, v, target, slope, joint, 1.0, 1.0, seconds)
            for p, v, target, slope, joint in zip(*self._last, *wanted, self._joints, strict=True)
        ]
        positions = np.array([position for position, _ in moved])
        velocities = np.array([velocity for _, velocity in moved])
        apart = np.abs(positions - wanted[0]).max()
        self._on_curve = bool(apart <= ON_CURVE)
        return positions, velocities
