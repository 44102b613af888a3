"""One chunk's worth of motion in both languages: the policy's own numbers, and where they lead."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.planner import (
    EEF_SPACES,
    GRIPPER,
    compose_joints,
    compose_targets,
    encode_joints,
    encode_poses,
)
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, Array, RobotState


@dataclass(frozen=True)
class Steps:
    """n steps from a measured start.

    values: (n, D) in the policy's space, NaN where unknown. poses: (n, 4, 4) base_T_eef of
        end-effector spaces, else
    None. joints: (n, J) rad of joint spaces, else None. gripper: (n,) opening, NaN where unknown.
    valid: (n,) bool, steps whose arm part is known.
    """

    values: Array
    poses: Array | None
    joints: Array | None
    gripper: Array
    valid: NDArray[np.bool_]


def arm_columns(spec: ActionSpec) -> list[int]:
    """The columns of a chunk's values that are not the gripper."""
    return [i for i, name in enumerate(spec.names) if name != GRIPPER]


def step_times(stamp_ns: int, spec: ActionSpec, horizon: int) -> NDArray[np.int64]:
    """(n,) absolute times of a chunk's targets."""
    return stamp_ns + np.round(np.arange(1, horizon + 1) * spec.step_duration * NANOSECONDS).astype(np.int64)


def steps_of_chunk(chunk: ActionChunk, start: RobotState) -> Steps:
    """Targets of a chunk from the state measured at its stamp. Raises PlanRefused for malformed
    values."""
    spec = chunk.spec
    n = chunk.horizon
    values = np.asarray(chunk.values, dtype=np.float64)
    gripper = np.full(n, np.nan)
    if GRIPPER in spec.names:
        gripper = values[:, spec.names.index(GRIPPER)]
    poses = joints = None
    if np.isnan(gripper).any():
        chunk = chunk_with(chunk, np.where(np.isin(np.arange(len(spec.names)), arm_columns(spec)), chunk.values, 0.0))
    if spec.space in EEF_SPACES:
        assert start.eef_pose is not None
        poses = compose_targets(chunk, start.eef_pose)
    else:
        joints = compose_joints(chunk, start.positions)
    return Steps(values, poses, joints, gripper, np.ones(n, dtype=bool))


def steps_of_targets(
    spec: ActionSpec, start: RobotState, targets: Array, valid: NDArray[np.bool_], gripper: Array
) -> Steps:
    """The mirror: known targets, poses (n, 4, 4) or joints (n, J) as `spec.space` requires, in the
    policy's numbers.

    A step is valid only when it and all before it are known: its numbers depend on them.
    """
    known = int(np.argmin(valid)) if not valid.all() else len(valid)
    values = np.full((len(valid), len(spec.names)), np.nan)
    columns = arm_columns(spec)
    if known:
        if spec.space in EEF_SPACES:
            assert start.eef_pose is not None
            values[:known, columns] = encode_poses(targets[:known], start.eef_pose, spec)
        else:
            values[:known, columns] = encode_joints(targets[:known], start.positions, spec)
    if GRIPPER in spec.names:
        values[:, spec.names.index(GRIPPER)] = gripper
    whole = np.arange(len(valid)) < known
    eef = spec.space in EEF_SPACES
    return Steps(values, targets if eef else None, None if eef else targets, gripper, whole)


def chunk_with(chunk: ActionChunk, values: Array) -> ActionChunk:
    """`chunk` with other values: how a baseline answers in the same words."""
    return ActionChunk(chunk.stamp_ns, values, chunk.spec, chunk.instruction, "baseline", chunk.sequence)


def displacement(steps: Steps, start: RobotState) -> Array:
    """(n, 3) m from the start for end-effector spaces, (n, J) rad for joint spaces."""
    if steps.poses is not None:
        assert start.eef_pose is not None
        return steps.poses[:, :3, 3] - start.eef_pose[:3, 3]
    assert steps.joints is not None
    return steps.joints - start.positions


def rotation_angle(a: Array, b: Array) -> Array:
    """(n,) rad between the rotations of poses a and b, (n, 4, 4)."""
    traces = np.einsum("nij,nij->n", a[:, :3, :3], b[:, :3, :3])
    return np.arccos(np.clip((traces - 1) / 2, -1.0, 1.0))


def distance(a: Steps, b: Steps) -> Array:
    """(n,) how far two motions are apart at each step: m for end-effector spaces, largest joint in
    rad otherwise."""
    if a.poses is not None and b.poses is not None:
        return np.linalg.norm(a.poses[:, :3, 3] - b.poses[:, :3, 3], axis=1)
    assert a.joints is not None and b.joints is not None
    return np.abs(a.joints - b.joints).max(axis=1)
