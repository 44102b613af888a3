"""From an action chunk to a plan in joint space, and back from poses to the numbers a policy is
trained on.

`compose_targets` and `encode_poses`, `compose_joints` and `encode_joints` are exact mirrors: what
ActionSpec means is written here once, for execution and for training.
"""

import numpy as np

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.trajectory import central_differences
from robovlms_ros.core.rotations import matrix_from, values_from
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    ActionSpec,
    Array,
    JointPlan,
    RobotState,
    RoboVLMsError,
)

GRIPPER = "gripper"
EEF_SPACES = ("eef_delta", "eef_pose")
ABSOLUTE_SPACES = ("eef_pose", "joint_position")


class PlanRefused(RoboVLMsError):
    """A chunk that cannot become a plan. step: the first step concerned, counted from 0; None for
    the whole chunk."""

    def __init__(self, text: str, step: int | None = None) -> None:
        super().__init__(text)
        self.step = step


def compose_targets(chunk: ActionChunk, eef_pose: Array) -> Array:
    """The tool poses (n, 4, 4) base_T_eef of an end-effector chunk.

    eef_pose: (4, 4) base_T_eef measured at the chunk's stamp. Raises PlanRefused for values that
    are not finite or do not have six pose numbers per step, and for a joint-space chunk.
    """
    values = _arm_values(chunk)
    spec = chunk.spec
    if spec.space not in EEF_SPACES:
        raise PlanRefused(f"the chunk's space is {spec.space}; tool poses are composed of {' or '.join(EEF_SPACES)}.")
    if values.shape[1] != 6:
        raise PlanRefused(f"an {spec.space} chunk has {values.shape[1]} pose values per step, must have 6 (x ... rz).")
    turns = matrix_from(values[:, 3:], spec.rotation)  # (n, 3, 3)
    targets = np.tile(np.eye(4), (len(values), 1, 1))
    if spec.space == "eef_pose":
        _require_base(spec)
        targets[:, :3, :3], targets[:, :3, 3] = turns, values[:, :3]
        return targets
    start = np.asarray(eef_pose, dtype=np.float64)
    for k, (shift, turn) in enumerate(zip(values[:, :3], turns, strict=True)):
        origin = targets[k - 1] if k > 0 and spec.composition == "chained" else start
        rotation = origin[:3, :3]
        if spec.frame == "base":
            targets[k, :3, 3], targets[k, :3, :3] = origin[:3, 3] + shift, turn @ rotation
        else:
            targets[k, :3, 3], targets[k, :3, :3] = origin[:3, 3] + rotation @ shift, rotation @ turn
    return targets


def encode_poses(targets: Array, eef_pose: Array, spec: ActionSpec) -> Array:
    """The pose values (n, 6) of a chunk whose targets are `targets` (n, 4, 4): the mirror of
    `compose_targets`."""
    targets = np.asarray(targets, dtype=np.float64)
    if spec.space == "eef_pose":
        _require_base(spec)
        return np.hstack([targets[:, :3, 3], values_from(targets[:, :3, :3], spec.rotation)])
    if spec.space != "eef_delta":
        raise PlanRefused(f"poses cannot be encoded as {spec.space}; use encode_joints.")
    start = np.asarray(eef_pose, dtype=np.float64)[None]
    if spec.composition == "chained":
        origins = np.concatenate([start, targets[:-1]])
    else:
        origins = np.repeat(start, len(targets), axis=0)
    rotations = origins[:, :3, :3]
    inverse = np.swapaxes(rotations, 1, 2)
    shifts = targets[:, :3, 3] - origins[:, :3, 3]
    if spec.frame == "base":
        turns = targets[:, :3, :3] @ inverse
    else:
        turns = inverse @ targets[:, :3, :3]
        shifts = (inverse @ shifts[:, :, None])[:, :, 0]
    return np.hstack([shifts, values_from(turns, spec.rotation)])


def compose_joints(chunk: ActionChunk, positions: Array) -> Array:
    """The joint positions (n, J) of a joint-space chunk; `positions` (J,) were measured
    at its stamp.

    Raises PlanRefused for values that are not finite or not J per step, and for an end-effector
    chunk.
    """
    values = _arm_values(chunk)
    spec = chunk.spec
    if spec.space in EEF_SPACES:
        raise PlanRefused(f"the chunk's space is {spec.space}; it needs inverse kinematics.")
    if values.shape[1] != len(positions):
        raise PlanRefused(
            f"a {spec.space} chunk has {values.shape[1]} joint values a step, must have {len(positions)}."
        )
    if spec.space == "joint_position":
        return values
    return positions + (np.cumsum(values, axis=0) if spec.composition == "chained" else values)


def encode_joints(targets: Array, positions: Array, spec: ActionSpec) -> Array:
    """The joint values (n, J) of a chunk whose targets are `targets` (n, J): the mirror of
    `compose_joints`."""
    targets = np.asarray(targets, dtype=np.float64)
    if spec.space in EEF_SPACES:
        raise PlanRefused(f"joint positions cannot be encoded as {spec.space}; use encode_poses.")
    if spec.space == "joint_position":
        return targets.copy()
    if spec.composition == "chained":
        return np.diff(targets, axis=0, prepend=np.asarray(positions)[None])
    return targets - positions


def plan_chunk(
    chunk: ActionChunk, state_at_stamp: RobotState, kinematics: Kinematics | None, robot: RobotSpec
) -> JointPlan:
    """The chunk as joint positions and velocities at absolute times, starting from the state
    measured at its stamp.

    Velocities are central differences over the steps, with the measured positions before them where
    the steps are relative to those; the last one is one-sided.
    kinematics may be None for joint-space chunks. Raises PlanRefused with the step and the numbers.
    """
    measured = np.asarray(state_at_stamp.positions, dtype=np.float64)
    if measured.shape != (len(robot.joints),):
        raise PlanRefused(f"the state has {measured.shape} positions, {robot.name} has {len(robot.joints)} joints.")
    if not np.isfinite(measured).all():
        raise PlanRefused(f"the measured joint positions are not finite: {measured.tolist()}.")
    if chunk.horizon == 0 or not chunk.spec.step_duration > 0:
        raise PlanRefused(f"the chunk has {chunk.horizon} steps of {chunk.spec.step_duration} s; both must be above 0.")
    if chunk.spec.space in EEF_SPACES:
        positions = _solve(chunk, state_at_stamp, kinematics, measured)
    else:
        _check_joint_names(chunk.spec, robot)
        positions = compose_joints(chunk, measured)
    step_ns = chunk.spec.step_duration * NANOSECONDS
    times_ns = chunk.stamp_ns + np.round(np.arange(1, chunk.horizon + 1) * step_ns).astype(np.int64)
    if chunk.spec.space in ABSOLUTE_SPACES and chunk.horizon > 1:
        # The arm may be anywhere beside an absolute target: the way to the first step is no part of
        # the intent.
        _check_reach(positions, measured, chunk.spec.step_duration, robot)
        velocities = central_differences(times_ns, positions)
    else:
        seconds = np.arange(chunk.horizon + 1) * chunk.spec.step_duration
        velocities = np.gradient(np.vstack([measured, positions]), seconds, axis=0)[1:]
    return JointPlan(times_ns, positions, velocities, _gripper(chunk), chunk)


def _check_reach(positions: Array, measured: Array, step: float, robot: RobotSpec) -> None:
    """Raise PlanRefused for absolute targets whose first steps need an excessive speed."""
    speeds = np.abs(positions[1] - measured) / (2 * step)
    ratio = speeds / np.array(robot.limits.velocity)
    joint = int(np.argmax(ratio))
    if ratio[joint] > robot.gate.max_excess:
        raise PlanRefused(
            f"{robot.joints[joint]} would need {speeds[joint]:.2f} rad/s to the chunk's second step, "
            f"more than {robot.gate.max_excess:g} times its limit of "
            f"{robot.limits.velocity[joint]:.2f} rad/s: the target lies far from the measured arm.",
            1,
        )


def _solve(chunk: ActionChunk, state: RobotState, kinematics: Kinematics | None, measured: Array) -> Array:
    if kinematics is None:
        raise PlanRefused(f"an {chunk.spec.space} chunk needs kinematics: give the robot a description.")
    pose = kinematics.forward(measured) if state.eef_pose is None else state.eef_pose
    targets = compose_targets(chunk, pose)
    result = kinematics.inverse(targets, measured)
    if not result.reached.all():
        step = int(np.argmin(result.reached))
        x, y, z = targets[step, :3, 3]
        short = result.position_error[step] * 1e3
        turned = result.rotation_error[step]
        raise PlanRefused(
            f"step {step + 1} of {chunk.horizon} is out of reach: the tool stays {short:.1f} mm and {turned:.3f} rad "
            f"from its target at ({x:.3f}, {y:.3f}, {z:.3f}) m; {int((~result.reached).sum())} steps are not reached.",
            step,
        )
    return result.positions


def _arm_values(chunk: ActionChunk) -> Array:
    """The chunk's values without the gripper's column, (n, dims); raises PlanRefused unless finite
    and well formed."""
    values = np.asarray(chunk.values, dtype=np.float64)
    names = chunk.spec.names
    if values.ndim != 2 or values.shape[1] != len(names):
        raise PlanRefused(f"the chunk's values have shape {values.shape}, must be (steps, {len(names)}): {names}.")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, column = (int(i) for i in bad[0])
        raise PlanRefused(f"step {step + 1}: {names[column]} = {values[step, column]} is not finite.", step)
    return values[:, [i for i, name in enumerate(names) if name != GRIPPER]]


def _gripper(chunk: ActionChunk) -> Array | None:
    if GRIPPER not in chunk.spec.names:
        return None
    return np.clip(chunk.values[:, chunk.spec.names.index(GRIPPER)].astype(np.float64), 0.0, 1.0)


def _check_joint_names(spec: ActionSpec, robot: RobotSpec) -> None:
    """A chunk that uses the robot's own joint names must have them in the robot's order."""
    names = tuple(name for name in spec.names if name != GRIPPER)
    if names != robot.joints and sorted(names) == sorted(robot.joints):
        raise PlanRefused(f"the chunk's joints {names} are in another order than the robot's {robot.joints}.")


def _require_base(spec: ActionSpec) -> None:
    if spec.frame != "base":
        raise PlanRefused(f"an eef_pose is expressed in the base frame; the action's frame is '{spec.frame}'.")
