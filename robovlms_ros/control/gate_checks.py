"""The questions that the safety gate asks of a trajectory; each answers with a reason, or nothing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.limits import Violation
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.spline import SEPARATION_NS, Spline
from robovlms_ros.core.types import NANOSECONDS, RobotState, TrajectoryCommand

Array = NDArray[np.float64]

ARRIVAL_NS = 5_000_000  # execution of the previous command before a message reaches the controller
STEP = 2e-4  # rad: the largest step from what was sent before that passes
WORKSPACE_TOLERANCE = 1e-3  # m
EEF_SPEED_TOLERANCE = 0.05
SAMPLE_NS = 25_000_000  # between samples of the tool's path


def malformed(command: TrajectoryCommand, robot: RobotSpec) -> str | None:
    """Why a command is not a trajectory of this robot that ends at rest."""
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
    """Why the measurements behind a command cannot carry it: not finite, too old, or ahead of the clock."""
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

    before: the commanded motion. A measurement is old: the arm is compared with the command at the measurement's own
    stamp, and its distance from it is assumed to last until now.
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
    """Where a curve does not continue what was sent before, at the times between which the controller takes it over.

    kink: (J,) rad/s, the change of velocity that passes.
    """
    (positions, velocities), (sent, sent_velocities) = curve(times_ns), before(times_ns)
    step, change = np.abs(positions - sent).max(), np.abs(velocities - sent_velocities)
    if step <= STEP and np.all(change <= kink):
        return []
    text = f"it starts {step:.4f} rad and {change.max():.3f} rad/s off the commanded motion"
    return [Violation("continuity", text, np.inf)]


@dataclass(frozen=True)
class ToolPath:
    """Where the tool is along a curve: places (N, 3), m, and the seconds between them."""

    places: Array
    seconds: float


class ToolChecks:
    """Where a curve takes the tool: its speed and its workspace. Without kinematics both go unchecked."""

    def __init__(self, robot: RobotSpec, kinematics: Kinematics | None) -> None:
        self._limit = robot.limits.eef_speed
        self._box = robot.limits.workspace
        self._kinematics = kinematics

    def path(self, curve: Spline) -> ToolPath | None:
        """The tool's path along a curve; None without kinematics."""
        if self._kinematics is None:
            return None
        length_ns = int(curve.end_ns - curve.times_ns[0])
        count = max(1, -(-length_ns // SAMPLE_NS))
        times_ns = np.linspace(curve.times_ns[0], curve.end_ns, count + 1).astype(np.int64)
        return ToolPath(self._kinematics.tool_positions(curve(times_ns)[0]), length_ns / NANOSECONDS / count)

    def speed_ratio(self, path: ToolPath | None) -> float:
        """The tool's greatest speed as a multiple of its limit; 0 without kinematics."""
        if path is None:
            return 0.0
        return float(np.linalg.norm(np.diff(path.places, axis=0), axis=1).max() / path.seconds / self._limit)

    def too_fast(self, path: ToolPath | None) -> list[Violation]:
        """The tool's speed above its limit."""
        ratio = self.speed_ratio(path)
        if ratio <= 1 + EEF_SPEED_TOLERANCE:
            return []
        text = f"the tool would move at {ratio * self._limit:.2f} m/s, its limit is {self._limit} m/s"
        return [Violation("eef_speed", text, ratio)]

    def outside(self, path: ToolPath | None, measured: RobotState | None = None) -> str | None:
        """Where the tool would leave its box; from outside (measured, or the path's start) it may only come nearer."""
        if self._box is None or self._kinematics is None or path is None:
            return None
        places = path.places
        if measured is not None:
            places = np.concatenate([self._kinematics.tool_positions(measured.positions[None]), places])
        out = np.maximum(np.array(self._box.lower) - places, places - np.array(self._box.upper)).max(axis=1)
        worst = int(np.argmax(out))
        if out[worst] <= max(0.0, out[0]) + WORKSPACE_TOLERANCE:
            return None
        x, y, z = places[worst]
        box = f"{self._box.lower} to {self._box.upper}"
        return f"the tool would leave the workspace: ({x:.3f}, {y:.3f}, {z:.3f}) m, box {box}"
