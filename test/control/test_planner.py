"""Chunks to plans:
- composing and encoding are exact mirrors for every frame, rotation, composition and space (property test);
- the meaning of each frame and composition on hand-made numbers;
- a plan's times, velocities and gripper, and that its positions bring the tool to the composed poses;
- joint-space chunks, with and without kinematics;
- refusals with step and numbers: not finite, out of reach, wrong width, wrong order of joints, wrong frame.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robovlms_ros.control.planner import (
    PlanRefused,
    compose_joints,
    compose_targets,
    encode_joints,
    encode_poses,
    plan_chunk,
)
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.rotations import matrix_from_euler, matrix_from_vector
from robovlms_ros.core.types import ActionChunk, ActionSpec, RobotState

ROBOT = load_robot("panda")
HOME = np.array(ROBOT.home)


def spec(space="eef_delta", frame="base", rotation="rotation_vector", composition="chained", **more) -> ActionSpec:
    return ActionSpec(space, frame, rotation, composition, 0.05, **more)


def chunk(values, action: ActionSpec, stamp_ns: int = 1_000_000_000) -> ActionChunk:
    return ActionChunk(stamp_ns, np.asarray(values, dtype=np.float64), action, "lift", "test")


def pose(position, vector) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = matrix_from_vector(vector), position
    return result


@pytest.fixture(scope="module")
def kinematics():
    pytest.importorskip("pinocchio", reason="pinocchio is not installed: kinematics cannot be tested")
    from robovlms_ros.control.kinematics import Kinematics

    return Kinematics.for_robot(ROBOT)


SPECS = st.builds(
    spec,
    space=st.just("eef_delta"),
    frame=st.sampled_from(["base", "tool"]),
    rotation=st.sampled_from(["rotation_vector", "euler_xyz_extrinsic", "euler_xyz_intrinsic"]),
    composition=st.sampled_from(["chained", "from_observation"]),
)


def vectors(bound: float):
    return st.lists(st.floats(-bound, bound, allow_nan=False), min_size=3, max_size=3)


@settings(deadline=None, max_examples=200)
@given(action=SPECS, start=vectors(3.0), steps=st.lists(st.tuples(vectors(0.5), vectors(0.8)), min_size=1, max_size=6))
def test_encoding_mirrors_composing(action, start, steps):
    eef_pose = pose([0.4, -0.1, 0.3], start)
    values = np.array([[*shift, *turn] for shift, turn in steps])
    targets = compose_targets(chunk(np.hstack([values, np.zeros((len(steps), 1))]), action), eef_pose)
    np.testing.assert_allclose(encode_poses(targets, eef_pose, action), values, atol=1e-9)
    for target in targets:
        np.testing.assert_allclose(target[:3, :3] @ target[:3, :3].T, np.eye(3), atol=1e-9)
    absolute = spec(space="eef_pose", rotation=action.rotation)
    encoded = np.hstack([encode_poses(targets, eef_pose, absolute), np.zeros((len(steps), 1))])
    np.testing.assert_allclose(compose_targets(chunk(encoded, absolute), np.eye(4)), targets, atol=1e-7)


@settings(deadline=None, max_examples=50)
@given(
    space=st.sampled_from(["joint_delta", "joint_position"]),
    composition=st.sampled_from(["chained", "from_observation"]),
    values=st.lists(st.lists(st.floats(-1, 1), min_size=7, max_size=7), min_size=1, max_size=5),
)
def test_joint_encoding_mirrors_composing(space, composition, values):
    action = spec(space=space, composition=composition, names=ROBOT.joints)
    targets = compose_joints(chunk(values, action), HOME)
    np.testing.assert_allclose(encode_joints(targets, HOME, action), values, atol=1e-12)


def test_what_frames_and_compositions_mean():
    # A tool turned by 90 degrees about z: its x is the base's y.
    start = pose([1.0, 0.0, 0.0], [0, 0, np.pi / 2])
    values = np.tile([0.1, 0, 0, 0, 0, np.pi / 2, 1.0], (2, 1))
    ends = {}
    for frame in ("base", "tool"):
        for composition in ("chained", "from_observation"):
            targets = compose_targets(chunk(values, spec(frame=frame, composition=composition)), start)
            ends[frame, composition] = targets[1][:3, 3]
            np.testing.assert_allclose(targets[0][:3, :3], matrix_from_vector([0, 0, np.pi]), atol=1e-12)
    np.testing.assert_allclose(ends["base", "chained"], [1.2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(ends["base", "from_observation"], [1.1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(ends["tool", "chained"], [0.9, 0.1, 0], atol=1e-12)
    np.testing.assert_allclose(ends["tool", "from_observation"], [1.0, 0.1, 0], atol=1e-12)


@pytest.mark.parametrize("intrinsic", [False, True])
def test_euler_axes(intrinsic):
    angles = [0.3, -0.4, 0.5]
    name = "euler_xyz_intrinsic" if intrinsic else "euler_xyz_extrinsic"
    target = compose_targets(chunk([[0, 0, 0, *angles, 0]], spec(rotation=name)), np.eye(4))[0]
    np.testing.assert_allclose(target[:3, :3], matrix_from_euler(angles, intrinsic), atol=1e-12)


def test_a_plan_of_deltas(kinematics):
    eef_pose = kinematics.forward(HOME)
    values = np.tile([0.004, 0.0, -0.004, 0.0, 0.0, 0.01, 1.0], (8, 1))
    values[4:, 6] = [0.0, 0.3, -0.1, 1.2]
    message = chunk(values, spec())
    plan = plan_chunk(message, RobotState(message.stamp_ns, HOME), kinematics, ROBOT)
    assert plan.times_ns.tolist() == [1_000_000_000 + 50_000_000 * (k + 1) for k in range(8)]
    assert plan.gripper.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 0.3, 0.0, 1.0]
    assert plan.chunk is message
    for target, q in zip(compose_targets(message, eef_pose), plan.positions, strict=True):
        np.testing.assert_allclose(kinematics.forward(q), target, atol=1e-4)
    joined = np.vstack([HOME, plan.positions])
    np.testing.assert_allclose(plan.velocities[0], (joined[2] - joined[0]) / 0.1, atol=1e-9)
    np.testing.assert_allclose(plan.velocities[-1], (joined[-1] - joined[-2]) / 0.05, atol=1e-9)


def test_the_pose_that_came_with_the_state_is_used(kinematics):
    shifted = kinematics.forward(HOME)
    shifted[0, 3] += 0.02
    message = chunk(np.zeros((1, 7)), spec())
    plan = plan_chunk(message, RobotState(0, HOME, eef_pose=shifted), kinematics, ROBOT)
    np.testing.assert_allclose(kinematics.forward(plan.positions[0]), shifted, atol=1e-4)


def test_joint_chunks_need_no_kinematics():
    action = spec(space="joint_delta", names=(*ROBOT.joints, "gripper"))
    values = np.full((3, 8), 0.01)
    plan = plan_chunk(chunk(values, action), RobotState(0, HOME), None, ROBOT)
    np.testing.assert_allclose(plan.positions, HOME + np.array([[0.01], [0.02], [0.03]]))
    np.testing.assert_allclose(plan.velocities, 0.2)
    assert plan.gripper.tolist() == [0.01] * 3
    bare = replace(action, space="joint_position", names=ROBOT.joints)
    assert plan_chunk(chunk([HOME], bare), RobotState(0, HOME), None, ROBOT).gripper is None


def bad(row, column, value):
    values = np.zeros((4, 7))
    values[row, column] = value
    return values


REFUSED = [
    (bad(2, 3, np.nan), spec(), "step 3: rx = nan is not finite"),
    (bad(1, 6, np.inf), spec(), "step 2: gripper = inf is not finite"),
    (np.zeros((4, 6)), spec(), r"values have shape \(4, 6\), must be \(steps, 7\)"),
    (np.zeros((0, 7)), spec(), "the chunk has 0 steps"),
    (bad(2, 0, 1.5), spec(), "step 3 of 4 is out of reach: the tool stays .* mm .* 2 steps are not reached"),
    (np.zeros((4, 5)), spec(names=("x", "y", "z", "rx", "gripper")), "has 4 pose values per step, must have 6"),
    (np.zeros((4, 7)), spec(space="eef_pose", frame="tool"), "expressed in the base frame"),
    (np.zeros((4, 7)), spec(space="joint_delta"), "has 6 joint values a step, must have 7"),
    (np.zeros((4, 7)), spec(space="joint_position", names=ROBOT.joints[::-1]), "in another order"),
]


@pytest.mark.parametrize(("values", "action", "text"), REFUSED)
def test_refusals(kinematics, values, action, text):
    with pytest.raises(PlanRefused, match=text) as refusal:
        plan_chunk(chunk(values, action), RobotState(0, HOME), kinematics, ROBOT)
    if "step 3" in text:
        assert refusal.value.step == 2


def test_a_state_that_cannot_be_planned_from(kinematics):
    message = chunk(np.zeros((2, 7)), spec())
    with pytest.raises(PlanRefused, match="not finite"):
        plan_chunk(message, RobotState(0, HOME * np.nan), kinematics, ROBOT)
    with pytest.raises(PlanRefused, match="7 joints"):
        plan_chunk(message, RobotState(0, HOME[:6]), kinematics, ROBOT)
    with pytest.raises(PlanRefused, match="needs kinematics"):
        plan_chunk(message, RobotState(0, HOME), None, ROBOT)
