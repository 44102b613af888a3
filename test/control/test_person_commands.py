"""A person's commands as plans: tool velocities, streamed targets, trajectories.

- A twist moves the tool along its axis, in the base's or the tool's axes; the plan is 0.3 s long.
- A stream of targets has its velocity; a first target, or one after a gap, has none.
- A pose becomes the joint target whose tool is there; one out of reach is refused.
- A far target, a missing joint, values that are not finite and times that do not increase are
  refused.
"""

import numpy as np
import pytest

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.person_commands import (
    in_robot_order,
    joints_of_pose,
    plan_target,
    plan_trajectory,
    plan_twist,
)
from robovlms_ros.control.planner import PlanRefused
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.types import NANOSECONDS, RobotState

PANDA = load_robot("panda")
HOME = np.array(PANDA.home)
START = RobotState(1000 * NANOSECONDS, HOME, np.zeros(7))


@pytest.fixture(scope="module")
def kinematics():
    pytest.importorskip("pinocchio")
    return Kinematics.for_robot(PANDA, PANDA.description_path)


@pytest.mark.parametrize("frame", ["base", "tool"])
def test_a_twist(kinematics, frame):
    twist = np.array([0.0, 0.0, -0.1, 0.0, 0.0, 0.0])
    plan = plan_twist(twist, frame, START, kinematics, PANDA)
    before = kinematics.forward(HOME)
    after = kinematics.forward(plan.positions[-1])
    axis = np.eye(3) if frame == "base" else before[:3, :3]
    np.testing.assert_allclose(after[:3, 3] - before[:3, 3], axis @ (0.3 * twist[:3]), atol=1e-3)
    assert plan.times_ns[-1] - START.stamp_ns == round(0.3 * NANOSECONDS)
    with pytest.raises(PlanRefused, match="not finite"):
        plan_twist(twist * np.nan, frame, START, kinematics, PANDA)


def test_a_pose(kinematics):
    pose = kinematics.forward(HOME)
    pose[:3, 3] += (0.0, 0.01, -0.02)
    target = joints_of_pose(pose, START, kinematics, PANDA)
    np.testing.assert_allclose(kinematics.forward(target), pose, atol=1e-3)
    assert np.abs(target - HOME).max() < PANDA.max_start_jump
    with pytest.raises(PlanRefused, match="not finite"):
        joints_of_pose(pose * np.nan, START, kinematics, PANDA)
    pose[0, 3] = 3.0
    with pytest.raises(PlanRefused, match=r"\(3.000, .* out of reach"):
        joints_of_pose(pose, START, kinematics, PANDA)
    with pytest.raises(PlanRefused, match="needs kinematics"):
        joints_of_pose(pose, START, None, PANDA)


def test_a_stream_of_targets():
    target = HOME + 0.01
    alone = plan_target(target, None, START, PANDA)
    np.testing.assert_allclose(alone.positions, np.tile(target, (5, 1)))
    assert not alone.velocities.any()
    previous = (START.stamp_ns - NANOSECONDS // 10, HOME)
    stream = plan_target(target, previous, START, PANDA)
    np.testing.assert_allclose(stream.velocities, 0.1)
    np.testing.assert_allclose(stream.positions[-1], target + 0.1 * 0.2)
    late = (START.stamp_ns - NANOSECONDS, HOME)
    assert not plan_target(target, late, START, PANDA).velocities.any()


def test_a_far_target():
    far = HOME.copy()
    far[3] += PANDA.max_start_jump + 0.1
    with pytest.raises(PlanRefused, match="panda_joint4.*max_start_jump"):
        plan_target(far, None, START, PANDA)


def test_a_trajectory():
    seconds = np.array([0.5, 1.0])
    positions = np.stack([HOME, HOME + 0.1])
    plan = plan_trajectory(seconds, positions, None, 7, PANDA)
    assert plan.times_ns.tolist() == [500_000_007, 1_000_000_007]
    np.testing.assert_allclose(plan.velocities, 0.2)
    with pytest.raises(PlanRefused, match="increase"):
        plan_trajectory(seconds[::-1], positions, None, 7, PANDA)
    with pytest.raises(PlanRefused, match="not finite"):
        plan_trajectory(seconds, np.full_like(positions, np.nan), None, 7, PANDA)


def test_order_of_joints():
    names = PANDA.joints[::-1]
    np.testing.assert_array_equal(in_robot_order(names, HOME[::-1], PANDA), HOME)
    with pytest.raises(PlanRefused, match="panda_joint1"):
        in_robot_order(names[:3], [0.0] * 3, PANDA)
    with pytest.raises(PlanRefused, match="7 joint names but 2"):
        in_robot_order(names, [0.0] * 2, PANDA)
