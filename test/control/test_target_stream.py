"""Targets sent one at a time: on the trajectory in time; after a stall within the joints' limits, also where a new
command arrives before the next tick; silent after the end; a brake is smooth whatever the clock does.
"""

import numpy as np
import pytest

from robovlms_ros.control.motion_guard import MotionGuard
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.target_stream import TargetStream
from robovlms_ros.core.types import NANOSECONDS, RobotState, TrajectoryCommand

PANDA = load_robot("panda")
HOME = np.array(PANDA.home)
BEGIN_NS = 10 * NANOSECONDS
RATE = 50.0
STEP_NS = 20_000_000
STEP = STEP_NS / NANOSECONDS
VELOCITY = np.array(PANDA.limits.velocity)
ACCELERATION = np.array(PANDA.limits.acceleration)


def command(guard, begin_ns=BEGIN_NS, distance=0.8, seconds=2.0):
    """A smooth motion of every joint from rest at home."""
    share = np.linspace(0.0, 1.0, 41)
    smooth = share**2 * (3 - 2 * share)
    speeds = 6 * share * (1 - share) * distance / seconds
    made = TrajectoryCommand(
        begin_ns,
        PANDA.joints,
        share * seconds,
        HOME + np.outer(smooth, np.full(7, distance)),
        np.outer(speeds, np.ones(7)),
    )
    return guard.admit(made, begin_ns, RobotState(begin_ns, HOME))


@pytest.fixture
def stream():
    return TargetStream(PANDA, RATE)


def test_targets_in_time_lie_on_the_trajectory(stream):
    motion = command(MotionGuard(PANDA))
    stream.follow(motion, BEGIN_NS)
    for k in range(100):
        positions, _ = stream.target(BEGIN_NS + k * STEP_NS)
        share = k * STEP / 2.0
        np.testing.assert_allclose(positions, HOME + 0.8 * share**2 * (3 - 2 * share), atol=1e-3)
    end_ns = BEGIN_NS + 2 * NANOSECONDS
    assert stream.target(end_ns + STEP_NS) is not None
    assert stream.target(end_ns + NANOSECONDS) is None


@pytest.mark.parametrize("stalled", [0.1, 0.4, 1.2])
@pytest.mark.parametrize("command_first", [False, True])
def test_after_a_stall_the_targets_catch_up_within_the_limits(stream, stalled, command_first):
    motion = command(MotionGuard(PANDA))
    stream.follow(motion, BEGIN_NS)
    sent = [stream.target(BEGIN_NS + k * STEP_NS)[0] for k in range(20)]
    now_ns = BEGIN_NS + 19 * STEP_NS + round(stalled * NANOSECONDS)
    if command_first:  # a chunk arrives before the first late tick
        stream.follow(motion, now_ns)
    for k in range(200):
        target = stream.target(now_ns + k * STEP_NS)
        if target is not None:
            sent.append(target[0])
    steps = np.diff(sent, axis=0)
    assert np.all(np.abs(steps) <= VELOCITY * STEP * 1.01)
    assert np.all(np.abs(np.diff(steps, axis=0)) <= ACCELERATION * STEP**2 * 1.1)
    np.testing.assert_allclose(sent[-1], HOME + 0.8, atol=1e-5)


def test_a_clock_that_goes_back_repeats_the_last_target(stream):
    stream.follow(command(MotionGuard(PANDA)), BEGIN_NS)
    last = [stream.target(BEGIN_NS + k * STEP_NS)[0] for k in range(20)][-1]
    np.testing.assert_array_equal(stream.target(BEGIN_NS - NANOSECONDS)[0], last)


@pytest.mark.parametrize("jump_ns", [0, -50 * NANOSECONDS, 60 * NANOSECONDS])
def test_a_brake_is_smooth_whatever_the_clock_does_and_then_nothing_is_sent(stream, jump_ns):
    assert stream.target(BEGIN_NS) is None
    stream.follow(command(MotionGuard(PANDA)), BEGIN_NS)
    sent = [stream.target(BEGIN_NS + k * STEP_NS)[0] for k in range(50)]
    stream.brake()
    for k in range(50, 150):
        target = stream.target(BEGIN_NS + k * STEP_NS + jump_ns)
        if target is None:
            break
        sent.append(target[0])
    assert stream.target(BEGIN_NS + 200 * STEP_NS + jump_ns) is None
    steps = np.diff(sent, axis=0)
    assert np.abs(steps[40]).max() / STEP > 0.5
    assert np.all(np.abs(np.diff(steps, axis=0)) <= ACCELERATION * STEP**2 * 1.1)
    assert np.all(np.abs(steps[-1]) <= ACCELERATION * STEP**2)
