"""A model of ros2_controllers' joint_trajectory_controller: what it refuses and what it commands,
tick by tick.

Equals joint_trajectory_controller 4.x (Jazzy), which forgets the old trajectory when a new one
arrives, and its successors (6.9 and later), which blend the two and may upsample positions. It
needs NumPy alone, so that the simulated arm and the streaming benchmark share one controller.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from robovlms_ros.control.trajectory import resting_spline_velocities
from robovlms_ros.core.types import NANOSECONDS, Array, RoboVLMsError, TrajectoryCommand

FOREVER_NS = 2**63

# ros2_controllers compares the last velocity with the float epsilon.
ZERO_VELOCITY = float(np.finfo(np.float32).eps)


class TrajectoryRejected(RoboVLMsError):
    """The controller drops a message; the text is what it logs. A publisher on the topic gets
    no answer."""


@dataclass(frozen=True)
class TrajectoryPoint:
    """One trajectory_msgs/JointTrajectoryPoint, in the message's joint order; an empty field is
    absent.

    positions rad, velocities rad/s, accelerations rad/s^2.
    """

    time_from_start_ns: int
    positions: Sequence[float] | Array
    velocities: Sequence[float] | Array = ()
    accelerations: Sequence[float] | Array = ()


@dataclass(frozen=True)
class TrajectoryMessage:
    """One trajectory_msgs/JointTrajectory. stamp_ns 0: start at the next update."""

    stamp_ns: int
    joints: tuple[str, ...]
    points: tuple[TrajectoryPoint, ...]

    @classmethod
    def from_command(cls, command: TrajectoryCommand) -> "TrajectoryMessage":
        """The message that a TrajectoryCommand becomes on the wire: times rounded to whole
        nanoseconds."""
        no_accelerations: Sequence[Sequence[float]] = ((),) * len(command.times)
        accelerations = no_accelerations if command.accelerations is None else command.accelerations
        points = tuple(
            TrajectoryPoint(round(float(time) * NANOSECONDS), position, velocity, acceleration)
            for time, position, velocity, acceleration in zip(
                command.times, command.positions, command.velocities, accelerations, strict=True
            )
        )
        return cls(command.stamp_ns, tuple(command.joints), points)


@dataclass(frozen=True)
class PositionsUpsampling:
    """The parameters `positions_upsampling.*`: points of positions alone become a cubic spline, at
    rest at its end.

    policy_frequency: Hz; above 0, a message whose times are all 0 gets a point every 1 /
    policy_frequency s.
    cross_chunk_continuity: of a build with ros2_controllers' pull request 2573: a message that
    starts at the next update begins at the last command, with its velocity, instead of at rest.
    """

    policy_frequency: float = 0.0
    cross_chunk_continuity: bool = False


@dataclass(frozen=True)
class _Point:
    """A point in the controller's joint order; None where the message leaves a field empty."""

    time_ns: int
    position: Array
    velocity: Array | None
    acceleration: Array | None


@dataclass(frozen=True)
class _Segment:
    """A quintic in seconds after begin_ns, valid for begin_ns <= t < end_ns (absolute)."""

    begin_ns: int
    end_ns: int
    coefficients: Array  # (6, J), lowest power first

    def sample(self, time_ns: int) -> tuple[Array, Array]:
        """Position and velocity (J,) at an absolute time."""
        t = (time_ns - self.begin_ns) * 1e-9
        t2 = t * t
        t3 = t2 * t
        t4 = t2 * t2
        basis = np.array(((1.0, t, t2, t3, t4, t4 * t), (0.0, 1.0, 2 * t, 3 * t2, 4 * t3, 5 * t4)))
        position, velocity = basis @ self.coefficients
        return position, velocity

    def acceleration(self, time_ns: int) -> Array:
        """Acceleration (J,) at an absolute time."""
        t = (time_ns - self.begin_ns) * 1e-9
        return np.array((0.0, 0.0, 2.0, 6 * t, 12 * t * t, 20 * t**3)) @ self.coefficients


@dataclass(frozen=True)
class _Hold:
    """After the last point: its position for ever, and the velocity it names, even where that is
    not zero."""

    point: _Point
    begin_ns: int
    end_ns: int = FOREVER_NS

    def sample(self, time_ns: int) -> tuple[Array, Array]:
        velocity = self.point.velocity
        return self.point.position, np.zeros_like(self.point.position) if velocity is None else velocity

    def acceleration(self, time_ns: int) -> Array:
        acceleration = self.point.acceleration
        return np.zeros_like(self.point.position) if acceleration is None else acceleration


class TrajectoryController:
    """The position command of a joint_trajectory_controller with default tolerances (none).

    A new trajectory begins from its pre-state: the measured state at zero acceleration, or the last
    command with its acceleration. With replacement, a trajectory of two points or more is left on
    the way that it commands.

    joints: the controller's joints, in the order of `measured` and of the answers.
    interpolate_from_desired_state: the pre-state is the last command, at the time it was made.
    allow_nonzero_velocity_at_trajectory_end: off by default, as in the controller.
    allow_trajectory_replacement: blend a new trajectory with the running one (the default of the
    builds that can); false, or a build that cannot, forgets the running one. It may be changed at
    any time.
    upsampling: None where `positions_upsampling.enable` is false or does not exist.
    """

    def __init__(
        self,
        joints: Sequence[str],
        interpolate_from_desired_state: bool = False,
        allow_nonzero_velocity_at_trajectory_end: bool = False,
        *,
        allow_trajectory_replacement: bool = False,
        upsampling: PositionsUpsampling | None = None,
    ) -> None:
        self.joints = tuple(joints)
        self.interpolate_from_desired_state = interpolate_from_desired_state
        self.allow_nonzero_velocity_at_trajectory_end = allow_nonzero_velocity_at_trajectory_end
        self.allow_trajectory_replacement = allow_trajectory_replacement
        self.upsampling = upsampling
        self.reset()

    def reset(self) -> None:
        """Forget everything, as a deactivation does: the next update holds the position measured
        then."""
        self._new: tuple[tuple[_Point, ...], int] | None = None  # the newest message and its stamp
        self._points: tuple[_Point, ...] = ()  # at absolute times
        self._before: _Point | None = None
        self._segment: _Segment | _Hold | None = None
        self._time_ns = 0  # trajectory time: starts at `now`, then advances by the period
        self._made_ns = 0  # when the last command was made
        self._command: tuple[Array, Array] | None = None
        self._acceleration = np.zeros(len(self.joints))  # of the last command

    @property
    def last_command(self) -> tuple[Array, Array] | None:
        """Positions and velocities (J,) of the last update; None before the first."""
        return self._command

    def accept(self, message: TrajectoryMessage | TrajectoryCommand, now_ns: int) -> None:
        """Take up a trajectory at the next update; of several before it only the last counts.

        Raises TrajectoryRejected, with the reason, for what the controller drops; the old
        trajectory goes on then.
        """
        if isinstance(message, TrajectoryCommand):
            message = TrajectoryMessage.from_command(message)
        if self.upsampling is not None:
            message = _timed(message, self.upsampling.policy_frequency)
        self._validate(message, now_ns)
        order = [message.joints.index(name) for name in self.joints]
        self._new = tuple(_ordered(point, order) for point in message.points), message.stamp_ns

    def update(
        self, now_ns: int, period_ns: int, measured: Array, measured_velocities: Array | None = None
    ) -> tuple[Array, Array]:
        """The command of one control cycle: positions and velocities (J,), for the instant one
        period ahead.

        measured, measured_velocities: the arm's state now (J,); without velocities the controller
        has no velocity state interface.
        """
        if self._new is not None:
            points, stamp_ns = self._new
            if self.upsampling is not None:
                points = self._upsampled(points, stamp_ns, np.array(measured, np.float64))
            self._start(points, stamp_ns, now_ns, measured, measured_velocities)
            self._new = None
        elif not self._points:
            if self._command is None:
                self._command = np.array(measured, np.float64), np.zeros(len(self.joints))
            self._made_ns = now_ns
            return self._command
        else:
            self._time_ns += period_ns
        time_ns = self._time_ns + period_ns
        segment = self._segment
        if segment is None or not segment.begin_ns <= time_ns < segment.end_ns:
            segment = self._segment = self._find_segment(time_ns)
        self._command = segment.sample(time_ns)
        self._acceleration = segment.acceleration(time_ns)
        self._made_ns = now_ns
        return self._command

    def _start(
        self,
        points: tuple[_Point, ...],
        stamp_ns: int,
        now_ns: int,
        measured: Array,
        measured_velocities: Array | None,
    ) -> None:
        if self.allow_trajectory_replacement and len(self._points) > 1:
            self._points = self._blended(points, stamp_ns, now_ns)
        else:
            self._points = _shifted(points, stamp_ns or now_ns)
        at_rest = np.zeros(len(self.joints))
        if self.interpolate_from_desired_state and self._command is not None:
            self._before = _Point(self._made_ns, *self._command, self._acceleration)
        else:
            velocity = None if measured_velocities is None else np.array(measured_velocities, np.float64)
            self._before = _Point(now_ns, np.array(measured, np.float64), velocity, at_rest)
        self._segment = None
        self._time_ns = now_ns

    def _blended(
        self, points: tuple[_Point, ...], stamp_ns: int, now_ns: int
    ) -> tuple[_Point, ...]:
        """The old trajectory up to the new one's start, the state in which it is left there, and
        the new points.

        The controller measures on the old trajectory's time, of which it has played all up to the
        cycle before; a start in the past is one now. The whole is shifted so that this cycle
        repeats that one's time.
        """
        cursor_ns = self._time_ns
        start_ns = cursor_ns + max(0, stamp_ns - now_ns)
        old = [point for point in self._points if cursor_ns < point.time_ns < start_ns]
        new = _shifted(points, start_ns)
        if start_ns < new[0].time_ns:
            segment = self._find_segment(start_ns)
            old.append(_Point(start_ns, *segment.sample(start_ns), segment.acceleration(start_ns)))
        return _shifted((*old, *new), now_ns - cursor_ns)

    def _upsampled(
        self, points: tuple[_Point, ...], stamp_ns: int, measured: Array
    ) -> tuple[_Point, ...]:
        """The points with the velocities of a cubic spline, where they are positions alone."""
        assert self.upsampling is not None
        if any(point.velocity is not None or point.acceleration is not None for point in points):
            return points
        first_velocity = None
        if self.upsampling.cross_chunk_continuity and stamp_ns == 0 and points[0].time_ns > 0:
            # The controller is activated with the measured state as its last command.
            position, first_velocity = self._command or (measured, np.zeros(len(self.joints)))
            points = (_Point(0, position, None, None), *points)
        if len(points) == 1:
            return points
        times_ns = np.array([point.time_ns for point in points])
        positions = np.stack([point.position for point in points])
        velocities = resting_spline_velocities(times_ns, positions, first_velocity)
        pairs = zip(points, velocities, strict=True)
        return tuple(replace(point, velocity=velocity) for point, velocity in pairs)

    def _find_segment(self, time_ns: int) -> _Segment | _Hold:
        """The segment that contains an absolute time, by the rules of `Trajectory::sample`."""
        points = self._points
        if self._before is not None and time_ns < points[0].time_ns:
            return _interpolate(self._before, points[0])
        for first, second in pairwise(points):
            if first.time_ns <= time_ns < second.time_ns:
                return _interpolate(first, second)
        return _Hold(points[-1], points[-1].time_ns)

    def _validate(self, message: TrajectoryMessage, now_ns: int) -> None:
        if len(message.joints) != len(self.joints):
            missing = [name for name in self.joints if name not in message.joints]
            raise TrajectoryRejected(
                f"{len(message.joints)} joints on the trajectory, {len(self.joints)} controlled"
                f" (missing: {', '.join(missing) or 'none'}): send every joint of the controller."
            )
        for name in message.joints:
            if name not in self.joints:
                raise TrajectoryRejected(f"joint '{name}' is unknown: controlled are {', '.join(self.joints)}.")
        if len(set(message.joints)) != len(self.joints):
            raise TrajectoryRejected(f"a joint is named twice among {', '.join(message.joints)}: name each once.")
        if not message.points:
            raise TrajectoryRejected("no points: an empty trajectory is not a stop; send one point to hold.")
        self._validate_points(message.points)
        last = message.points[-1]
        end_ns = message.stamp_ns + last.time_from_start_ns
        if message.stamp_ns and end_ns < now_ns:
            raise TrajectoryRejected(f"the whole trajectory is past: it ended {(now_ns - end_ns) * 1e-9:.3f} s ago.")

    def _validate_points(self, points: tuple[TrajectoryPoint, ...]) -> None:
        count = len(self.joints)
        for i, point in enumerate(points):
            if i and point.time_from_start_ns <= points[i - 1].time_from_start_ns:
                raise TrajectoryRejected(f"time_from_start of point {i} is not later than that of point {i - 1}.")
            if len(point.positions) != count:
                raise TrajectoryRejected(f"point {i} has {len(point.positions)} positions for {count} joints.")
            for name, values in (("velocities", point.velocities), ("accelerations", point.accelerations)):
                if len(values) not in (0, count):
                    raise TrajectoryRejected(f"point {i} has {len(values)} {name} for {count} joints.")
        if not self.allow_nonzero_velocity_at_trajectory_end and np.any(
            np.abs(np.asarray(points[-1].velocities, np.float64)) > ZERO_VELOCITY
        ):
            raise TrajectoryRejected("the last point's velocity is not zero: end every trajectory at rest.")


def _timed(message: TrajectoryMessage, frequency: float) -> TrajectoryMessage:
    """Points of positions alone without times at the policy's frequency, Hz; 0 leaves them as they
    are."""
    points = message.points
    alone = all(
        len(p.positions) and not len(p.velocities) and not len(p.accelerations) for p in points
    )
    if frequency <= 0 or not alone or any(point.time_from_start_ns for point in points):
        return message
    step_ns = NANOSECONDS / frequency
    timed = (replace(p, time_from_start_ns=int((i + 1) * step_ns)) for i, p in enumerate(points))
    return replace(message, points=tuple(timed))


def _shifted(points: tuple[_Point, ...], by_ns: int) -> tuple[_Point, ...]:
    return tuple(replace(point, time_ns=point.time_ns + by_ns) for point in points)


def _ordered(point: TrajectoryPoint, order: list[int]) -> _Point:
    def pick(values: Sequence[float] | Array) -> Array | None:
        return np.asarray(values, np.float64)[order] if len(values) else None

    positions = np.asarray(point.positions, np.float64)[order]
    return _Point(point.time_from_start_ns, positions, pick(point.velocities), pick(point.accelerations))


def _interpolate(a: _Point, b: _Point) -> _Segment:
    """Linear, cubic or quintic, by the fields that both points have."""
    duration = (b.time_ns - a.time_ns) * 1e-9
    rise = b.position - a.position
    c = np.zeros((6, len(a.position)))
    if a.velocity is not None and b.velocity is not None:
        c[0], c[1] = a.position, a.velocity
        va = a.velocity * duration
        vb = b.velocity * duration
        if a.acceleration is not None and b.acceleration is not None:
            aa = a.acceleration * duration**2
            ab = b.acceleration * duration**2
            c[2] = 0.5 * a.acceleration
            c[3] = (20 * rise - 12 * va - 8 * vb - 3 * aa + ab) / (2 * duration**3)
            c[4] = (-30 * rise + 16 * va + 14 * vb + 3 * aa - 2 * ab) / (2 * duration**4)
            c[5] = (12 * rise - 6 * va - 6 * vb - aa + ab) / (2 * duration**5)
        else:
            c[2] = (3 * rise - 2 * va - vb) / duration**2
            c[3] = (-2 * rise + va + vb) / duration**3
    elif a.acceleration is None or b.acceleration is None:
        c[0], c[1] = a.position, rise / duration
    # Accelerations without velocities match no branch of the original, which commands zero: so do
    # the coefficients.
    return _Segment(a.time_ns, b.time_ns, c)
