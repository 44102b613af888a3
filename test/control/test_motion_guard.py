"""The last check before a controller:

- admits a command that continues the commanded motion, and records it with its past;
- rejects, and records nothing: not finite, malformed, outside position, speed or acceleration limits, a step in
  position or velocity against the commanded motion, a first command that does not start at rest at the measured pose;
- a stop follows the commanded motion whatever is measured: silence, zeros of a second publisher, a glitch;
- an arm is compared with its command at the measurement's own stamp;
- only this module creates admitted commands, and only adapters publish commands.
"""

import ast
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import robovlms_ros
from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.motion_guard import CommandRejected, MotionGuard
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.schedule import ScheduleConfig
from robovlms_ros.control.scheduler import ChunkScheduler
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    ActionSpec,
    JointPlan,
    RobotState,
    TrajectoryCommand,
)

PANDA = load_robot("panda")
HOME = np.array(PANDA.home)
NOW = 10 * NANOSECONDS
FIRST = np.eye(7)[0]


def ns(seconds):
    return round(seconds * NANOSECONDS)


def move(distance=0.1, duration=1.0, start=HOME, stamp_ns=NOW, joint=FIRST):
    """A motion from rest to rest: greatest speed 1.5 d / T, greatest acceleration 6 d / T^2."""
    positions = np.stack([start, start + distance * joint])
    return TrajectoryCommand(stamp_ns, PANDA.joints, np.array([0.0, duration]), positions, np.zeros((2, 7)))


@pytest.fixture
def guard():
    return MotionGuard(PANDA)


def test_what_continues_the_motion_is_admitted_and_recorded(guard):
    measured = RobotState(NOW, HOME)
    first = guard.admit(move(), NOW, measured)
    assert guard.commanded is None
    guard.record(first, NOW)
    np.testing.assert_array_equal(first.positions, move().positions)
    later = NOW + ns(0.5)
    position, velocity = guard.commanded_at(later)
    times = np.array([0.0, 0.5])
    rest = TrajectoryCommand(
        later,
        PANDA.joints,
        times,
        np.stack([position, position + velocity * 0.25]),
        np.stack([velocity, np.zeros(7)]),
    )
    guard.record(guard.admit(rest, later, None), later)
    # The past stays known, so that an older measurement has its command.
    np.testing.assert_allclose(guard.commanded_at(NOW + ns(0.25))[0][0], HOME[0] + 0.1 * 0.15625)


BAD = {
    "not finite": (replace(move(), positions=np.full((2, 7), np.nan)), "not all finite"),
    "other joints": (replace(move(), joints=PANDA.joints[::-1]), "the robot's joints are"),
    "not at rest at its end": (replace(move(), velocities=np.ones((2, 7))), "does not end at rest"),
    "too fast": (move(2.0, 0.5), "would reach a velocity"),
    "too sudden": (move(0.3, 0.2), "would reach an acceleration"),
    "beyond a limit": (move(10.0, 60.0), "its limit is"),
    "a step": (move(start=HOME + 0.01 * FIRST), "rad/s off the commanded motion"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_safe_is_rejected_with_its_reason(guard, kind):
    command, reason = BAD[kind]
    with pytest.raises(CommandRejected, match=reason):
        guard.admit(command, NOW, RobotState(NOW, HOME))
    assert guard.commanded is None


def test_a_first_command_needs_a_measured_pose(guard):
    for measured in (None, RobotState(NOW, np.full(7, np.nan))):
        with pytest.raises(CommandRejected, match="no believed joint state"):
            guard.admit(move(), NOW, measured)


def test_a_step_in_velocity_against_the_commanded_motion_is_rejected(guard):
    guard.record(guard.admit(move(), NOW, RobotState(NOW, HOME)), NOW)
    later = NOW + ns(0.5)
    position, _ = guard.commanded_at(later)
    with pytest.raises(CommandRejected, match="off the commanded motion"):
        guard.admit(move(0.0, start=position, stamp_ns=later), later, RobotState(later, position))
    np.testing.assert_array_equal(guard.commanded_at(later)[0], position)


@pytest.mark.parametrize("opening", [np.nan, -0.1, 1.1, np.inf])
def test_a_gripper_opening_is_a_number_from_0_to_1(guard, opening):
    assert guard.admit_opening(0.5) == 0.5
    with pytest.raises(CommandRejected, match="allowed is 0"):
        guard.admit_opening(opening)


@pytest.mark.parametrize("age", [0.0, 0.2, 0.3, 0.51])
def test_a_stop_never_steps_back_however_old_the_joint_states_are(age):
    scheduler = ChunkScheduler(PANDA.joints, ScheduleConfig(), PANDA.limits)
    begin = NANOSECONDS
    velocity = 0.9 * FIRST
    times = begin + np.arange(1, 33) * 50_000_000
    positions = HOME + np.outer((times - begin) / 1e9, velocity)
    scheduler.update(
        JointPlan(times, positions, np.tile(velocity, (32, 1))), begin, RobotState(begin, HOME, velocity)
    )
    now = begin + ns(1.1)
    silent = copy.deepcopy(scheduler)
    here = silent.commanded(now)[0]
    # The age of the last joint state cannot matter: no measurement enters a stop.
    assert age >= 0.0
    end = silent.smooth_stop(now).positions[-1][0]
    assert 0.0 < end - here[0] < 0.2


SPEC = ActionSpec("joint_position", "base", "rotation_vector", "chained", 0.05, (*PANDA.joints, "gripper"))


def advancing(seconds):
    steps = seconds - 1.0 + 0.05 * np.arange(1, 17)
    values = np.hstack([HOME + 0.1 * steps[:, None], np.ones((16, 1))])
    return ActionChunk(ns(seconds), values, SPEC, "lift", "test")


def arm(seconds, positions):
    return RobotState(ns(seconds), positions, np.zeros(7))


def test_a_stop_after_zeros_of_a_second_publisher_follows_the_commanded_motion():
    executor = build_executor(PANDA, None)
    for t in (1.0, 1.15, 1.3):
        place = HOME + 0.1 * (t - 1.0)
        executor.on_chunk(advancing(t), arm(t, place), arm(t + 0.1, place), ns(t + 0.1))
    zeros = arm(1.55, np.zeros(7))
    decision = executor.on_chunk(advancing(1.45), arm(1.45, HOME + 0.045), zeros, ns(1.55))
    assert decision.command is None
    before = executor.commanded(ns(1.55))[0]
    stop = executor.smooth_stop(ns(1.55))
    np.testing.assert_allclose(executor.commanded(ns(1.55))[0], before, rtol=0, atol=1e-9)
    assert np.abs(stop.positions - before).max() < 0.05


def test_a_measurement_is_compared_with_the_command_at_its_own_stamp():
    executor = build_executor(replace(PANDA, gate=replace(PANDA.gate, speed_scaling_ramp=0.0)), None)
    speed = 0.5
    line = lambda t: HOME + speed * (t - 1.0) * FIRST  # noqa: E731

    def chunk(t):
        positions = np.stack([line(t + 0.05 * k) for k in range(1, 17)])
        return ActionChunk(ns(t), np.hstack([positions, np.ones((16, 1))]), SPEC, "lift", "test")

    executor.on_chunk(chunk(1.0), arm(1.0, HOME), arm(1.0, HOME), ns(1.0))
    for t in np.arange(1.1, 3.0, 0.1):
        # The joint states are 0.45 s old: 0.23 rad behind, more than max_start_jump, yet on the commanded path.
        old = max(1.0, t - 0.45)
        decision = executor.on_chunk(chunk(t), arm(t, line(t)), arm(old, executor.commanded(ns(old))[0]), ns(t))
        assert decision.command is not None, decision.verdict.reason


@pytest.mark.parametrize("slow", [1, 2])
def test_a_command_that_took_longer_than_its_lead_is_computed_again_or_refused(slow):
    executor = build_executor(replace(PANDA, gate=replace(PANDA.gate, speed_scaling_ramp=0.0)), None)
    readings = []

    def clock():
        """30 ms for each of the first tries, 1 ms afterwards; with two slow ones, 300 ms for the second."""
        readings.append(None)
        late = {1: [30, 30, 31], 2: [30, 30, 330]}[slow]
        return ns(1.0) + late[min(len(readings), 3) - 1] * 1_000_000

    decision = executor.on_chunk(advancing(1.0), arm(1.0, HOME), arm(1.0, HOME), ns(1.0), clock=clock)
    if slow == 2:
        assert decision.command is None and "too late" in decision.verdict.reason
        assert executor.commanded(ns(1.0)) is None
        return
    command = decision.command
    times = command.stamp_ns + np.round(command.times * NANOSECONDS).astype(np.int64)
    moved = np.abs(command.positions - HOME).max(axis=1) > 1e-9
    # 30 ms were spent: the second try leads by twice that and the lead.
    assert times[moved].min() >= ns(1.03) + ns(0.08)


SENDERS = ("publish", "send_goal_async", "send_goal")


def test_no_caller_goes_around_the_guard():
    """By reading the sources: who creates admitted commands, who sends, and who imports the adapters."""
    root = Path(robovlms_ros.__path__[0])
    creators, senders, builders = set(), set(), set()
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text())
        name = str(path.relative_to(root))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("AdmittedCommand", "AdmittedOpening"):
                creators.add(name)
            if called in ("make_arm", "make_gripper"):
                builders.add(name)
            if called in SENDERS and name.startswith("ros/controllers"):
                senders.add(name)
            if called in ("create_publisher", "ActionClient") and "/controllers/" not in name:
                kinds = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                commands = {"JointTrajectory", "TwistStamped", "PoseStamped", "Float64MultiArray", "ActionClient"}
                # Arms, recordings, measurements, and the motion shown on ~/planned_trajectory.
                peers = (
                    "bench/faults", "sim/nodes/sim_arm", "ros/player", "bench/node",
                    "ros/decision_publisher",
                )
                assert not kinds & commands or name.startswith(peers), name
    assert creators == {"control/motion_guard.py"}
    assert builders == {"ros/vla_node.py"}
    assert senders <= {f"ros/controllers/{part}.py" for part in ("actions", "servo", "streaming", "trajectory_topic")}
