"""Whatever chunks come in (latency, jitter, disagreement, horizon, rate, order), for every strategy:

- what goes out is finite, strictly increasing in time, at rest at its end, and the controller takes it;
- it leaves what was sent before untouched until the splice, in position and velocity;
- the controller, whatever the plant's lag, commands exactly the running plan: nothing else ever moves the arm;
- stops, instruction changes and chunks from the past are no exception.
"""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robovlms_ros.control.robot import JointLimits
from robovlms_ros.control.schedule import ScheduleConfig, ScheduleRefused, horizon_shortfall
from robovlms_ros.control.scheduler import ChunkScheduler
from robovlms_ros.control.trajectory import central_differences
from robovlms_ros.control.trajectory_controller_model import TrajectoryController
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, JointPlan, RobotState

SPEC = ActionSpec("joint_position", "base", "rotation_vector", "chained", 0.05)
JOINTS = ("a", "b")
LIMITS = JointLimits((-20.0, -20.0), (20.0, 20.0), (3.0, 3.0), (6.0, 6.0), 1.0)
TICK_NS = 2_000_000
START_NS = 1000 * NANOSECONDS

events = st.fixed_dictionaries(
    {
        "after": st.floats(0.005, 0.6),
        "latency": st.floats(0.0, 0.8),
        "kind": st.sampled_from(["chunk", "chunk", "chunk", "chunk", "hold", "other instruction"]),
        "horizon": st.integers(1, 40),
        "rate": st.sampled_from([3.0, 5.0, 20.0, 30.0, 100.0]),
        "disagreement": st.floats(0.0, 0.5),
        "seed": st.integers(0, 2**16),
    }
)


def make_plan(event, now_ns):
    rng = np.random.default_rng(event["seed"])
    stamp_ns = max(1, now_ns - round(event["latency"] * NANOSECONDS))
    steps_ns = np.round(np.arange(1, event["horizon"] + 1) / event["rate"] * NANOSECONDS).astype(np.int64)
    times_ns = stamp_ns + steps_ns
    seconds = (times_ns - START_NS)[:, None] / NANOSECONDS
    path = 0.5 * np.sin(2.5 * seconds + np.arange(2)) + rng.normal(0, 0.1 * event["disagreement"], (len(seconds), 2))
    positions = path + rng.normal(0, event["disagreement"], 2)
    instruction = "other" if event["kind"] == "other instruction" else "one"
    chunk = ActionChunk(stamp_ns, positions, SPEC, instruction, "test")
    return JointPlan(times_ns, positions, central_differences(times_ns, positions), chunk=chunk)


def check_message(command, now_ns):
    for values in (command.times, command.positions, command.velocities):
        assert np.all(np.isfinite(values))
    assert command.times[0] >= 0 and np.all(np.diff(command.times) > 0)
    assert np.all(command.velocities[-1] == 0)
    assert 0 < command.stamp_ns <= now_ns


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sequence=st.lists(events, min_size=1, max_size=6),
    strategy=st.sampled_from(["first", "receding", "ensemble", "fade", "blend", "blend"]),
    lag_ticks=st.integers(1, 40),
    desired=st.booleans(),
)
def test_whatever_comes_in_one_motion_goes_out(sequence, strategy, lag_ticks, desired):
    scheduler = ChunkScheduler(JOINTS, ScheduleConfig(strategy), LIMITS)
    controller = TrajectoryController(JOINTS, desired)
    commands, now_ns, sent = [], START_NS, False
    for event in sequence:
        for _ in range(round(event["after"] * NANOSECONDS / TICK_NS)):
            measured = commands[-lag_ticks] if len(commands) >= lag_ticks else np.zeros(2)
            commands.append(controller.update(now_ns, TICK_NS, measured, np.zeros(2))[0])
            if sent:
                planned = scheduler.commanded(now_ns + TICK_NS)
                np.testing.assert_allclose(commands[-1], planned[0], rtol=0, atol=1e-9)
            now_ns += TICK_NS
        state = RobotState(now_ns, commands[-lag_ticks] if len(commands) >= lag_ticks else np.zeros(2))
        ahead = [now_ns, now_ns + 7_000_000, now_ns + 20_000_000]
        before = [scheduler.commanded(t) for t in ahead] if sent else None
        try:
            if event["kind"] == "hold":
                command = scheduler.smooth_stop(now_ns)
            else:
                command = scheduler.update(make_plan(event, now_ns), now_ns, state)
        except ScheduleRefused:
            continue
        check_message(command, now_ns)
        controller.accept(command, now_ns)
        followed, sent = sent, True
        if followed:
            for was, t in zip(before, ahead, strict=True):
                np.testing.assert_allclose(scheduler.commanded(t), was, rtol=0, atol=1e-9)


@given(horizon=st.integers(1, 100), latency=st.floats(0, 2), period=st.floats(0, 2), step=st.floats(0.01, 1))
def test_the_horizon_check_asks_for_what_is_enough(horizon, latency, period, step):
    message = horizon_shortfall(horizon, step, latency, period, 0.02)
    if message is None:
        assert horizon * step >= latency + period + 0.02
    else:
        needed = int(message.split("Needed: a horizon of ")[1].split()[0])
        assert needed > horizon
        assert horizon_shortfall(needed, step, latency, period, 0.02) is None
