"""A person's commands as plans in joint space for the scheduler, the gate and the motion guard.

Four kinds: a velocity of the tool, a target pose of the tool, target joint positions, a joint
trajectory. No clock is read.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.planner import GRIPPER, PlanRefused, plan_chunk
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.trajectory import central_differences
from robovlms_ros.core.types import (
    EEF_NAMES,
    NANOSECONDS,
    ActionChunk,
    ActionSpec,
    Array,
    Frame,
    JointPlan,
    RobotState,
)

STEP = 0.05
"""s between the points of a plan that continues a streamed command."""

TWIST_STEPS = 6
"""A velocity is continued for 0.3 s; without another one the arm comes to rest."""

FOLLOWING = 0.2
"""s in which a target is reached at least: streamed at 10 Hz or faster, they make one motion, which
is two thirds of this behind."""

STREAM_GAP = 0.2
"""s: two targets further apart are no stream."""

ACCELERATION_SHARE = 0.8
"""Part of the acceleration limits that a motion to a target uses."""


def plan_twist(
    twist: Array, frame: Frame, start: RobotState, kinematics: Kinematics | None, robot: RobotSpec
) -> JointPlan:
    """The plan of a tool velocity from a state, at its stamp, on.

    twist: (6,) linear m/s and angular rad/s, in the axes of `frame`. Raises PlanRefused.
    """
    if not np.isfinite(twist).all():
        raise PlanRefused(f"the twist is not finite: {twist.tolist()}.")
    spec = ActionSpec("eef_delta", frame, "rotation_vector", "chained", STEP, EEF_NAMES)
    values = np.zeros((TWIST_STEPS, len(EEF_NAMES)))
    values[:, :6] = twist * STEP
    plan = plan_chunk(_chunk(values, spec, start.stamp_ns), start, kinematics, robot)
    return JointPlan(plan.times_ns, plan.positions, plan.velocities, None, plan.chunk)


def joints_of_pose(
    pose: Array, start: RobotState, kinematics: Kinematics | None, robot: RobotSpec
) -> Array:
    """(J,) rad: the joint positions of a tool pose (4, 4) base_T_eef, nearest to a state.

    A target for `plan_target`. Raises PlanRefused for a pose out of reach.
    """
    if kinematics is None:
        raise PlanRefused("a tool pose needs kinematics: give the robot a description.")
    if not np.isfinite(pose).all():
        raise PlanRefused("the pose is not finite.")
    found = kinematics.inverse(pose[None], start.positions)
    if not found.reached[0]:
        x, y, z = pose[:3, 3]
        short = 1e3 * found.position_error[0]
        turned = found.rotation_error[0]
        raise PlanRefused(
            f"the pose at ({x:.3f}, {y:.3f}, {z:.3f}) m in {robot.base_frame} is out of reach: the "
            f"tool stays {short:.1f} mm and {turned:.3f} rad from it."
        )
    return found.positions[0]


class PersonTargets:
    """Target positions that follow each other, each planned by `plan_target`.

    The first one must be near the arm. A refused one neither begins a stream nor ends one.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the stream: the next target begins one."""
        self._previous_ns: int | None = None

    def plan(self, target: Array, now_ns: int, start: RobotState, robot: RobotSpec) -> JointPlan:
        """The plan of a target (J,), rad, that arrived at now_ns. Raises as `plan_target`."""
        previous_ns = self._previous_ns
        streamed = (
            previous_ns is not None and 0 < now_ns - previous_ns <= STREAM_GAP * NANOSECONDS
        )
        if streamed:
            self._previous_ns = now_ns
        plan = plan_target(target, streamed, start, robot)
        self._previous_ns = now_ns
        return plan


def plan_target(target: Array, streamed: bool, start: RobotState, robot: RobotSpec) -> JointPlan:
    """The plan of streamed target positions (J,), rad, from a state, at its stamp, to rest there.

    A cubic in each joint: the next target replaces it on the way, the last one is not passed.
    streamed: it follows another one. Raises PlanRefused for a target further than max_start_jump
    from the state, in a stream twice that, for the arm is behind: a leader arm must be brought to
    the arm first.
    """
    allowed = robot.max_start_jump * (2 if streamed else 1)
    distance = target - start.positions
    joint = int(np.argmax(np.abs(distance)))
    if not abs(distance[joint]) <= allowed:
        raise PlanRefused(
            f"{robot.joints[joint]}'s target is {abs(distance[joint]):.2f} rad from the arm, "
            f"allowed is {allowed:g} rad (max_start_jump = {robot.max_start_jump:g}, twice that in "
            "a stream). Bring the leader to the arm first."
        )
    velocity = np.zeros_like(target) if start.velocities is None else start.velocities
    seconds = _time_to_rest(distance, velocity, robot)
    steps = math.ceil(seconds / STEP)
    after = np.linspace(0.0, seconds, steps + 1, dtype=np.float64)
    left = 1.0 - np.linspace(0.0, 1.0, steps + 1)[:, None]  # of the way's time
    passed = 1.0 - left
    # Hermite's cubic from (-distance, velocity) to (0, 0).
    ahead = passed * velocity * seconds - (1.0 + 2.0 * passed) * distance
    positions = target + left**2 * ahead
    velocities = left * ((1.0 - 3.0 * passed) * velocity + 6.0 * passed * distance / seconds)
    plan = _joint_plan(start.stamp_ns, after, positions, velocities, robot)
    return replace(plan, smooth=True)


def _time_to_rest(distance: Array, velocity: Array, robot: RobotSpec) -> float:
    """Shortest time (s), from FOLLOWING on, of cubics over distances (J,) from velocities (J,) to
    rest, within the speed limits and ACCELERATION_SHARE of the acceleration limits."""
    acceleration = ACCELERATION_SHARE * np.asarray(robot.limits.acceleration)
    speed = np.maximum(robot.limits.velocity, np.abs(velocity))
    seconds = FOLLOWING
    while True:
        begin = 6.0 * distance / seconds**2 - 4.0 * velocity / seconds
        end = 2.0 * velocity / seconds - 6.0 * distance / seconds**2
        # The speed's extreme inside lies where the acceleration, linear in time, passes 0.
        share = np.divide(begin, begin - end, out=np.zeros_like(begin), where=begin * end < 0.0)
        fastest = np.abs(velocity + share * seconds * begin / 2.0)
        largest = np.maximum(np.abs(begin), np.abs(end))
        if np.all(largest <= acceleration) and np.all(fastest <= speed):
            return seconds
        seconds *= 1.1


def plan_trajectory(
    seconds: Array, positions: Array, velocities: Array | None, begin_ns: int, robot: RobotSpec
) -> JointPlan:
    """The plan of a joint trajectory: (N,) s after begin_ns, (N, J) rad and rad/s.

    velocities: None for central differences. Raises PlanRefused for times that do not increase.
    """
    if len(seconds) == 0 or np.any(np.diff(seconds) <= 0.0):
        raise PlanRefused("the trajectory's times must increase, with one point or more.")
    if not (np.isfinite(seconds).all() and np.isfinite(positions).all()):
        raise PlanRefused("a time or position is not finite.")
    times_ns = begin_ns + np.round(seconds * NANOSECONDS).astype(np.int64)
    if velocities is None:
        velocities = central_differences(times_ns, positions)
    return _joint_plan(begin_ns, seconds, positions, velocities, robot)


def in_robot_order(names: Sequence[str], values: Sequence[float], robot: RobotSpec) -> Array:
    """(J,) the robot's joints among named values. Raises PlanRefused for a missing joint."""
    if len(names) != len(values):
        raise PlanRefused(f"{len(names)} joint names but {len(values)} values.")
    index = {name: row for row, name in enumerate(names)}
    missing = [joint for joint in robot.joints if joint not in index]
    if missing:
        wanted = ", ".join(robot.joints)
        raise PlanRefused(f"joint '{missing[0]}' is missing; needed are {wanted}.")
    return np.array([values[index[joint]] for joint in robot.joints], dtype=np.float64)


def _joint_plan(
    begin_ns: int, seconds: Array, positions: Array, velocities: Array, robot: RobotSpec
) -> JointPlan:
    if not (np.isfinite(positions).all() and np.isfinite(velocities).all()):
        raise PlanRefused("a position or velocity is not finite.")
    names = (*robot.joints, GRIPPER)
    spec = ActionSpec("joint_position", "base", "rotation_vector", "chained", STEP, names)
    values = np.hstack([positions, np.ones((len(positions), 1))])
    times_ns = begin_ns + np.round(seconds * NANOSECONDS).astype(np.int64)
    return JointPlan(times_ns, positions, velocities, None, _chunk(values, spec, begin_ns))


def _chunk(values: Array, spec: ActionSpec, stamp_ns: int) -> ActionChunk:
    """A chunk that represents the command; its own instruction keeps it from being blended."""
    return ActionChunk(stamp_ns, values, spec, f"~/human at {stamp_ns}", "human", 0)
