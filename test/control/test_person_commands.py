"""A person's commands as plans: tool velocities, streamed targets, trajectories.

- A twist moves the tool along its axis, in the base's or the tool's axes; the plan is 0.3 s long.
- A target is reached at rest, within the limits of speed and acceleration; a stream of targets is
  one motion, and one that ends, at any speed and with any lead, does not pass its last target, also
  where the gate clamps a joint.
- A pose becomes the joint target whose tool is there; one out of reach is refused.
- A target far from the arm begins no stream; in a stream the arm may be twice as far behind.
- A far target, a missing joint, values that are not finite and times that do not increase are
  refused.
"""

import dataclasses

import numpy as np
import pytest

from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.person_commands import (
    PersonTargets,
    in_robot_order,
    joints_of_pose,
    plan_target,
    plan_trajectory,
    plan_twist,
)
from robovlms_ros.control.planner import PlanRefused
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.schedule import ScheduleConfig
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
        plan = plan_target(HOME + distance, False, start, PANDA)
        np.testing.assert_allclose(plan.positions[0], HOME)
        np.testing.assert_allclose(plan.velocities[0], velocity)
        np.testing.assert_allclose(plan.positions[-1], HOME + distance)
        assert not plan.velocities[-1].any()
        largest = extremes(Spline(plan.times_ns, plan.positions, plan.velocities))
        assert (largest.speed <= np.array(PANDA.limits.velocity)).all()
        assert (largest.acceleration <= np.array(PANDA.limits.acceleration)).all()


def follow(robot, targets, period, lead=0.02, strategy="blend"):
    """The executor after a stream of targets, its time, and the commanded speeds (N, J)."""
    gate = dataclasses.replace(robot.gate, speed_scaling_ramp=0.0)
    robot = dataclasses.replace(robot, gate=gate)
    executor = build_executor(robot, None, ScheduleConfig(strategy=strategy, lead=lead))
    stream = PersonTargets()
    now_ns = START.stamp_ns
    measured = RobotState(now_ns, np.array(robot.home))
    speeds = []
    for target in targets:
        start = executor.commanded_state(measured, now_ns + executor.scheduler.lead_ns)
        plan = stream.plan(target, now_ns, start, robot)
        decision = executor.on_chunk(plan.chunk, start, measured, now_ns, plan=plan)
        assert decision.command is not None, decision.verdict.reason
        now_ns += round(period * NANOSECONDS)
        positions, velocities = executor.commanded(now_ns)
        measured = RobotState(now_ns, positions)
        speeds.append(velocities)
    return executor, now_ns, np.array(speeds)


@pytest.mark.parametrize("period", [0.02, 0.05, 0.1])
@pytest.mark.parametrize(
    ("speed", "lead"), [(0.1, 0.02), (0.5, 0.02), (1.0, 0.02), (0.3, 0.1), (0.3, 0.2)]
)
def test_a_stream_of_targets_ends_at_its_last(speed, lead, period):
    direction = np.array([1.0, -1.0, 0.5, 0.0, -0.5, 1.0, 1.0])
    counts = np.arange(1, round(1.0 / period) + 1)
    targets = HOME + counts[:, None] * period * speed * direction
    executor, end_ns, speeds = follow(PANDA, targets, period, lead)
    settled = speeds[len(speeds) // 2 :, 0]
    assert np.ptp(settled) < 0.2 * speed
    way = executor.commanded_path(end_ns + np.arange(1500) * 10**6) - targets[-1]
    assert np.max(way * np.sign(direction)) < 1e-4
    np.testing.assert_allclose(way[-1], 0.0, atol=1e-4)


@pytest.mark.parametrize("strategy", ["first", "receding", "ensemble", "fade"])
def test_one_target_is_reached_with_every_strategy(strategy):
    executor, end_ns, _ = follow(PANDA, [HOME + 0.15], 0.02, strategy=strategy)
    last = executor.commanded(end_ns + NANOSECONDS)[0]
    np.testing.assert_allclose(last, HOME + 0.15, atol=1e-4)


@pytest.mark.parametrize("period", [0.02, 0.05])
def test_a_joint_at_its_limit_lets_the_others_reach_their_targets(period):
    robot = load_robot("so101")
    home = np.array(robot.home)
    upwards = 1.5 * np.arange(1, round(1.0 / period) + 1)[:, None] * period
    beyond = home[1] - robot.limits.position_lower[1] + 0.01
    targets = home + np.minimum(upwards, beyond) * np.array([1.0, -1.0, 0.5, 0.0, -0.5])
    executor, end_ns, _ = follow(robot, targets, period)
    way = executor.commanded_path(np.arange(START.stamp_ns, end_ns + NANOSECONDS, 10**7))
    assert np.max(way[:, 0] - targets[-1, 0]) < 2e-3
    np.testing.assert_allclose(way[-1, [0, 2, 3, 4]], targets[-1, [0, 2, 3, 4]], atol=1e-3)


def test_a_far_target():
    far = HOME.copy()
    far[3] += PANDA.max_start_jump + 0.1
    with pytest.raises(PlanRefused, match="panda_joint4.*max_start_jump"):
        plan_target(far, False, START, PANDA)
    plan = plan_target(far, True, START, PANDA)
    np.testing.assert_allclose(plan.positions[-1], far)
    farther = far.copy()
    farther[3] += PANDA.max_start_jump
    with pytest.raises(PlanRefused, match="in a stream"):
        plan_target(farther, True, START, PANDA)
    with pytest.raises(PlanRefused, match="nan rad from the arm"):
        plan_target(far * np.nan, True, START, PANDA)


def test_a_far_target_begins_no_stream():
    far = HOME.copy()
    far[3] += PANDA.max_start_jump + 0.1
    stream = PersonTargets()
    times_ns = START.stamp_ns + np.arange(5) * NANOSECONDS // 50
    for now_ns in times_ns:
        with pytest.raises(PlanRefused, match="max_start_jump"):
            stream.plan(far, now_ns, START, PANDA)
    stream.plan(HOME, times_ns[-1] + 1, START, PANDA)
    with pytest.raises(PlanRefused, match="in a stream"):
        stream.plan(HOME + 1.0, times_ns[-1] + 2, START, PANDA)
    stream.plan(far, times_ns[-1] + 3, START, PANDA)
    for later_ns in (NANOSECONDS, -NANOSECONDS):  # a pause, a clock that went back
        with pytest.raises(PlanRefused, match="max_start_jump"):
            stream.plan(far, times_ns[-1] + later_ns, START, PANDA)


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
