"""A person's commands as plans: tool velocities, streamed targets, trajectories.

- A twist moves the tool along its axis, in the base's or the tool's axes; the plan is 0.3 s long.
- A target is reached at rest, within the limits of speed and acceleration; a stream of targets is
  one motion, and one that ends, at any speed, does not pass its last target.
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
from robovlms_ros.control.scheduler import ChunkScheduler
from robovlms_ros.control.trajectory import Spline, extremes
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


def test_a_target_is_reached_at_rest():
    distance = 0.19 * np.array([1.0, -1.0, 0.5, 0.0, 0.1, 1e-3, -0.5])
    for velocity in (np.zeros(7), np.full(7, 0.5), -distance):
        start = RobotState(START.stamp_ns, HOME, velocity)
        plan = plan_target(HOME + distance, None, start, PANDA)
        np.testing.assert_allclose(plan.positions[0], HOME)
        np.testing.assert_allclose(plan.velocities[0], velocity)
        np.testing.assert_allclose(plan.positions[-1], HOME + distance)
        assert not plan.velocities[-1].any()
        largest = extremes(Spline(plan.times_ns, plan.positions, plan.velocities))
        assert (largest.speed <= np.array(PANDA.limits.velocity)).all()
        assert (largest.acceleration <= np.array(PANDA.limits.acceleration)).all()


@pytest.mark.parametrize("period", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("speed", [0.1, 0.5, 1.0])
def test_a_stream_of_targets_ends_at_its_last(speed, period):
    scheduler = ChunkScheduler(PANDA.joints, limits=PANDA.limits)
    direction = np.array([1.0, -1.0, 0.5, 0.0, -0.5, 1.0, 1.0])
    state = START
    previous_ns = None
    speeds = []
    for count in range(1, round(1.0 / period) + 1):
        target = HOME + count * period * speed * direction
        scheduler.update(plan_target(target, previous_ns, state, PANDA), state.stamp_ns, state)
        previous_ns = state.stamp_ns
        now_ns = previous_ns + round(period * NANOSECONDS)
        positions, velocities = scheduler.commanded(now_ns)
        speeds.append(velocities[0])
        state = RobotState(now_ns, positions, velocities)
    settled = np.array(speeds[len(speeds) // 2 :])
    assert np.ptp(settled) < 0.2 * speed
    way = [scheduler.commanded(now_ns + ms * 10**6)[0] - target for ms in range(1500)]
    assert np.max(way * np.sign(direction)) < 1e-4
    np.testing.assert_allclose(way[-1], 0.0, atol=1e-4)


def test_a_far_target():
    far = HOME.copy()
    far[3] += PANDA.max_start_jump + 0.1
    with pytest.raises(PlanRefused, match="panda_joint4.*max_start_jump"):
        plan_target(far, None, START, PANDA)
    with pytest.raises(PlanRefused, match="panda_joint4.*max_start_jump"):
        plan_target(far, START.stamp_ns - NANOSECONDS, START, PANDA)
    streamed_ns = START.stamp_ns - NANOSECONDS // 50
    plan = plan_target(far, streamed_ns, START, PANDA)
    np.testing.assert_allclose(plan.positions[-1], far)
    far[3] += PANDA.max_start_jump
    with pytest.raises(PlanRefused, match="in a stream"):
        plan_target(far, streamed_ns, START, PANDA)
    with pytest.raises(PlanRefused, match="nan rad from the arm"):
        plan_target(far * np.nan, streamed_ns, START, PANDA)


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
