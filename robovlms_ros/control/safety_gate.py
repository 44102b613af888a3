"""Safety gate: every trajectory passes, is clamped and slowed, or is refused with the reason.

Each check returns a reason or none; collisions are swept by `control.collision`.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.collision import Clearance, CollisionChecker, Sweep
from robovlms_ros.control.collision_solids import CollisionModel
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.stops import rests_before
from robovlms_ros.control.tool_checks import ToolChecks
from robovlms_ros.control.trajectory import (
    SEPARATION_NS,
    TOLERANCE,
    Spline,
    Violation,
    bounds_of,
    curve_of,
    cut,
    extremes,
    followed_by,
    limit,
    relaxed,
    violations,
)
from robovlms_ros.control.trajectory_shape import bridgeable, bridged, takeover_times
from robovlms_ros.core.types import NANOSECONDS, Array, RobotState, TrajectoryCommand

ARRIVAL_NS = 5_000_000  # execution of the previous command before a message reaches the controller
STEP = 2e-4  # rad: the largest step from what was sent before that passes


def malformed(command: TrajectoryCommand, robot: RobotSpec) -> str | None:
    """Reason for a command not to be a trajectory of this robot that ends at rest."""
    shape = (len(command.times), len(robot.joints))
    if command.joints != robot.joints:
        return f"the trajectory is for {command.joints}, the robot's joints are {robot.joints}"
    if shape[0] == 0 or command.positions.shape != shape or command.velocities.shape != shape:
        return f"the trajectory has {shape[0]} times and positions of shape {command.positions.shape}, must be {shape}"
    for name in ("times", "positions", "velocities"):
        if not np.isfinite(getattr(command, name)).all():
            return f"the trajectory's {name} are not all finite"
    if command.times[0] < 0 or np.any(np.diff(np.round(command.times * NANOSECONDS)) < SEPARATION_NS // 2):
        return "the trajectory's times do not strictly increase from 0"
    if np.any(command.velocities[-1] != 0.0):
        return "the trajectory does not end at rest"
    return None


def stale(measured: RobotState, image_stamp_ns: int | None, now_ns: int, robot: RobotSpec) -> str | None:
    """Reason for the measurements behind a command to be unusable: not finite, too old, or ahead of
    the clock."""
    if measured.positions.shape != (len(robot.joints),) or not np.isfinite(measured.positions).all():
        return f"the measured positions are not {len(robot.joints)} finite numbers: {measured.positions.tolist()}"
    behind = (("joint states", measured.stamp_ns, "max_age"), ("image", image_stamp_ns, "max_latency"))
    for name, stamp, oldest in behind:
        age = 0.0 if stamp is None else (now_ns - stamp) / NANOSECONDS
        limit = oldest if age > 0 else "max_age"
        if abs(age) > getattr(robot, limit):
            how = f"{age:.3f} s old" if age > 0 else f"{-age:.3f} s ahead of the clock"
            return f"the {name} behind the trajectory: {how}, allowed is {limit} = {getattr(robot, limit)} s"
    return None


def jump(curve: Spline, before: Spline, measured: RobotState, now_ns: int, robot: RobotSpec) -> str | None:
    """The reason to refuse a curve whose point for now is too far from the arm; None for none.

    before: the commanded motion. A measurement is old: the arm is compared with the command at the
    measurement's own stamp, and its distance from it is assumed to last until now.
    """
    (now, then), _ = before(np.array([now_ns, measured.stamp_ns]))
    arm = measured.positions + (now - then)
    apart = np.abs(curve(np.array([now_ns]))[0][0] - arm)
    joint = int(np.argmax(apart))
    if apart[joint] <= robot.max_start_jump:
        return None
    return (
        f"{robot.joints[joint]} would start {apart[joint]:.3f} rad from its measured {measured.positions[joint]:.3f} "
        f"rad, allowed is max_start_jump = {robot.max_start_jump} rad"
    )


def discontinuity(curve: Spline, before: Spline, times_ns: NDArray[np.int64], kink: Array) -> list[Violation]:
    """Breaks of a curve's continuity with the last command, at the times between which the
    controller takes it over.

    kink: (J,) rad/s, the change of velocity that passes.
    """
    (positions, velocities), (sent, sent_velocities) = curve(times_ns), before(times_ns)
    step = np.abs(positions - sent).max()
    change = np.abs(velocities - sent_velocities)
    if step <= STEP and np.all(change <= kink):
        return []
    text = f"it starts {step:.4f} rad and {change.max():.3f} rad/s off the commanded motion"
    return [Violation("continuity", text, np.inf)]


FIRST_SPEED_SCALING = 0.05  # where the ramp begins, so that the first chunk already moves
REST_TIME = 0.3  # s, of a stop before a contact where there is room for it
PACES = 4  # attempts at a tool speed within its limit, each slower
# Noise in a chunk, or the ramp: slowed down, but no sign of a bad policy.
MILD = ("acceleration", "speed_scaling")


@dataclass(frozen=True)
class Verdict:
    """pass, clamp or refuse; the reason; the command to send, None when refused.

    deactivate: the policy should be deactivated. clearances: the nearest bodies along the command,
    to the world and of the robot itself; empty without a check.
    """

    kind: Literal["pass", "clamp", "refuse"]
    reason: str
    command: TrajectoryCommand | None
    deactivate: bool = False
    clearances: tuple[Clearance, ...] = ()


class SafetyGate:
    """One arm's gate. It keeps its last admitted motion, and counts clamps and refusals in a row.

    kinematics: checks the tool's workspace and speed; None leaves those two unchecked.
    collision: the solids of robot and world; None leaves collisions unchecked.
    speed_scaling: the part of the speed limits in use after the ramp, above 0 to 1.
    speed_scaling_ramp: s after activation until it is. Both may be set at any time.
    probing: True keeps the speed scaling where the ramp begins, for an arm that did not move when
    it was commanded; the ramp begins when it ends.
    ramp_began_ns: None before the first command.
    """

    def __init__(
        self,
        robot: RobotSpec,
        kinematics: Kinematics | None = None,
        collision: CollisionModel | None = None,
    ) -> None:
        self.robot = robot
        self._collision = None if collision is None else CollisionChecker(collision)
        self.speed_scaling = robot.gate.speed_scaling
        self.speed_scaling_ramp = robot.gate.speed_scaling_ramp
        self._bounds = bounds_of(robot.limits, len(robot.joints))
        self._probing = False
        self._tool = ToolChecks(robot, kinematics)
        self._kink = self._bounds.acceleration * (1.01 * ARRIVAL_NS / NANOSECONDS)
        self.reset()

    def reset(self) -> None:
        """A new episode: forget the commanded motion, the counts and the ramp."""
        self.reset_counts()
        self.forget_motion()

    def reset_counts(self) -> None:
        """Activation: nothing is counted, and the speed scaling ramps up again."""
        self.clamps = 0
        self.refusals = 0
        self._refusing_since_ns = 0
        self._refused_ns: tuple[int, ...] = ()
        self.ramp_began_ns: int | None = None

    @property
    def counts(self) -> tuple[int, int, int, tuple[int, ...]]:
        """Clamps and refusals in a row, the time of the first of these refusals, and the times of
        all within the window (ns): to be set back for a second try."""
        return self.clamps, self.refusals, self._refusing_since_ns, self._refused_ns

    @counts.setter
    def counts(self, counts: tuple[int, int, int, tuple[int, ...]]) -> None:
        self.clamps, self.refusals, self._refusing_since_ns, self._refused_ns = counts

    @property
    def probing(self) -> bool:
        """See the class's docstring."""
        return self._probing

    @probing.setter
    def probing(self, probing: bool) -> None:
        if self._probing and not probing:
            self.ramp_began_ns = None
        self._probing = probing

    def forget_motion(self) -> None:
        """The next command starts at the measured state. Counts and ramp stay."""
        self._commanded: Spline | None = None

    def resume(self, commanded: Spline | None) -> None:
        """The motion that the next command continues, as the motion guard recorded it; None for
        none."""
        self._commanded = commanded

    def speed_scaling_at(self, t_ns: int) -> float:
        """The part of the speed limits that may be used at a time: a ramp after activation."""
        if self._probing:
            return self.speed_scaling * FIRST_SPEED_SCALING
        ramp = self.speed_scaling_ramp
        began = self.ramp_began_ns
        if ramp == 0:
            return self.speed_scaling
        share = 0.0 if began is None else (t_ns - began) / (ramp * NANOSECONDS)
        return self.speed_scaling * min(1.0, max(FIRST_SPEED_SCALING, share))

    def check(
        self,
        command: TrajectoryCommand,
        measured: RobotState,
        now_ns: int,
        image_stamp_ns: int | None,
        arrival_ns: int = ARRIVAL_NS,
    ) -> Verdict:
        """The verdict on a command at a time. image_stamp_ns: the observation behind it; None for
        none.

        arrival_ns: the time that the controller goes on with the previous command, computing time
        included; a clamped command leaves it untouched.

        A command that passes or is clamped counts as sent. Accelerations are left out of what is
        sent: the controller then interpolates the very cubic curve that was checked.
        """
        if self.ramp_began_ns is None or now_ns < self.ramp_began_ns:
            self.ramp_began_ns = now_ns
        reason = malformed(command, self.robot) or stale(measured, image_stamp_ns, now_ns, self.robot)
        if reason is not None:
            return self.refuse(reason, now_ns)
        before = self._before(measured, now_ns)
        curve = _from_now(curve_of(command, now_ns), before, now_ns)
        if curve is None:
            reason = "the trajectory is wholly past: the controller would drop it. Inference is too slow."
            return self.refuse(reason, now_ns)
        future = cut(curve, now_ns + arrival_ns)
        path = self._tool.path(future)
        reason = jump(curve, before, measured, now_ns, self.robot) or self._tool.outside(path, measured)
        if reason is not None:
            return self.refuse(reason, now_ns)
        # From now on, not from the arrival on: a command may begin in between.
        faults = self._faults(cut(curve, now_ns), before) + self._tool.too_fast(path)
        takeover_ns = takeover_times(command, now_ns, arrival_ns)
        faults += discontinuity(curve, before, takeover_ns, self._kink)
        slowed = self._above_speed_scaling(future)
        if not faults and not slowed:
            sweep = self.sweep(curve, now_ns)
            if sweep.contact is not None:
                return self._rest_before(command, curve, before, now_ns, arrival_ns, sweep, [])
            self.clamps = self.refusals = 0
            return self._let("pass", "", command, curve, sweep)
        reason = self._gives_up(faults)
        if reason is not None:
            return self.refuse(reason, now_ns)
        speed = self._tool.speed_ratio(path)
        return self._clamp(command, future, before, now_ns, arrival_ns, faults + slowed, speed)

    def sweep(self, curve: Spline, now_ns: int, share: float = 1.0) -> Sweep:
        """The first contact and the clearances of a curve from now on; none without a check.

        share: the part of the margins that is kept.
        """
        if self._collision is None:
            return Sweep(None, None, None)
        return self._collision.sweep(curve, now_ns, share)

    def _rest_before(
        self,
        command: TrajectoryCommand,
        curve: Spline,
        before: Spline,
        now_ns: int,
        arrival_ns: int,
        sweep: Sweep,
        faults: list[Violation],
    ) -> Verdict:
        """The curve up to a rest before its contact, or a refusal.

        faults: for which it was clamped already.
        """
        assert sweep.contact is not None
        collision = Violation("collision", sweep.contact.text(now_ns), np.inf)
        counted = any(fault.kind not in MILD for fault in faults)
        reason = self._gives_up([collision], counted)
        if reason is not None:
            return self.refuse(reason, now_ns)
        latest_ns = sweep.contact.free_until_ns
        replaces = command.shape == "replacement"
        bounds = bridgeable(self._bounds) if replaces else self._bounds
        for rest in rests_before(curve, now_ns + arrival_ns, latest_ns, REST_TIME, bounds):
            if replaces:
                rest = bridged(rest, now_ns, arrival_ns)
            if self._faults(cut(rest, now_ns), before) or self._tool.outside(self._tool.path(rest)):
                continue
            swept = self.sweep(rest, now_ns)
            if swept.contact is None:
                self.refusals = 0
                return self._let("clamp", _texts([collision, *faults]), command, rest, swept)
        return self.refuse(f"{collision.text}; no stop within the limits prevents it", now_ns)

    def _gives_up(self, faults: list[Violation], counted: bool = False) -> str | None:
        """The reason to refuse faults instead of clamping them; counts the clamps.

        counted: this command's clamp is among them.
        """
        gate = self.robot.gate
        for fault in faults:
            if fault.kind == "velocity" and fault.ratio > gate.max_excess:
                return f"{fault.text}: more than {gate.max_excess:g} times as much"
        if faults and not gate.clamp:
            return _texts(faults)
        if not counted and any(fault.kind not in MILD for fault in faults):
            self.clamps += 1
        if self.clamps > gate.max_clamps:
            return f"{self.clamps} chunks in a row had to be clamped; the last: {_texts(faults)}"
        return None

    def _clamp(
        self,
        command: TrajectoryCommand,
        future: Spline,
        before: Spline,
        now_ns: int,
        arrival_ns: int,
        faults: list[Violation],
        tool: float,
    ) -> Verdict:
        """tool: the tool's speed over its limit."""
        position, velocity = before(future.times_ns[:1])
        pace = 1.0 / max(1.0, tool)
        replaces = command.shape == "replacement"
        bounds = bridgeable(self._bounds) if replaces else self._bounds
        for _ in range(PACES):
            limited = limit(future, position[0], velocity[0], bounds, self.speed_scaling_at, pace)
            if replaces:
                whole = followed_by(cut(before, now_ns), limited)
                limited = bridged(whole, now_ns, int(future.times_ns[0]) - now_ns)
            path = self._tool.path(limited)
            left = self._faults(limited, before) + self._tool.too_fast(path)
            # Joints are bounded one by one; together they may still move the tool too fast.
            if not any(fault.kind == "eef_speed" for fault in left):
                break
            pace *= 0.75
        outside = self._tool.outside(path)
        if left or outside:
            return self.refuse(f"{_texts(faults)}; clamping does not help: {outside or _texts(left)}", now_ns)
        curve = followed_by(cut(before, now_ns), limited)
        sweep = self.sweep(curve, now_ns)
        if sweep.contact is not None:
            return self._rest_before(command, curve, before, now_ns, arrival_ns, sweep, faults)
        self.refusals = 0
        return self._let("clamp", _texts(faults), command, curve, sweep)

    def _let(
        self,
        kind: Literal["pass", "clamp"],
        reason: str,
        command: TrajectoryCommand,
        curve: Spline,
        sweep: Sweep,
    ) -> Verdict:
        self._commanded = curve
        sent = replace(
            command,
            stamp_ns=int(curve.times_ns[0]),
            times=(curve.times_ns - curve.times_ns[0]) / NANOSECONDS,
            positions=curve.positions,
            velocities=curve.velocities,
            accelerations=None,
        )
        return Verdict(kind, reason, sent, clearances=sweep.clearances)

    def refuse(self, reason: str, now_ns: int) -> Verdict:
        """Count a refusal; also for failures before a command exists (planning, scheduling).

        Deactivation is requested after `max_refusals`, in a row or within `refusal_window`, that
        last `refusal_time` or longer.
        """
        if self.refusals == 0 or now_ns < self._refusing_since_ns:
            self._refusing_since_ns = now_ns
        self.refusals += 1
        gate = self.robot.gate
        window = max(gate.refusal_window, gate.refusal_time) if gate.refusal_window > 0 else 0.0
        oldest_ns = now_ns - round(window * NANOSECONDS)
        recent = [t for t in self._refused_ns if oldest_ns <= t <= now_ns]
        self._refused_ns = (*recent, now_ns)
        count = len(self._refused_ns)
        give_up = True
        if self._is_long(self.refusals, self._refusing_since_ns, now_ns):
            reason = f"{reason} ({self.refusals} refusals in a row: deactivating)"
        elif window > 0.0 and self._is_long(count, self._refused_ns[0], now_ns):
            reason = f"{reason} ({count} refusals within {window:g} s: deactivating)"
        else:
            give_up = False
        return Verdict("refuse", reason, None, give_up)

    def _is_long(self, count: int, since_ns: int, now_ns: int) -> bool:
        """True for so many refusals over so long that the policy must be deactivated."""
        gate = self.robot.gate
        lasted = (now_ns - since_ns) / NANOSECONDS
        return count >= gate.max_refusals and lasted >= gate.refusal_time

    def _before(self, measured: RobotState, now_ns: int) -> Spline:
        """The motion that the controller executes now: the commanded one, or rest at the measured
        pose."""
        if self._commanded is None or now_ns < self._commanded.times_ns[0]:
            both = np.stack([measured.positions, measured.positions])
            return Spline(np.array([now_ns, now_ns + ARRIVAL_NS]), both, np.zeros_like(both))
        return self._commanded

    def _faults(self, future: Spline, before: Spline) -> list[Violation]:
        """Breaks of the full limits. Where the arm already is outside them, or faster, they give
        way just so far."""
        position, velocity = before(future.times_ns[:1])
        bounds = relaxed(self._bounds, position[0], velocity[0])
        return violations(future, bounds, self.robot.joints)

    def _above_speed_scaling(self, future: Spline) -> list[Violation]:
        """A violation where the present speed scaling is too small for the curve."""
        if self.speed_scaling_at(int(future.times_ns[0])) >= 1.0:
            return []
        share = np.array([self.speed_scaling_at(int(t)) for t in future.times_ns[:-1]])
        ratio = np.max(extremes(future).speed / self._bounds.velocity, axis=1) / share
        worst = int(np.argmax(ratio))
        if ratio[worst] <= 1 + TOLERANCE:
            return []
        asked = f"{ratio[worst] * share[worst]:.0%} of a speed limit asked"
        text = f"{asked}, the speed scaling is {share[worst]:.0%}"
        return [Violation("speed_scaling", text, float(ratio[worst]))]


def _texts(faults: list[Violation]) -> str:
    return "; ".join(fault.text for fault in faults)


def _from_now(curve: Spline, before: Spline, now_ns: int) -> Spline | None:
    """The curve with a point at or before now, so that the controller never starts from its own
    state.

    A curve that begins later is led in from what was sent before. None when it ends before it could
    arrive.
    """
    if curve.end_ns <= now_ns + ARRIVAL_NS:
        return None
    if curve.times_ns[0] <= now_ns:
        return curve
    # A millisecond before a curve that begins just now: nearer points would coincide.
    begin_ns = np.array([min(now_ns, int(curve.times_ns[0]) - 1_000_000)])
    return followed_by(Spline(begin_ns, *before(begin_ns)), curve)
