"""An arm that is commanded and does not move is found; one that follows late, slowly or with noise
is not.

- Found after the standstill time at working speed; at slow speed once the command has moved far
  enough.
- Not found: delays up to 0.2 s, first-order lags, noise, rest, reversals, a command that came back,
  one joint in contact while others move, few joint states.
- After a standstill a shorter command suffices until the arm is measured to move.
"""

import numpy as np
import pytest

from robovlms_ros.control.standstill import JointSample, StandstillDetector
from robovlms_ros.core.types import NANOSECONDS

PERIOD = 0.05
TIME = 0.5
MOTION = 0.05


def observe(commanded, measured, seconds, period=PERIOD, detector=None):
    """The first time (s) at which the arm is found to stand still, None for never."""
    detector = detector or StandstillDetector(TIME, MOTION)
    for tick in range(round(seconds / period)):
        t = tick * period
        sample = JointSample(round(t * NANOSECONDS), commanded(t), measured(t))
        if detector.add(sample) is not None:
            return t
    return None


def sine(amplitude, frequency, phase=0.0):
    """(7,) rad at a time: joints out of step."""
    phases = phase + np.arange(7)
    return lambda t: amplitude * np.sin(frequency * t + phases)


@pytest.mark.parametrize("speed", [0.02, 0.05, 0.2, 0.7])
def test_a_frozen_arm_is_found(speed):
    ramp = lambda t: np.full(7, speed * t)  # noqa: E731
    found = observe(ramp, lambda t: ramp(min(t, 1.0)), 10.0)
    # The command must have moved so far a lag ago.
    assert found == pytest.approx(
        1.0 + max(TIME, MOTION / speed + TIME / 2), abs=0.15 + 0.01 / speed
    )


def test_the_joint_and_its_displacement_are_reported():
    detector = StandstillDetector(TIME, MOTION)
    found = None
    for tick in range(40):
        commanded = 0.2 * tick * PERIOD * np.array([0.1, -1.0, 0.5])
        sample = JointSample(round(tick * PERIOD * NANOSECONDS), commanded, np.zeros(3))
        found = detector.add(sample)
        if found is not None:
            break
    joint, displacement = found
    assert joint == 1
    assert displacement == pytest.approx(0.06, abs=0.02)
    assert detector.suspect


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("frequency", [0.3, 1.0, 2.4, 5.0])
@pytest.mark.parametrize("amplitude", [0.02, 0.2, 0.6])
def test_an_arm_that_follows_late_is_not_found(delay, frequency, amplitude):
    rng = np.random.default_rng(round(1000 * (delay + frequency + amplitude)))
    commanded = sine(amplitude, frequency)

    def measured(t):
        return commanded(max(0.0, t - delay)) + rng.uniform(-0.002, 0.002, 7)

    assert observe(commanded, measured, 30.0) is None


def test_random_motions_of_a_lagging_arm_are_not_found():
    rng = np.random.default_rng(7)
    for lag in (0.02, 0.1, 0.2):
        targets = np.cumsum(rng.normal(0, 0.15, (60, 7)), axis=0)
        knots = np.arange(60) * 0.5
        arm = [targets[0].copy()]

        def commanded(t, targets=targets, knots=knots):
            return np.array([np.interp(t, knots, joint) for joint in targets.T])

        def measured(t, arm=arm, lag=lag, commanded=commanded):
            arm[0] = arm[0] + (commanded(t) - arm[0]) * (1 - np.exp(-PERIOD / lag))
            return arm[0] + rng.uniform(-0.002, 0.002, 7)

        assert observe(commanded, measured, 29.0) is None, lag


def test_noise_does_not_hide_a_frozen_arm():
    rng = np.random.default_rng(3)
    found = observe(lambda t: np.full(7, 0.3 * t), lambda t: rng.uniform(-0.004, 0.004, 7), 3.0)
    assert found is not None
    assert found < 1.0


def test_starts_stops_and_pauses_are_not_found():
    def commanded(t):  # from rest, 1 s of motion and 2 s of rest in turns
        whole = np.floor(t / 3.0)
        return np.full(7, 0.4 * (whole + np.clip(t - 3.0 * whole, 0.0, 1.0)))

    assert observe(commanded, lambda t: commanded(max(0.0, t - 0.2)), 30.0) is None


@pytest.mark.parametrize("offset", [0.0, 0.04, 0.2])
def test_an_arm_at_rest_beside_its_command_is_not_found(offset):
    assert observe(lambda t: np.full(7, offset), lambda t: np.zeros(7), 10.0) is None


def test_a_command_that_came_back_or_came_to_the_arm_is_not_found():
    pulse = lambda t: np.full(7, 0.1 * (0.2 < t < 0.4))  # noqa: E731
    arriving = lambda t: np.full(7, 0.1 * (t < 0.2))  # noqa: E731
    for commanded in (pulse, arriving):
        assert observe(commanded, lambda t: np.zeros(7), 5.0) is None
    assert observe(lambda t: np.full(7, 0.1 * (t < 0.2)), lambda t: np.zeros(7), 5.0) is None


def test_one_joint_in_contact_is_not_found():
    commanded = sine(0.3, 1.0)

    def measured(t):
        arm = commanded(t)
        arm[3] = 0.0
        return arm

    assert observe(commanded, measured, 20.0) is None


def test_few_joint_states_are_no_standstill():
    ramp = lambda t: np.full(7, 0.2 * t)  # noqa: E731
    assert observe(ramp, lambda t: np.zeros(7), 1.2, period=0.4) is None
    assert observe(ramp, lambda t: np.zeros(7), 3.0, period=0.4) == pytest.approx(1.2)


def test_a_stamp_that_repeats_or_goes_back():
    detector = StandstillDetector(TIME, MOTION)
    for _ in range(50):
        assert detector.add(JointSample(NANOSECONDS, np.ones(7), np.zeros(7))) is None
    ramp = lambda t: np.full(7, 0.3 * t)  # noqa: E731
    assert observe(ramp, lambda t: np.zeros(7), 2.0, detector=detector) == pytest.approx(TIME, abs=0.1)


def test_after_a_standstill_less_suffices_until_the_arm_moves():
    ramp = lambda t: np.full(7, 0.05 * t)  # noqa: E731
    still = lambda t: np.zeros(7)  # noqa: E731
    fresh = observe(ramp, still, 9.0)
    detector = StandstillDetector(TIME, MOTION)
    observe(ramp, still, 9.0, detector=detector)
    detector.forget()
    assert detector.suspect
    again = observe(ramp, still, 9.0, detector=detector)
    assert again < 0.6 * fresh
    observe(ramp, ramp, 2.0, detector=detector)
    assert not detector.suspect


def test_zero_motion_turns_it_off():
    from robovlms_ros.control.faults import SafetyMonitorConfig
    from robovlms_ros.control.safety_monitor import SafetyMonitor

    monitor = SafetyMonitor(SafetyMonitorConfig(standstill_motion=0.0), (), 0)
    for tick in range(200):
        now = tick * NANOSECONDS // 20
        monitor.moving(JointSample(now, np.full(2, 0.02 * tick), np.zeros(2)), ("a", "b"), now)
    assert not monitor.suspects_standstill
