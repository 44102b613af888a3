"""Chunks become one motion.

- a message starts with our own previous plan's past points, ends at rest, and its times strictly increase;
- a chunk is placed by its observation's stamp, past steps dropped, whatever the latency;
- the first chunk starts at the measured state; after `reset` so does the next;
- a policy that repeats itself is followed exactly; noise is averaged; a changed intent or instruction is followed;
- a stop leads along the plan within the acceleration limits, wherever the arm is measured;
- a stop that arrives late still stops the arm;
- refused: a chunk that is wholly past, values that are not finite; the running plan stays as it was;
- what was committed, clamped perhaps, is what the next message continues;
- the horizon check names its numbers.
"""

import numpy as np
import pytest

from robovlms_ros.control.robot import JointLimits
from robovlms_ros.control.schedule import ScheduleConfig, ScheduleRefused, horizon_shortfall
from robovlms_ros.control.scheduler import ChunkScheduler
from robovlms_ros.control.trajectory import central_differences
from robovlms_ros.control.trajectory_controller_model import TrajectoryController
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    ActionSpec,
    JointPlan,
    RobotState,
    TrajectoryCommand,
)

SPEC = ActionSpec("joint_position", "base", "rotation_vector", "chained", 1 / 30)
STRATEGIES = ("first", "receding", "ensemble", "fade", "blend")
TICK_NS = 2_000_000
JOINTS = ("a", "b")


def ns(seconds):
    return round(seconds * NANOSECONDS)


def state(t, *positions):
    return RobotState(ns(t), np.array(positions))


def intent(t):
    return np.stack([0.5 * np.sin(2.5 * t), 0.3 * np.cos(1.7 * t)], axis=-1)


def chunk(stamp, bias=0.0, horizon=30, rate=30, instruction="lift", path=intent):
    t = stamp + np.arange(1, horizon + 1) / rate
    positions = path(t) + bias
    source = ActionChunk(ns(stamp), positions, SPEC, instruction, "test")
    times_ns = np.round(t * NANOSECONDS).astype(np.int64)
    return JointPlan(times_ns, positions, central_differences(times_ns, positions), chunk=source)


def execute(scheduler, plans, until=3.0, latency=0.15, begin=1.0):
    """Commands (ticks, J) of a default controller with 40 ms of plant lag, sent each plan `latency` after its stamp."""
    controller, commands = TrajectoryController(JOINTS), []
    waiting = list(plans)
    for tick in range(round((until - begin) / 0.002)):
        now = ns(begin) + tick * TICK_NS
        measured = commands[tick - 20] if tick >= 20 else intent(np.array(begin))
        while waiting and waiting[0].chunk.stamp_ns + ns(latency) <= now:
            controller.accept(scheduler.update(waiting.pop(0), now, RobotState(now, measured)), now)
        commands.append(controller.update(now, TICK_NS, measured, np.zeros(2))[0])
    return np.array(commands)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_biased_chunks_reach_the_arm_without_a_step(strategy):
    rng = np.random.default_rng(3)
    plans = [chunk(stamp, rng.normal(0, 0.02, 2)) for stamp in np.arange(0.9, 3.0, 0.15)]
    commands = execute(ChunkScheduler(JOINTS, ScheduleConfig(strategy)), plans)
    steps = np.abs(np.diff(commands[300:], axis=0)).max(axis=0)
    # A hard switch between biased chunks within one step of 33 ms moves at most a few times the intent's own speed;
    # a step back to the lagging measured state would be 40 ms of motion, 50 mrad, in one tick.
    assert steps.max() < {"fade": 0.004, "blend": 0.0035}.get(strategy, 0.03)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_messages_begin_in_the_past_on_the_running_plan_and_end_at_rest(strategy):
    scheduler = ChunkScheduler(JOINTS, ScheduleConfig(strategy))
    for stamp in (1.0, 1.15, 1.3, 1.45):
        now = ns(stamp + 0.1)
        before = [scheduler.commanded(now + ns(ahead)) for ahead in (0.0, 0.01, 0.02)]
        command = scheduler.update(chunk(stamp, bias=0.1 * stamp), now, state(stamp, 0.0, 0.3))
        after = [scheduler.commanded(now + ns(ahead)) for ahead in (0.0, 0.01, 0.02)]
        assert command.stamp_ns <= now
        assert command.times[0] == 0 and np.all(np.diff(command.times) > 0)
        assert np.all(command.velocities[-1] == 0)
        if before[0] is not None:
            np.testing.assert_allclose(after, before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("latency", [0.0, 0.05, 0.3, 0.7])
def test_a_chunk_is_executed_at_the_times_it_was_made_for(latency):
    scheduler = ChunkScheduler(JOINTS)
    now = ns(1.0 + latency)
    scheduler.update(chunk(1.0), now, RobotState(now, intent(np.array(1.0 + latency))))
    for t in np.arange(1.0 + latency + 0.3, 1.95, 0.01):
        np.testing.assert_allclose(scheduler.commanded(ns(t))[0], intent(t), rtol=0, atol=1e-4)


def test_the_first_chunk_and_the_first_after_reset_start_at_the_measured_state():
    scheduler = ChunkScheduler(JOINTS)
    for measured in (state(1.0, 0.11, 0.22), state(1.0, -0.4, 0.5)):
        scheduler.reset()
        assert scheduler.commanded(ns(1.0)) is None
        command = scheduler.update(chunk(1.0), ns(1.1), measured)
        np.testing.assert_array_equal(command.positions[0], measured.positions)
        np.testing.assert_array_equal(command.velocities[0], 0)
        np.testing.assert_array_equal(scheduler.commanded(ns(1.1))[0], measured.positions)


def test_a_policy_that_repeats_itself_is_followed_exactly():
    commands = execute(ChunkScheduler(JOINTS), [chunk(stamp) for stamp in np.arange(0.9, 3.0, 0.1)])
    times = 1.0 + 0.002 * np.arange(1, len(commands) + 1)
    np.testing.assert_allclose(commands[300:], intent(times)[300:], rtol=0, atol=5e-4)


def test_noise_is_averaged_and_a_changed_intent_is_followed_at_once():
    rng = np.random.default_rng(5)
    stamps = np.arange(0.9, 5.0, 0.15)
    noise = rng.normal(0, 0.02, (len(stamps), 2))
    change = np.where(stamps > 3.0, 0.3, 0.0)
    plans = [chunk(s, n + c, path=lambda t: 0 * intent(t)) for s, n, c in zip(stamps, noise, change, strict=True)]
    commands = execute(ChunkScheduler(JOINTS), plans, until=4.5)
    assert np.std(commands[500:1000], axis=0).max() < 0.012
    arrived = round((stamps[stamps > 3.0][0] + 0.15 - 1.0) / 0.002)
    assert np.all(commands[arrived + 250] > 0.24)
    assert np.all(np.abs(np.diff(commands, axis=0)) < 0.006)


def test_a_new_instruction_replaces_the_plan_within_one_inference_without_a_step():
    scheduler = ChunkScheduler(JOINTS)
    plans = [chunk(stamp, 0.02 * (-1) ** i) for i, stamp in enumerate(np.arange(0.9, 1.9, 0.15))]
    switch = float(plans[-1].chunk.stamp_ns) / NANOSECONDS + 0.15
    plans.append(chunk(switch, 0.06, instruction="push"))
    commands = execute(scheduler, plans, until=switch + 0.9)
    settled = round((switch + 0.15 + 0.02 + 0.25 - 1.0) / 0.002) + 10
    times = 1.0 + 0.002 * np.arange(1, len(commands) + 1)
    np.testing.assert_allclose(commands[settled:], (intent(times) + 0.06)[settled:], rtol=0, atol=5e-4)
    assert np.abs(np.diff(commands, axis=0)).max() < 0.0045


LIMITS = JointLimits((-3.0, -3.0), (3.0, 3.0), (2.0, 2.0), (5.0, 5.0), 1.0)


def test_a_stop_follows_the_plan_within_the_acceleration_limits():
    scheduler = ChunkScheduler(JOINTS, limits=LIMITS)

    def line(t):
        return np.stack([1.2 * t, -0.6 * t], axis=-1)

    controller = TrajectoryController(JOINTS)
    commands = []
    for tick in range(650):
        now = ns(1.0) + tick * TICK_NS
        measured = RobotState(now, commands[-1] if commands else line(np.array(1.0)))
        if tick % 75 == 0 and tick < 225:
            controller.accept(scheduler.update(chunk(now / NANOSECONDS - 0.1, path=line), now, measured), now)
        if tick == 240:
            controller.accept(scheduler.smooth_stop(now), now)
        commands.append(controller.update(now, TICK_NS, measured.positions, np.zeros(2))[0])
    commands = np.array(commands)
    acceleration = np.diff(commands, n=2, axis=0) / 0.002**2
    assert np.abs(acceleration[235:]).max() < 5.0 * 1.02
    assert np.abs(np.diff(commands, axis=0))[-50:].max() == 0
    # On the plan's own line, past where the stop was asked for and short of where the plan was going.
    np.testing.assert_allclose(commands[-1, 0] / commands[-1, 1], -2.0, atol=0.02)
    assert commands[240, 0] < commands[-1, 0] < 1.2 * 1.9


def test_a_stop_without_a_commanded_motion_is_refused():
    scheduler = ChunkScheduler(JOINTS)
    with pytest.raises(ScheduleRefused, match="no motion is commanded"):
        scheduler.smooth_stop(ns(1.0))
    scheduler.update(chunk(1.0), ns(1.0), state(1.0, 0.0, 0.3))
    scheduler.reset()
    with pytest.raises(ScheduleRefused, match="no motion is commanded"):
        scheduler.smooth_stop(ns(1.0))


def test_a_plan_that_runs_out_comes_to_rest_within_the_limits():
    scheduler = ChunkScheduler(JOINTS, limits=JointLimits((-3.0, -3.0), (3.0, 0.31), (2.0, 2.0), (5.0, 5.0), 1.0))

    def path(t):
        return np.stack([1.0 * (t - 1.0), np.minimum(0.3, 0.3 * (t - 1.0))], axis=-1)

    command = scheduler.update(chunk(1.0, path=path), ns(1.0), state(1.0, 0.0, 0.0))
    times = np.arange(ns(1.9), ns(2.6), TICK_NS)
    positions = np.array([scheduler.commanded(t)[0] for t in times])
    assert command.positions[:, 1].max() <= 0.31 and positions[:, 1].max() <= 0.3101
    assert np.abs(np.diff(positions[:, 0], n=2)).max() / 0.002**2 < 5.5
    assert ns(2.0) == scheduler.covered_until_ns < command.stamp_ns + ns(command.times[-1])


def test_refused_chunks_leave_the_running_plan_alone():
    scheduler = ChunkScheduler(JOINTS)
    scheduler.update(chunk(1.0), ns(1.1), state(1.1, 0.0, 0.3))
    before = scheduler.commanded(ns(1.5))
    with pytest.raises(ScheduleRefused, match=r"due 0\.320 s before"):
        scheduler.update(chunk(1.0, horizon=10), ns(1.0 + 1 / 3 + 0.3), state(1.5, 0.0, 0.0))
    with pytest.raises(ScheduleRefused, match=r"plan positions\[3, 1\] is not finite"):
        bad = chunk(1.2)
        bad.positions[3, 1] = np.nan
        scheduler.update(bad, ns(1.3), state(1.3, 0.0, 0.3))
    with pytest.raises(ScheduleRefused, match="measured positions"):
        scheduler.update(chunk(1.2), ns(1.3), state(1.3, np.inf, 0.3))
    np.testing.assert_array_equal(scheduler.commanded(ns(1.5)), before)


def test_the_next_message_continues_what_was_committed():
    scheduler = ChunkScheduler(JOINTS)
    proposed = scheduler.propose(chunk(1.0), ns(1.1), state(1.1, 0.0, 0.0))
    assert scheduler.commanded(ns(1.3)) is None
    clamped = TrajectoryCommand(
        proposed.stamp_ns, JOINTS, proposed.times, 0.5 * proposed.positions, 0.5 * proposed.velocities
    )
    scheduler.commit(clamped)
    sent = scheduler.commanded(ns(1.3))
    scheduler.update(chunk(1.2), ns(1.3), state(1.3, 0.0, 0.0))
    np.testing.assert_allclose(scheduler.commanded(ns(1.3)), sent, rtol=0, atol=1e-12)


def test_a_clock_that_jumped_back_starts_at_the_measured_state():
    scheduler = ChunkScheduler(JOINTS)
    scheduler.update(chunk(50.0), ns(50.1), state(50.1, 0.0, 0.3))
    command = scheduler.update(chunk(1.0), ns(1.1), state(1.1, 0.2, 0.3))
    np.testing.assert_array_equal(command.positions[0], [0.2, 0.3])
    assert command.stamp_ns <= ns(1.1)


def test_horizon_check_names_its_numbers():
    assert horizon_shortfall(30, 1 / 30, 0.15, 0.15, 0.02) is None
    message = horizon_shortfall(10, 1 / 30, 0.3, 0.3, 0.02)
    for part in ("10 steps of 0.033 s", "0.333 s", "0.620 s", "p99 0.300", "period 0.300", "lead 0.020", "19 steps"):
        assert part in message


def test_configuration_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"schedule\.lead = 0\.0: must be from 0\.001"):
        ScheduleConfig(lead=0.0)


@pytest.mark.parametrize("late", [0.0, 0.15, 1.5])
def test_a_stop_that_arrives_late_still_stops_the_arm(late):
    """A controller drops what is wholly past: a stop of 0.12 s in a queue for longer would never be heard."""
    scheduler, controller = ChunkScheduler(JOINTS, limits=LIMITS), TrajectoryController(JOINTS)
    measured = RobotState(ns(1.1), intent(np.array(1.1)))
    controller.accept(scheduler.update(chunk(1.0), ns(1.1), measured), ns(1.1))
    stop = scheduler.smooth_stop(ns(1.3))
    for tick in range(900):
        now = ns(1.1) + tick * TICK_NS
        if now == ns(1.3 + late):
            controller.accept(stop, now)
        command = controller.update(now, TICK_NS, measured.positions, np.zeros(2))[0]
    np.testing.assert_array_equal(command, stop.positions[-1])
    np.testing.assert_array_equal(stop.positions[-2:], np.tile(stop.positions[-1], (2, 1)))


def test_a_way_back_from_rest_that_arrives_late_does_not_jump():
    scheduler, controller = ChunkScheduler(JOINTS, limits=LIMITS), TrajectoryController(JOINTS)
    measured = RobotState(ns(1.1), intent(np.array(1.1)))
    controller.accept(scheduler.update(chunk(1.0), ns(1.1), measured), ns(1.1))
    commands = []
    for tick in range(1500):
        now = ns(1.1) + tick * TICK_NS
        if now == ns(1.3):
            controller.accept(scheduler.smooth_stop(now), now)
        elif now == ns(2.1):
            back = scheduler.move_back(commands[-1] - 0.1, now, 0.2)
        elif now == ns(2.3):
            begin = len(commands)
            controller.accept(back, now)
        commands.append(controller.update(now, TICK_NS, measured.positions, np.zeros(2))[0])
    accelerations = np.diff(commands[begin - 2 :], n=2, axis=0) / (TICK_NS / NANOSECONDS) ** 2
    assert np.abs(accelerations).max() <= 1.05 * min(LIMITS.acceleration)
    np.testing.assert_allclose(commands[-1], commands[begin - 1] - 0.1, rtol=0, atol=1e-9)
