"""The one way from chunks to commands.

- a chunk becomes a command that the controller takes, and the running plan is what the gate let through;
- whatever cannot be planned, scheduled or passed is refused with the reason, counted, and commands nothing;
- the gripper follows the step under way, with hysteresis and a shortest time between changes;
- a stop is smooth, ends what was planned, and the next chunk continues from it;
- reset starts at the measured state; restart continues the commanded motion while it runs, or where the arm rests at
  its end;
- an arm that moves though nothing is commanded does not start;
- a dry run judges a chunk as if the arm had followed so far, and begins again at the arm where it is elsewhere;
"""

import dataclasses

import numpy as np
import pytest

from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.motion_guard import CommandRejected
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.schedule import ScheduleRefused, latency_excess
from robovlms_ros.control.trajectory_controller_model import TrajectoryController
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, RobotState

STEP = 0.05


def ns(seconds):
    return round(seconds * NANOSECONDS)


@pytest.fixture(scope="module")
def robot():
    panda = load_robot("panda")
    limits = dataclasses.replace(panda.limits, workspace=None)
    return dataclasses.replace(panda, limits=limits, gate=dataclasses.replace(panda.gate, speed_scaling_ramp=0.0))


@pytest.fixture
def executor(robot):
    return build_executor(robot, None)


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
    times = 1.0 + np.linspace(0.0, robot.gate.refusal_time, robot.gate.max_refusals)
    verdicts = [executor.on_chunk(bad, at(robot, 1.0), at(robot, t), ns(t)).verdict for t in times]
    assert [v.deactivate for v in verdicts] == [False] * (len(verdicts) - 1) + [True]


def test_many_refusals_within_a_moment_are_no_reason_to_deactivate(executor, robot):
    bad = chunk(robot, 1.0, reach(robot, 1.0) * np.nan)
    for tick in range(2 * robot.gate.max_refusals):
        t = 1.0 + tick / 28.0
        assert not executor.on_chunk(bad, at(robot, 1.0), at(robot, t), ns(t)).verdict.deactivate


def test_the_gripper_follows_the_step_under_way(executor, robot):
    closing = chunk(robot, 1.0, reach(robot, 1.0), gripper=np.where(np.arange(16) < 8, 1.0, 0.0))
    assert executor.gripper_at(ns(1.0)) is None
    assert executor.on_chunk(closing, at(robot, 1.0), at(robot, 1.1), ns(1.1)).gripper == 1.0
    # Steps 0 to 7 (open) are targets up to 1.0 + 8 * 0.05.
    seen = {t: executor.gripper_at(ns(t)) for t in (1.2, 1.39, 1.41, 1.7, 5.0)}
    assert list(seen.values()) == [1.0, 1.0, 0.0, 0.0, 0.0]
    executor.smooth_stop(ns(5.0))
    assert executor.gripper_at(ns(5.1)) == 0.0
    executor.reset()
    assert executor.gripper_at(ns(5.2)) is None


def test_a_persons_opening_stays_until_the_next_chunk(executor, robot):
    assert executor.set_opening(0.5, ns(0.5)) is None
    executor.on_chunk(chunk(robot, 1.0, reach(robot, 1.0)), at(robot, 1.0), at(robot, 1.1), ns(1.1))
    assert executor.set_opening(0.0, ns(1.4)) == 0.0
    assert executor.gripper_at(ns(1.8)) == 0.0
    later = chunk(robot, 1.8, reach(robot, 1.8))
    assert executor.on_chunk(later, at(robot, 1.8), at(robot, 1.9), ns(1.9)).gripper == 1.0


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
            controller.accept(executor.smooth_stop(now), now)
        commands.append(controller.update(now, 2_000_000, measured.positions, np.zeros(7))[0])
    commands = np.array(commands)
    assert [v.kind for v in verdicts] == ["pass"] * 3, verdicts
    assert np.abs(np.diff(commands, axis=0)).max() < 0.001
    np.testing.assert_array_equal(commands[290], commands[299])
    assert commands[299, 0] < commands[-1, 0]


def test_a_stop_without_a_commanded_motion_is_refused(executor, robot):
    with pytest.raises(ScheduleRefused, match="no motion is commanded"):
        executor.smooth_stop(ns(1.0))


def test_reset_starts_at_the_measured_state(executor, robot):
    executor.on_chunk(chunk(robot, 1.0, reach(robot, 1.0)), at(robot, 1.0), at(robot, 1.1), ns(1.1))
    executor.reset()
    moved = at(robot, 1.2, 0.05)
    decision = executor.on_chunk(chunk(robot, 1.2, reach(robot, 1.2)), moved, moved, ns(1.2))
    np.testing.assert_array_equal(decision.command.positions[0], moved.positions)


@pytest.mark.parametrize("replan", [25, 50, 100])
def test_absolute_targets_beside_the_arm_are_reached_however_often_they_come(executor, robot, replan):
    """The way from the measured arm to an absolute target is no part of the policy's motion."""
    amplitude = np.array([0.33, 0.18, -0.3, 0.18, 0.3, -0.18, 0.36])

    def path(t):
        return np.array(robot.home) + amplitude * (1 - np.cos(2.4 * np.asarray(t)[..., None]))

    controller, commands, pending = TrajectoryController(robot.joints), [np.array(robot.home)] * 11, []
    for tick in range(1500):
        now, t = ns(100.0) + tick * 2_000_000, 0.3 + 0.002 * tick
        measured = RobotState(now, commands[-11])
        if tick % replan == 0:
            source = chunk(robot, 100.0 + 0.002 * tick, path(t + STEP * np.arange(1, 17)))
            pending.append((tick + replan // 2, source, measured))
        while pending and pending[0][0] <= tick:
            _, source, seen = pending.pop(0)
            decision = executor.on_chunk(source, seen, measured, now)
            assert decision.command is not None, decision.verdict.reason
            controller.accept(decision.command, now)
        commands.append(controller.update(now, 2_000_000, measured.positions, np.zeros(7))[0])
    times = 0.3 + 0.002 * np.arange(1490, 1500)
    assert np.abs(np.array(commands[-10:]) - path(times + 0.002)).max() < 0.02


def test_a_restart_continues_the_motion_under_way(executor, robot):
    executor.on_chunk(chunk(robot, 1.0, reach(robot, 1.0)), at(robot, 1.0), at(robot, 1.1), ns(1.1))
    executor.smooth_stop(ns(1.5))
    before = executor.commanded(ns(1.55))
    executor.restart()
    measured = RobotState(ns(1.55), before[0] - 0.01)
    source = chunk(robot, 1.5, reach(robot, 1.5))
    executor.on_chunk(source, measured, measured, ns(1.55), speed=np.full(7, 0.2))
    after = executor.commanded(ns(1.55))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("offset", "kept"), [(0.01, True), (0.03, False)])
def test_a_restart_at_rest_continues_from_the_command_unless_the_arm_is_elsewhere(executor, robot, offset, kept):
    executor.on_chunk(chunk(robot, 1.0, reach(robot, 1.0)), at(robot, 1.0), at(robot, 1.1), ns(1.1))
    end = executor.commanded(ns(9.0))[0]
    executor.restart()
    measured = RobotState(ns(9.0), end + offset)
    source = chunk(robot, 9.0, measured.positions + 0.1 * STEP * np.arange(1, 17)[:, None])
    executor.on_chunk(source, measured, measured, ns(9.0), speed=np.zeros(7))
    wanted = end if kept else measured.positions
    np.testing.assert_allclose(executor.commanded(ns(9.0))[0], wanted, rtol=0, atol=1e-9)


def test_a_restart_while_a_stop_runs_starts_at_an_arm_that_was_taken_elsewhere(executor, robot):
    executor.on_chunk(chunk(robot, 1.0, reach(robot, 1.0)), at(robot, 1.0), at(robot, 1.1), ns(1.1))
    executor.smooth_stop(ns(1.5))
    executor.restart()
    assert executor.commanded(ns(1.52)) is None
    elsewhere = RobotState(ns(1.52), np.array(robot.home) + robot.max_start_jump + 0.2)
    source = chunk(robot, 1.5, elsewhere.positions + 0.1 * STEP * np.arange(1, 17)[:, None])
    moving = executor.on_chunk(source, elsewhere, elsewhere, ns(1.52), speed=np.full(7, 0.3))
    assert moving.command is None
    decision = executor.on_chunk(source, elsewhere, elsewhere, ns(1.52), speed=np.zeros(7))
    np.testing.assert_array_equal(decision.command.positions[0], elsewhere.positions)


def test_a_motion_from_before_a_clock_that_went_back_is_forgotten(executor, robot):
    later = at(robot, 100.0)
    executor.on_chunk(chunk(robot, 100.0, reach(robot, 100.0, since=100.0)), later, later, ns(100.1))
    earlier = at(robot, 1.0, 0.05)
    source = chunk(robot, 1.0, reach(robot, 1.0) + 0.05)
    moving = executor.on_chunk(source, earlier, earlier, ns(1.0), speed=np.full(7, 0.3))
    assert moving.command is None and "a motion starts from rest" in moving.verdict.reason
    decision = executor.on_chunk(source, earlier, earlier, ns(1.0), speed=np.zeros(7))
    np.testing.assert_array_equal(decision.command.positions[0], earlier.positions)


def test_an_arm_that_moves_though_nothing_is_commanded_does_not_start(executor, robot):
    for speed in (np.full(7, 0.06), np.full(7, np.inf), np.full(7, np.nan)):
        home = at(robot, 1.0)
        decision = executor.on_chunk(chunk(robot, 1.0, reach(robot, 1.0)), home, home, ns(1.1), speed=speed)
        assert decision.command is None
        assert "motion starts from rest" in decision.verdict.reason
        assert ("not known" in decision.verdict.reason) == (not np.isfinite(speed).all())
    assert executor.gate.refusals == 0


def test_a_dry_run_is_judged_as_if_the_arm_had_followed(executor, robot):
    """Points that the live arm would receive for chunks that agree with the arm's real position."""
    live = build_executor(robot, None)
    for stamp in (1.0, 1.2, 1.4, 1.6, 2.2, 2.6, 2.8):
        now = ns(stamp + 0.1)
        place = np.array(robot.home) + 0.05 * np.sin(stamp)
        seen = RobotState(ns(stamp), place)
        source = chunk(robot, stamp, place + 0.1 * STEP * np.arange(1, 17)[:, None])
        followed = live.commanded(now)
        measured = RobotState(now, place if followed is None else followed[0])
        wanted = live.on_chunk(source, seen, measured, now)
        got = executor.dry_run_chunk(source, seen, RobotState(now, place), now)
        assert (got.verdict.kind, got.verdict.reason) == (wanted.verdict.kind, wanted.verdict.reason)
        np.testing.assert_array_equal(got.command.positions, wanted.command.positions)
        np.testing.assert_array_equal(got.command.times, wanted.command.times)
    assert got.verdict.kind == "pass"


def test_a_dry_run_begins_again_at_an_arm_that_went_elsewhere_or_after_a_refusal():
    robot = load_robot("panda")
    executor = build_executor(robot, None)

    def told(stamp, offset, gripper=1.0):
        at_arm = at(robot, stamp, offset)
        source = chunk(robot, stamp, at_arm.positions + 0.05 * STEP * np.arange(1, 17)[:, None] * gripper)
        return executor.dry_run_chunk(source, at_arm, at_arm, ns(stamp))

    told(1.0, 0.0)
    moved = told(1.2, robot.max_start_jump + 0.1)
    np.testing.assert_array_equal(moved.command.positions[0], at(robot, 1.2, robot.max_start_jump + 0.1).positions)
    assert told(1.4, robot.max_start_jump + 0.1, np.nan).verdict.kind == "refuse"
    again = told(1.6, robot.max_start_jump + 0.12)
    np.testing.assert_array_equal(again.command.positions[0], at(robot, 1.6, robot.max_start_jump + 0.12).positions)
    assert executor.gate.refusals == 0 and executor.gate.speed_scaling_at(ns(1.6)) == pytest.approx(0.6)


def test_the_latency_that_the_robot_allows_is_checked_before_it_moves(robot):
    assert latency_excess(robot, robot.max_latency) is None
    text = latency_excess(robot, 1.25)
    assert "1.250 s pass from an image" in text and "max_latency = 1.0 s" in text
    with pytest.raises(ConfigError, match=r"max_latency = 0\.4: must be 0\.5 \(max_age\) or more"):
        dataclasses.replace(robot, max_latency=0.4)


@pytest.mark.parametrize(("spent", "until"), [(0.0, 0.02), (0.03, 0.11)], ids=["in time", "late"])
def test_a_stop_that_takes_long_begins_after_it_arrives(executor, robot, spent, until):
    """It leaves the running plan `until` s after now or later: the lead, or that and twice the time spent."""
    home = at(robot, 0.9)
    executor.on_chunk(chunk(robot, 0.9, reach(robot, 0.9, since=0.9)), home, at(robot, 0.95), ns(0.95))
    before = executor.guard.commanded
    calls = iter((ns(1.2 + spent), ns(1.2 + spent)))
    executor.smooth_stop(ns(1.2), lambda: next(calls))
    after = executor.guard.commanded
    kept = np.array([ns(1.2 + until)])
    np.testing.assert_allclose(after(kept)[0], before(kept)[0], rtol=0, atol=1e-9)
    later = kept + ns(0.1)
    assert np.abs(after(later)[0] - before(later)[0]).max() > 1e-4


def test_a_stop_that_always_comes_too_late_is_not_sent(executor, robot):
    home = at(robot, 0.9)
    executor.on_chunk(chunk(robot, 0.9, reach(robot, 0.9, since=0.9)), home, at(robot, 0.95), ns(0.95))
    before = executor.guard.commanded
    calls = iter(ns(1.2 + 0.3 * 4**count) for count in range(3))
    with pytest.raises(CommandRejected, match=r"took 3600 ms .* would arrive too late.* ends at rest by itself"):
        executor.smooth_stop(ns(1.2), lambda: next(calls))
    assert executor.guard.commanded is before
