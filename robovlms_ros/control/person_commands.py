"""A person's commands as plans in joint space for the scheduler, the gate and the motion guard.

Four kinds: a velocity of the tool, a target pose of the tool, target joint positions, a joint
trajectory. No clock is read.
"""

from collections.abc import Sequence

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

TARGET_STEPS = 5
"""A target's motion is continued for 0.25 s: later points would overshoot a person who stops."""

STREAM_GAP = 0.2
"""s: two targets further apart are no stream, and have no velocity."""


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


def plan_target(
    target: Array, previous: tuple[int, Array] | None, start: RobotState, robot: RobotSpec
) -> JointPlan:
    """The plan of streamed target positions (J,), rad, from a state, at its stamp, on.

    previous: arrival (ns) and positions of the target before; its difference is the velocity.
    Raises PlanRefused for a target further than max_start_jump from the state: a leader arm must be
    brought to the arm first.
    """
    now_ns = start.stamp_ns
    away = np.abs(target - start.positions)
    joint = int(np.argmax(away))
    if not away[joint] <= robot.max_start_jump:
        raise PlanRefused(
            f"{robot.joints[joint]}'s target is {away[joint]:.2f} rad from the arm, allowed is "
            f"max_start_jump = {robot.max_start_jump:g} rad. Bring the leader to the arm first."
        )
    velocity = np.zeros_like(target)
    if previous is not None:
        seconds = (now_ns - previous[0]) / NANOSECONDS
        if 0.0 < seconds <= STREAM_GAP:
            velocity = (target - previous[1]) / seconds
    after = STEP * np.arange(1, TARGET_STEPS + 1, dtype=np.float64)
    positions = target + np.outer(after - STEP, velocity)
    return _joint_plan(now_ns, after, positions, np.tile(velocity, (TARGET_STEPS, 1)), robot)


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
