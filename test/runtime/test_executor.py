"""The one way from chunks to commands.

- a chunk becomes a command that the controller takes, and the running plan is what the gate let through;
- whatever cannot be planned, scheduled or passed is refused with the reason, counted, and commands nothing;
- the gripper follows the step under way, with hysteresis and a shortest time between changes;
- a stop is smooth, ends what was planned, and the next chunk continues from it;
- reset starts at the measured state.
"""

import dataclasses

import numpy as np
import pytest

from robovlms_ros.runtime.executor import ChunkExecutor
from robovlms_ros.runtime.gate import SafetyGate
from robovlms_ros.runtime.gripper import GripperSwitch
from robovlms_ros.runtime.robot import load_robot
from robovlms_ros.runtime.scheduler import ChunkScheduler, ScheduleRefused
from robovlms_ros.sim.trajectory_controller import TrajectoryController
from robovlms_ros.types import NANOSECONDS, ActionChunk, ActionSpec, RobotState

STEP = 0.05


def ns(seconds):
    return round(seconds * NANOSECONDS)


@pytest.fixture(scope="module")
def robot():
    panda = load_robot("panda")
    limits = dataclasses.replace(panda.limits, workspace=None)
    return dataclasses.replace(panda, limits=limits, gate=dataclasses.replace(panda.gate, authority_ramp=0.0))


@pytest.fixture
def executor(robot):
    return ChunkExecutor(robot, None, ChunkScheduler(robot.joints, limits=robot.limits), SafetyGate(robot))


def chunk(robot, stamp, positions, gripper=1.0):
    names = (*robot.joints, "gripper")
    spec = ActionSpec("joint_position", "base", "rotation_vector", "chained", STEP, names)
    opening = np.broadcast_to(gripper, (len(positions),))[:, None]
    return ActionChunk(ns(stamp), np.hstack([positions, opening]), spec, "lift", "test")


def reach(robot, stamp, steps=16, speed=0.2, since=1.0):
    """Targets that move every joint from home at a speed (rad/s), beginning at `since`."""
    t = stamp - since + STEP * np.arange(1, steps + 1)
    return np.array(robot.home) + speed * t[:, None]


def at(robot, t, offset=0.0):
    home = np.array(robot.home)
    return RobotState(ns(t), home + offset, np.zeros_like(home))


def test_a_chunk_becomes_a_command_that_the_controller_takes(executor, robot):
    controller = TrajectoryController(robot.joints)
    for stamp in (1.0, 1.15, 1.3):
        offset = 0.2 * (stamp - 1.0)
        measured = at(robot, stamp + 0.1, offset)
        decision = executor.on_chunk(
            chunk(robot, stamp, reach(robot, stamp)), at(robot, stamp, offset), measured, ns(stamp + 0.1)
        )
        assert (decision.verdict.kind, decision.verdict.reason) == ("pass", "")
        controller.accept(decision.command, ns(stamp + 0.1))
        assert decision.plan is not None and decision.gripper == 1.0
    expected = np.array(robot.home) + 0.2 * 0.8
    np.testing.assert_allclose(executor.commanded(ns(1.8))[0], expected, rtol=0, atol=1e-3)


def refusals(robot):
    home, good = at(robot, 1.0), reach(robot, 1.0)
    broken = good.copy()
    broken[2, 3] = np.nan
    short = chunk(robot, 1.0, good[:2])
    return {
        "not finite": (chunk(robot, 1.0, broken), home, 1.1, "not finite"),
        "wholly past": (short, home, 1.4, "due 0.320 s before"),
        "joints missing": (dataclasses.replace(short, values=short.values[:, 1:]), home, 1.1, "shape"),
    }


@pytest.mark.parametrize("name", ["not finite", "wholly past", "joints missing"])
def test_a_refused_chunk_commands_nothing_and_counts(executor, robot, name):
    executor.on_chunk(chunk(robot, 0.9, reach(robot, 0.9, since=0.9)), at(robot, 0.9), at(robot, 0.95), ns(0.95))
    before = executor.commanded(ns(1.5))
    bad, state, now, reason = refusals(robot)[name]
    decision = executor.on_chunk(bad, state, at(robot, now), ns(now))
    assert decision.verdict.kind == "refuse" and reason in decision.verdict.reason
    assert decision.command is None and decision.gripper is None
    assert executor.gate.refusals == 1
    np.testing.assert_array_equal(executor.commanded(ns(1.5)), before)


def test_what_the_gate_refuses_is_not_the_running_plan(executor, robot):
    stale = at(robot, 1.0 - robot.max_age - 1.0)
    decision = executor.on_chunk(chunk(robot, 1.0, reach(robot, 1.0)), at(robot, 1.0), stale, ns(1.1))
    assert decision.verdict.kind == "refuse" and "joint states" in decision.verdict.reason
    assert executor.commanded(ns(1.2)) is None


def test_what_the_gate_clamped_is_the_running_plan(executor, robot):
    targets = np.tile(robot.home, (16, 1))
    targets[:, 0] += 1.2 * robot.limits.velocity[0] * STEP * np.arange(1, 17)
    decision = executor.on_chunk(chunk(robot, 1.0, targets), at(robot, 1.0), at(robot, 1.0), ns(1.0))
    assert decision.verdict.kind == "clamp", decision.verdict.reason
    times = ns(1.0) + np.arange(0, ns(0.9), 2_000_000)
    speeds = np.array([executor.commanded(int(t))[1] for t in times])
    assert np.all(np.abs(speeds).max(axis=0) <= np.array(robot.limits.velocity) * 1.01)


def test_many_refusals_ask_for_deactivation(executor, robot):
    bad = chunk(robot, 1.0, reach(robot, 1.0) * np.nan)
    verdicts = [
        executor.on_chunk(bad, at(robot, 1.0), at(robot, 1.0), ns(1.0)).verdict for _ in range(robot.gate.max_refusals)
    ]
    assert [v.deactivate for v in verdicts] == [False] * (len(verdicts) - 1) + [True]


def test_the_gripper_follows_the_step_under_way(executor, robot):
    closing = chunk(robot, 1.0, reach(robot, 1.0), gripper=np.where(np.arange(16) < 8, 1.0, 0.0))
    assert executor.gripper_at(ns(1.0)) is None
    assert executor.on_chunk(closing, at(robot, 1.0), at(robot, 1.1), ns(1.1)).gripper == 1.0
    # Steps 0 to 7 (open) are targets up to 1.0 + 8 * 0.05.
    seen = {t: executor.gripper_at(ns(t)) for t in (1.2, 1.39, 1.41, 1.7, 5.0)}
    assert list(seen.values()) == [1.0, 1.0, 0.0, 0.0, 0.0]
    executor.stop(ns(5.0), at(robot, 5.0))
    assert executor.gripper_at(ns(5.1)) == 0.0
    executor.reset()
    assert executor.gripper_at(ns(5.2)) is None


def test_gripper_changes_need_a_threshold_and_a_rest(robot):
    switch = GripperSwitch(robot.gripper)
    low, high, dwell = robot.gripper.close_below, robot.gripper.open_above, robot.gripper.dwell
    middle = (low + high) / 2
    assert switch.update(middle, 0) is None
    assert switch.update(high, 0) == 1.0
    assert switch.update(low + 0.01, ns(dwell)) == 1.0
    assert switch.update(low, ns(dwell / 2)) == 1.0
    assert switch.update(low, ns(dwell)) == 0.0
    assert switch.update(middle, ns(2 * dwell)) == 0.0


def test_a_stop_is_smooth_and_the_next_chunk_continues_from_it(executor, robot):
    controller, commands, verdicts = TrajectoryController(robot.joints), [], []
    state = at(robot, 1.0)
    for tick in range(600):
        now = ns(1.0) + tick * 2_000_000
        measured = state if not commands else RobotState(now, commands[max(0, tick - 20)])
        measured = dataclasses.replace(measured, stamp_ns=now)
        if tick in (0, 75, 300):
            source = chunk(robot, now / NANOSECONDS, measured.positions + 0.2 * STEP * np.arange(1, 17)[:, None])
            decision = executor.on_chunk(source, measured, measured, now)
            verdicts.append(decision.verdict)
            controller.accept(decision.command, now)
        if tick == 200:
            controller.accept(executor.stop(now, measured), now)
        commands.append(controller.update(now, 2_000_000, measured.positions, np.zeros(7))[0])
    commands = np.array(commands)
    assert [v.kind for v in verdicts] == ["pass"] * 3, verdicts
    assert np.abs(np.diff(commands, axis=0)).max() < 0.001
    np.testing.assert_array_equal(commands[290], commands[299])
    assert commands[299, 0] < commands[-1, 0]


def test_a_stop_without_plan_and_measurement_is_refused(executor, robot):
    with pytest.raises(ScheduleRefused, match="measured positions"):
        executor.stop(ns(1.0), RobotState(ns(1.0), np.full(7, np.nan)))


def test_reset_starts_at_the_measured_state(executor, robot):
    executor.on_chunk(chunk(robot, 1.0, reach(robot, 1.0)), at(robot, 1.0), at(robot, 1.1), ns(1.1))
    executor.reset()
    moved = at(robot, 1.2, 0.05)
    decision = executor.on_chunk(chunk(robot, 1.2, reach(robot, 1.2)), moved, moved, ns(1.2))
    np.testing.assert_array_equal(decision.command.positions[0], moved.positions)
