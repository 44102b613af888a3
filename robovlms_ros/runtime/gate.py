"""The last thing before a controller: every trajectory passes, is clamped and slowed, or is refused with the reason.

Refused: values that are not finite, malformed or wholly past trajectories, a controller joint missing, old images or
joint states, a jump from the measured pose, the tool leaving the workspace, a speed far above its limit, too many
clamps. Clamped: positions, speeds, accelerations, tool speed, and a jump from what was sent before. What leaves is
finite, within limits, strictly increasing in time, at rest at its end, and continuous with what left before.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.runtime.kinematics import Kinematics
from robovlms_ros.runtime.limiter import limit
from robovlms_ros.runtime.limits import JointBounds, cut, joined, violations
from robovlms_ros.runtime.robot import RobotSpec
from robovlms_ros.runtime.spline import Spline
from robovlms_ros.types import NANOSECONDS, RobotState, TrajectoryCommand

Array = NDArray[np.float64]

ARRIVAL_NS = 5_000_000  # what the controller will have executed before a message reaches it
STEP, KINK = 1e-4, 1e-2  # rad, rad/s: the largest differences from what was sent before that pass
WORKSPACE_TOLERANCE = 1e-3  # m
EEF_SPEED_TOLERANCE = 0.05
FIRST_AUTHORITY = 0.05  # where the ramp begins, so that the first chunk already moves
SAMPLE_NS = 25_000_000  # between checks of the tool's position and speed


@dataclass(frozen=True)
class Verdict:
    """pass, clamp or refuse; why; the command to send (None when refused); whether to deactivate the policy."""

    kind: Literal["pass", "clamp", "refuse"]
    reason: str
    command: TrajectoryCommand | None
    deactivate: bool = False


class SafetyGate:
    """One arm's gate. It remembers what it let through, and counts clamps and refusals in a row.

    kinematics: checks the tool's workspace and speed; None leaves those two unchecked.
    """

    def __init__(self, robot: RobotSpec, kinematics: Kinematics | None = None) -> None:
        self.robot = robot
        self._kinematics = kinematics
        limits = robot.limits
        self._bounds = JointBounds(
            robot.lower(), robot.upper(), np.array(limits.velocity), np.array(limits.acceleration)
        )
        self.authority = robot.gate.authority
        self.reset()

    def reset(self) -> None:
        """Activation, or a new episode: nothing was sent, nothing counted, and the authority ramps up again."""
        self.clamps = 0
        self.refusals = 0
        self._sent: Spline | None = None
        self._began_ns: int | None = None

    def sent(self, command: TrajectoryCommand) -> None:
        """A command that left without a check (a stop): what comes next continues it."""
        self._sent = _curve(command)

    def authority_at(self, t_ns: int) -> float:
        """The part of the speed limits that may be used at a time: a ramp after activation."""
        ramp, began = self.robot.gate.authority_ramp, self._began_ns
        share = 1.0 if ramp == 0 or began is None else (t_ns - began) / (ramp * NANOSECONDS)
        return self.authority * min(1.0, max(FIRST_AUTHORITY, share))

    def check(
        self, command: TrajectoryCommand, measured: RobotState, now_ns: int, image_stamp_ns: int | None
    ) -> Verdict:
        """What happens to a command at a time. image_stamp_ns: the observation behind it; None for none.

        A command that passes or is clamped counts as sent. Accelerations are left out of what is sent: the controller
        then interpolates the very cubic curve that was checked.
        """
        if self._began_ns is None or now_ns < self._began_ns:
            self._began_ns = now_ns
        reason = self._unusable(command, measured, now_ns, image_stamp_ns)
        if reason is not None:
            return self.refuse(reason)
        before = self._before(measured, now_ns)
        curve = _from_now(_curve(command, now_ns), before, now_ns)
        if curve is None:
            return self.refuse("the trajectory is wholly past: the controller would drop it. Inference is too slow.")
        splice_ns = int(curve.times_ns[np.searchsorted(curve.times_ns, now_ns + ARRIVAL_NS)])
        reason = self._jump(curve, measured, now_ns) or self._leaves_workspace(cut(curve, splice_ns), measured)
        if reason is not None:
            return self.refuse(reason)
        return self._decide(command, curve, before, now_ns, splice_ns)

    def _decide(
        self, command: TrajectoryCommand, curve: Spline, before: Spline, now_ns: int, splice_ns: int
    ) -> Verdict:
        """Pass, clamp or refuse a curve whose motion from the splice on may still be changed."""
        future = cut(curve, splice_ns)
        start, start_velocity = (values[0] for values in before(np.array([splice_ns])))
        faults, ratio, harmless = self._faults(future, start, start_velocity)
        faults += _discontinuity(curve, before, np.array([now_ns, splice_ns]))
        if ratio > self.robot.gate.max_excess:
            return self.refuse(f"{faults[0]}: more than {self.robot.gate.max_excess:g} times as much")
        slow = self._above_authority(future)
        if not faults and slow is None:
            self.clamps = self.refusals = 0
            return self._let("pass", "", command, curve)
        reason = "; ".join(faults) or str(slow)
        if faults and not self.robot.gate.clamp:
            return self.refuse(reason)
        if faults:
            self.clamps += 1
        if self.clamps > self.robot.gate.max_clamps:
            return self.refuse(f"{self.clamps} chunks in a row had to be clamped; the last: {reason}")
        return self._clamp(command, future, before, now_ns, reason)

    def _clamp(self, command: TrajectoryCommand, future: Spline, before: Spline, now_ns: int, reason: str) -> Verdict:
        position, velocity = before(future.times_ns[:1])
        start = position[0], velocity[0]
        pace = min(1.0, self.robot.limits.eef_speed / max(self._eef_speed(future), 1e-9))
        limited = limit(future, *start, self._bounds, self.authority_at, pace)
        left, _ = self._faults(limited, *start)
        outside = self._leaves_workspace(limited, None)
        if left or outside:
            return self.refuse(f"{reason}; clamping does not help: {'; '.join(left) or outside}")
        self.refusals = 0
        return self._let("clamp", reason, command, joined(cut(before, now_ns), limited))

    def _let(self, kind: Literal["pass", "clamp"], reason: str, command: TrajectoryCommand, curve: Spline) -> Verdict:
        self._sent = curve
        times = (curve.times_ns - curve.times_ns[0]) / NANOSECONDS
        out = replace(
            command,
            stamp_ns=int(curve.times_ns[0]),
            times=times,
            positions=curve.positions,
            velocities=curve.velocities,
            accelerations=None,
        )
        return Verdict(kind, reason, out)

    def refuse(self, reason: str) -> Verdict:
        """Count a refusal; also for what goes wrong before a command exists (planning, scheduling)."""
        self.refusals += 1
        give_up = self.refusals >= self.robot.gate.max_refusals
        if give_up:
            reason = f"{reason} ({self.refusals} refusals in a row: deactivating)"
        return Verdict("refuse", reason, None, give_up)

    def _unusable(
        self, command: TrajectoryCommand, measured: RobotState, now_ns: int, image_stamp_ns: int | None
    ) -> str | None:
        """Why a command cannot even be looked at, or what it rests on is too old."""
        robot, count, shape = self.robot, len(command.times), (len(command.times), len(self.robot.joints))
        if command.joints != robot.joints:
            return f"the trajectory is for {command.joints}, the robot's joints are {robot.joints}"
        if count == 0 or command.positions.shape != shape or command.velocities.shape != shape:
            return f"the trajectory has {count} times and positions of shape {command.positions.shape}, must be {shape}"
        for name, values in (
            ("times", command.times),
            ("positions", command.positions),
            ("velocities", command.velocities),
        ):
            if not np.isfinite(values).all():
                return f"the trajectory's {name} are not all finite"
        if command.times[0] < 0 or np.any(np.diff(command.times) < 1e-6):
            return "the trajectory's times do not strictly increase from 0"
        if np.any(command.velocities[-1] != 0.0):
            return "the trajectory does not end at rest"
        if measured.positions.shape != (shape[1],) or not np.isfinite(measured.positions).all():
            return f"the measured joint positions are not {shape[1]} finite numbers: {measured.positions.tolist()}"
        for name, stamp in (("joint states", measured.stamp_ns), ("image", image_stamp_ns)):
            age = 0.0 if stamp is None else (now_ns - stamp) / NANOSECONDS
            if abs(age) > robot.max_age:
                how = f"{age:.3f} s old" if age > 0 else f"{-age:.3f} s ahead of the clock"
                return f"the {name} behind the trajectory: {how}, allowed is max_age = {robot.max_age} s"
        return None

    def _before(self, measured: RobotState, now_ns: int) -> Spline:
        """What the controller executes now: the last curve sent, or a hold where the arm is."""
        if self._sent is None or now_ns < self._sent.times_ns[0]:
            both = np.stack([measured.positions, measured.positions])
            return Spline(np.array([now_ns, now_ns + ARRIVAL_NS]), both, np.zeros_like(both))
        return self._sent

    def _jump(self, curve: Spline, measured: RobotState, now_ns: int) -> str | None:
        """The first point still to be executed, against the measured pose."""
        first = curve(np.array([now_ns]))[0][0]
        apart = np.abs(first - measured.positions)
        joint = int(np.argmax(apart))
        if apart[joint] <= self.robot.max_start_jump:
            return None
        return (
            f"{self.robot.joints[joint]} would start {apart[joint]:.3f} rad from its measured "
            f"{measured.positions[joint]:.3f} rad, allowed is max_start_jump = {self.robot.max_start_jump} rad"
        )

    def _faults(self, future: Spline, start: Array, start_velocity: Array) -> tuple[list[str], float]:
        """Breaks of the full limits, and the worst ratio of a joint's speed.

        Where the arm already is outside its limits, or faster, the limits give way just so far.
        """
        limits = self._bounds
        bounds = JointBounds(
            np.minimum(limits.lower, start),
            np.maximum(limits.upper, start),
            np.maximum(limits.velocity, np.abs(start_velocity)),
            limits.acceleration,
        )
        found = violations(future, bounds, self.robot.joints)
        ratio = max([v.ratio for v in found if v.kind == "velocity"], default=0.0)
        texts = [v.text for v in sorted(found, key=lambda v: v.kind != "velocity")]
        speed = self._eef_speed(future)
        if speed > self.robot.limits.eef_speed * (1 + EEF_SPEED_TOLERANCE):
            texts.append(f"the tool would move at {speed:.2f} m/s, its limit is {self.robot.limits.eef_speed} m/s")
        return texts, ratio

    def _above_authority(self, future: Spline) -> str | None:
        """Whether the present authority is too small for the curve, while the full limits are not."""
        if min(self.authority_at(int(t)) for t in (future.times_ns[0], future.end_ns)) >= 1.0:
            return None
        share = np.array([self.authority_at(int(t)) for t in future.times_ns])
        asked = np.max(np.abs(future.velocities) / self._bounds.velocity, axis=1)
        if np.all(asked <= share * 1.01):
            return None
        worst = int(np.argmax(asked / share))
        return f"{asked[worst]:.0%} of a speed limit asked, the authority is {share[worst]:.0%}"

    def _tool_path(self, future: Spline) -> tuple[Array, float]:
        """Places (N, 3) of the tool along a curve and the seconds between them; needs kinematics."""
        assert self._kinematics is not None
        count = max(2, int(np.ceil((future.end_ns - future.times_ns[0]) / SAMPLE_NS)) + 1)
        times_ns = np.linspace(future.times_ns[0], future.end_ns, count).astype(np.int64)
        return self._kinematics.tool_positions(future(times_ns)[0]), (times_ns[-1] - times_ns[0]) / NANOSECONDS / (count - 1)

    def _eef_speed(self, future: Spline) -> float:
        """The greatest speed of the tool along the curve, m/s; 0 without kinematics."""
        if self._kinematics is None:
            return 0.0
        places, seconds = self._tool_path(future)
        return float(np.linalg.norm(np.diff(places, axis=0), axis=1).max() / seconds)

    def _leaves_workspace(self, future: Spline, measured: RobotState | None) -> str | None:
        """Where the tool would leave its box; from outside it may only come nearer."""
        box = self.robot.limits.workspace
        if box is None or self._kinematics is None:
            return None
        places, _ = self._tool_path(future)
        if measured is not None:
            places = np.concatenate([self._kinematics.tool_positions(measured.positions[None]), places])
        outside = np.maximum(np.array(box.lower) - places, places - np.array(box.upper)).max(axis=1)
        worst = int(np.argmax(outside))
        if outside[worst] <= max(0.0, outside[0]) + WORKSPACE_TOLERANCE:
            return None
        x, y, z = places[worst]
        return f"the tool would leave the workspace: ({x:.3f}, {y:.3f}, {z:.3f}) m, box {box.lower} to {box.upper}"


def _curve(command: TrajectoryCommand, now_ns: int = 0) -> Spline:
    """The command's points at absolute times; a stamp of 0 means now."""
    stamp_ns = command.stamp_ns or now_ns
    times_ns = stamp_ns + np.round(command.times * NANOSECONDS).astype(np.int64)
    return Spline(times_ns, command.positions, command.velocities)


def _discontinuity(curve: Spline, before: Spline, times_ns: NDArray[np.int64]) -> list[str]:
    """Where a curve does not continue what was sent before, at times that the controller may already execute."""
    (positions, velocities), (sent, sent_velocities) = curve(times_ns), before(times_ns)
    step, kink = float(np.abs(positions - sent).max()), float(np.abs(velocities - sent_velocities).max())
    if step <= STEP and kink <= KINK:
        return []
    return [f"it starts {step:.4f} rad and {kink:.3f} rad/s off what was sent before"]


def _from_now(curve: Spline, before: Spline, now_ns: int) -> Spline | None:
    """The curve with a point at or before now, so that the controller never starts from its own state.

    A curve that begins later is led in from what was sent before. None when it ends before it could arrive.
    """
    if curve.end_ns <= now_ns + ARRIVAL_NS:
        return None
    if curve.times_ns[0] <= now_ns:
        return curve
    position, velocity = before(np.array([now_ns]))
    return Spline(
        np.concatenate([[now_ns], curve.times_ns]),
        np.concatenate([position, curve.positions]),
        np.concatenate([velocity, curve.velocities]),
    )
