"""The safety gate:
- passes what is within limits unchanged, and remembers it;
- refuses, with the reason: not finite, malformed, other joints, past, stale or ahead images and joint states, a jump
  from the measured pose, outside the workspace, far too fast, too many clamps; with `clamp: false` any broken limit;
- clamps positions, speeds, accelerations, tool speed, and jumps from what was sent before, keeping the path's end;
- asks for deactivation after N refusals in a row, or within a window that passes interrupt; a chunk
  that passes starts the count of those in a row afresh;
- the speed scaling ramps up after activation, slows down without counting as a clamp, and can be lowered;
- an arm outside its limits or its workspace may come back;
- whatever comes in, what goes out is finite, within limits, strictly increasing in time, at rest at its end, and
  continuous with what went out before (property test).
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.safety_gate import SafetyGate
from robovlms_ros.control.trajectory import curve_of
from robovlms_ros.core.types import NANOSECONDS, RobotState, TrajectoryCommand

PANDA = load_robot("panda")
GATE = replace(
    PANDA.gate, speed_scaling_ramp=0.0, max_clamps=3, max_refusals=4, refusal_time=0.0,
    refusal_window=0.0,
)
ROBOT = replace(PANDA, gate=GATE)
HOME = np.array([0.0, 0.2, 0.0, -2.536, 0.0, 2.8, 0.785])
NOW = 10 * NANOSECONDS
FIRST = np.eye(7)[0]


def command(times, positions, velocities=None, stamp_ns=NOW) -> TrajectoryCommand:
    positions = np.asarray(positions, dtype=np.float64)
    if velocities is None:
        velocities = np.zeros_like(positions)
    return TrajectoryCommand(stamp_ns, ROBOT.joints, np.asarray(times, float), positions, np.asarray(velocities, float))


def move(distance: float, duration: float = 1.0, start=HOME, joint=FIRST, stamp_ns=NOW) -> TrajectoryCommand:
    """From rest to rest: greatest speed 1.5 d / T, greatest acceleration 6 d / T^2."""
    return command([0.0, duration], [start, start + distance * joint], stamp_ns=stamp_ns)


def state(positions=HOME, stamp_ns=NOW) -> RobotState:
    return RobotState(stamp_ns, np.asarray(positions, dtype=np.float64))


def check(gate, message, positions=HOME, now_ns=NOW):
    return gate.check(message, state(positions, now_ns), now_ns, now_ns - 50_000_000)


def sample(message: TrajectoryCommand, times_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities by the controller's cubic interpolation, written out once more."""
    knots = message.stamp_ns + np.round(message.times * NANOSECONDS).astype(np.int64)
    i = np.clip(np.searchsorted(knots, times_ns, side="right") - 1, 0, len(knots) - 2)
    h = (np.diff(knots)[i] / NANOSECONDS)[:, None]
    s = np.clip((times_ns - knots[i])[:, None] / NANOSECONDS / h, 0.0, 1.0)
    basis = [2 * s**3 - 3 * s**2 + 1, s**3 - 2 * s**2 + s, -2 * s**3 + 3 * s**2, s**3 - s**2]
    slopes = [6 * s**2 - 6 * s, 3 * s**2 - 4 * s + 1, -6 * s**2 + 6 * s, 3 * s**2 - 2 * s]
    p, v = message.positions, message.velocities
    values = [p[i], h * v[i], p[i + 1], h * v[i + 1]]
    return sum(b * x for b, x in zip(basis, values)), sum(b * x for b, x in zip(slopes, values)) / h


@pytest.fixture
def gate() -> SafetyGate:
    return SafetyGate(ROBOT)


@pytest.fixture(scope="module")
def kinematics():
    pytest.importorskip("pinocchio", reason="pinocchio is not installed: workspace and tool speed cannot be tested")
    from robovlms_ros.control.kinematics import Kinematics

    return Kinematics.for_robot(ROBOT)


def test_what_is_within_limits_passes_unchanged(gate):
    message = move(0.5)
    verdict = check(gate, message)
    assert (verdict.kind, verdict.reason, verdict.deactivate) == ("pass", "", False)
    assert verdict.command.stamp_ns == message.stamp_ns
    np.testing.assert_array_equal(verdict.command.times, message.times)
    np.testing.assert_array_equal(verdict.command.positions, message.positions)
    assert verdict.command.accelerations is None


def test_a_later_start_is_led_in_from_where_the_arm_is(gate):
    verdict = check(gate, move(0.5, stamp_ns=NOW + 20_000_000))
    assert verdict.kind == "pass"
    assert verdict.command.stamp_ns == NOW and verdict.command.times[0] == 0.0
    np.testing.assert_array_equal(verdict.command.positions[0], HOME)


def test_a_clamped_command_leaves_the_commanded_motion_only_after_its_arrival(gate):
    """A change of a clamp before the message's arrival would be a jump at the controller."""
    before = check(gate, move(0.4)).command
    later_ns = NOW + 300_000_000
    here = sample(before, np.array([later_ns]))[0][0]
    message = move(0.8, 0.7, start=here, stamp_ns=later_ns)
    verdict = gate.check(message, state(here, later_ns), later_ns, later_ns - 50_000_000, 40_000_000)
    assert verdict.kind == "clamp"
    times_ns = later_ns + np.arange(0, 40_000_001, 1_000_000)
    for ours, sent in zip(sample(verdict.command, times_ns), sample(before, times_ns), strict=True):
        np.testing.assert_allclose(ours, sent, rtol=0, atol=1e-7)
    after_ns = np.array([later_ns + 200_000_000])
    assert np.abs(sample(verdict.command, after_ns)[0] - sample(before, after_ns)[0]).max() > 1e-3


def with_value(field: str, value: float) -> TrajectoryCommand:
    message = move(0.5)
    values = getattr(message, field).copy()
    values.flat[-1] = value
    return replace(message, **{field: values})


MALFORMED = {
    "positions are not all finite": with_value("positions", np.nan),
    "velocities are not all finite": with_value("velocities", np.inf),
    "times are not all finite": with_value("times", np.nan),
    "do not strictly increase": with_value("times", 0.0),
    "does not end at rest": with_value("velocities", 0.1),
    "the robot's joints are": replace(move(0.5), joints=ROBOT.joints[::-1]),
    "positions of shape (2, 6)": replace(move(0.5), positions=np.zeros((2, 6))),
    "0 times": command([], np.zeros((0, 7))),
    "wholly past": move(0.5, stamp_ns=NOW - 2 * NANOSECONDS),
}


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_trajectories_are_refused(gate, text):
    verdict = check(gate, MALFORMED[text])
    assert verdict.kind == "refuse" and verdict.command is None
    assert text in verdict.reason


@pytest.mark.parametrize(
    ("joint_age", "image_age", "text"),
    [
        (0.6, 0.0, "joint states behind the trajectory: 0.600 s old, allowed is max_age = 0.5 s"),
        (0.0, 1.1, "image behind the trajectory: 1.100 s old, allowed is max_latency = 1.0 s"),
        (0.0, -0.6, "image behind the trajectory: 0.600 s ahead of the clock"),
    ],
)
def test_stale_measurements_are_refused(gate, joint_age, image_age, text):
    measured = state(stamp_ns=NOW - round(joint_age * NANOSECONDS))
    verdict = gate.check(move(0.1), measured, NOW, NOW - round(image_age * NANOSECONDS))
    assert verdict.kind == "refuse" and text in verdict.reason
    for image_ns in (None, NOW - 900_000_000):
        assert gate.check(move(0.1), state(), NOW, image_ns).kind == "pass"


def test_a_measurement_that_is_not_finite_is_refused(gate):
    verdict = check(gate, move(0.1), HOME * np.nan)
    assert verdict.kind == "refuse" and "measured positions" in verdict.reason


def test_a_start_far_from_the_measured_pose_is_refused(gate):
    verdict = check(gate, move(0.1, start=HOME + 0.25 * FIRST))
    assert verdict.kind == "refuse"
    assert verdict.reason.startswith("panda_joint1 would start 0.250 rad from its measured 0.000 rad")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (move(-0.6, 1.2, joint=np.eye(7)[3]), "panda_joint4 would go to -3.136 rad, its limit is -3.050 rad"),
        (move(1.5, 1.0), "panda_joint1 would reach a velocity of 2.25 rad/s after 0.00 s, its limit is 1.90 rad/s"),
        (move(0.2, 0.25), "panda_joint1 would reach an acceleration of 19.20 rad/s^2"),
        (move(0.1, start=HOME + 0.1 * FIRST), "it starts 0.1000 rad and 0.003 rad/s off the commanded motion"),
    ],
)
def test_broken_limits_are_clamped_or_refused(gate, message, text):
    verdict = check(gate, message)
    assert verdict.kind == "clamp" and text in verdict.reason
    within_limits(verdict.command, NOW)
    np.testing.assert_allclose(verdict.command.positions[0], HOME)
    end = np.clip(message.positions[-1], ROBOT.lower(), ROBOT.upper())
    np.testing.assert_allclose(verdict.command.positions[-1], end, atol=2e-3)
    strict = SafetyGate(replace(ROBOT, gate=replace(ROBOT.gate, clamp=False)))
    verdict = check(strict, message)
    assert verdict.kind == "refuse" and text in verdict.reason


def test_far_too_fast_is_refused(gate):
    verdict = check(gate, move(1.5, 0.1))
    assert verdict.kind == "refuse" and "more than 4 times as much" in verdict.reason


def test_too_many_clamps_and_refusals(gate):
    message = command([0.0, 0.8], [HOME, HOME + 1.5 * FIRST])
    assert [check(gate, message).kind for _ in range(4)] == ["clamp"] * 3 + ["refuse"]
    verdicts = [check(gate, message) for _ in range(3)]
    assert "5 chunks in a row had to be clamped" in verdicts[0].reason
    assert [v.deactivate for v in verdicts] == [False, False, True]
    assert "4 refusals in a row: deactivating" in verdicts[-1].reason
    gate.reset()
    assert check(gate, message).kind == "clamp"
    gate.reset()
    for _ in range(5):
        assert not check(gate, MALFORMED["wholly past"]).deactivate
        assert check(gate, move(0.0)).kind == "pass"


def test_refusals_within_a_window():
    """Every second chunk is refused: four refusals within 5 s that last 2 s or longer."""
    gate = SafetyGate(replace(ROBOT, gate=replace(GATE, refusal_time=2.0, refusal_window=5.0)))

    def refused_at(seconds):
        return gate.refuse("bad", NOW + round(seconds * NANOSECONDS))

    def sequence(period, count):
        verdicts = []
        for k in range(count):
            verdicts.append(refused_at(k * period))
            assert check(gate, move(0.0)).kind == "pass"
        return verdicts

    assert [v.deactivate for v in sequence(1.0, 4)] == [False, False, False, True]
    assert "5 refusals within 5 s: deactivating" in refused_at(3.0).reason
    counts = gate.counts
    gate.reset_counts()
    assert not any(v.deactivate for v in sequence(0.1, 8)), "too short"
    gate.reset_counts()
    assert not any(v.deactivate for v in sequence(2.0, 8)), "too rare"
    gate.counts = counts
    assert refused_at(3.1).deactivate
    assert not refused_at(-60.0).deactivate, "a clock that went back"


def test_noise_in_the_acceleration_never_gives_up(gate):
    for _ in range(10):
        verdict = check(gate, move(0.2, 0.25, stamp_ns=NOW + 20_000_000))
        assert verdict.kind == "clamp" and verdict.reason.startswith("panda_joint1 would reach an acceleration")
        gate.resume(curve_of(move(0.0)))


def test_speed_scaling_ramps_without_counting():
    gate = SafetyGate(replace(ROBOT, gate=replace(ROBOT.gate, speed_scaling_ramp=1.0, max_clamps=0)))
    verdict = check(gate, move(1.0, 1.0))
    assert verdict.kind == "clamp" and "the speed scaling is" in verdict.reason and gate.clamps == 0
    for t in (0.1, 0.3, 0.5):
        speed = np.abs(sample(verdict.command, np.array([NOW + round(t * NANOSECONDS)]))[1]).max()
        assert speed <= 1.9 * t * 1.02
    assert gate.speed_scaling_at(NOW) == 0.05 and gate.speed_scaling_at(NOW + NANOSECONDS // 2) == 0.5
    assert gate.speed_scaling_at(NOW + 3 * NANOSECONDS) == 1.0
    gate.speed_scaling = 0.2
    assert gate.speed_scaling_at(NOW + 3 * NANOSECONDS) == pytest.approx(0.2)


def test_lowered_speed_scaling_holds_for_the_whole_motion(gate):
    gate.speed_scaling = 0.25
    verdict = check(gate, move(1.0, 1.0))
    assert verdict.kind == "clamp"
    assert np.abs(verdict.command.velocities).max() <= 0.25 * 1.9 + 1e-9


def test_what_was_sent_counts_as_the_start(gate):
    first = check(gate, move(0.5)).command
    later = NOW + NANOSECONDS // 2
    (place,), (speed,) = sample(first, np.array([later]))
    verdict = check(gate, move(0.0, start=HOME, stamp_ns=later), place - 0.02, later)
    assert verdict.kind == "refuse"  # the new start is 0.23 rad from the measured pose
    verdict = check(gate, move(0.0, start=place, stamp_ns=later), place - 0.02, later)
    assert verdict.kind == "clamp" and "off the commanded motion" in verdict.reason
    now_place, now_speed = sample(verdict.command, np.array([later]))
    np.testing.assert_allclose(now_place[0], place, atol=1e-9)
    np.testing.assert_allclose(now_speed[0], speed, atol=1e-9)
    gate.resume(curve_of(move(0.0, start=HOME, stamp_ns=later)))
    assert check(gate, move(0.1, stamp_ns=later), HOME, later).kind == "pass"


def test_an_arm_outside_its_limits_may_come_back(gate):
    outside = HOME.copy()
    outside[3] = ROBOT.lower()[3] - 0.03
    assert check(gate, move(0.2, start=outside, joint=np.eye(7)[3]), outside).kind == "pass"
    gate.reset()
    verdict = check(gate, move(-0.05, start=outside, joint=np.eye(7)[3]), outside)
    assert verdict.kind == "clamp"
    assert verdict.command.positions[:, 3].min() >= outside[3] - 1e-9


def test_the_clock_may_jump_back(gate):
    check(gate, move(0.5))
    early = NOW - 5 * NANOSECONDS
    assert check(gate, move(0.1, stamp_ns=early), HOME, early).kind == "pass"


def test_the_workspace(kinematics):
    gate = SafetyGate(ROBOT, kinematics)
    down = kinematics.inverse(kinematics.forward(HOME)[None] - 0.3 * np.eye(4)[[2]].T * np.eye(4)[[3]], HOME)
    message = command([0.0, 2.0], [HOME, down.positions[0]])
    verdict = check(gate, message)
    assert verdict.kind == "refuse" and "would leave the workspace: (0.472" in verdict.reason
    back = command([0.0, 2.0], [down.positions[0], HOME])
    assert check(gate, back, down.positions[0]).kind == "pass"


def test_the_speed_of_the_tool(kinematics):
    slow = replace(ROBOT, limits=replace(ROBOT.limits, eef_speed=0.3))
    gate = SafetyGate(slow, kinematics)
    verdict = check(gate, move(0.6, 1.0))
    assert verdict.kind == "clamp" and "the tool would move at 0.42 m/s, its limit is 0.3 m/s" in verdict.reason
    times_ns = NOW + np.arange(0, 3000, 10) * 1_000_000
    places, speeds = sample(verdict.command, times_ns)
    tool = [np.linalg.norm(kinematics.jacobian(q)[:3] @ v) for q, v in zip(places, speeds, strict=True)]
    assert max(tool) <= 0.3 * 1.06
    np.testing.assert_allclose(verdict.command.positions[-1], HOME + 0.6 * FIRST, atol=2e-3)


def test_the_way_to_a_command_that_begins_before_it_arrives_is_judged(gate):
    """1.5e-4 rad within 5 ms is no step, yet 36 rad/s^2."""
    verdict = check(gate, command([0.005001, 1.0], [HOME + 1.5e-4 * FIRST] * 2))
    assert verdict.kind == "clamp" and "would reach an acceleration" in verdict.reason
    within_limits(verdict.command, NOW)


def within_limits(message: TrajectoryCommand, now_ns: int) -> None:
    limits = ROBOT.limits
    for values in (message.times, message.positions, message.velocities):
        assert np.isfinite(values).all()
    assert message.times[0] >= 0 and np.all(np.diff(message.times) > 0)
    assert message.stamp_ns + message.times[0] * NANOSECONDS <= now_ns
    assert not message.velocities[-1].any()
    end_ns = message.stamp_ns + round(message.times[-1] * NANOSECONDS)
    assert end_ns > now_ns
    places, speeds = sample(message, np.arange(now_ns, end_ns, 2_000_000))
    assert np.all(places >= ROBOT.lower() - 1e-5) and np.all(places <= ROBOT.upper() + 1e-5)
    assert np.all(np.abs(speeds) <= np.array(limits.velocity) * 1.011)
    assert np.all(np.abs(np.diff(speeds, axis=0)) <= np.array(limits.acceleration) * 0.002 * 1.011 + 1e-9)


@st.composite
def streams(draw):
    """Up to four commands: when, how long, how many points, how wild, and whether something is broken in them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stream = []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 12))
        scale = draw(st.sampled_from([0.0, 0.01, 0.05, 0.3, 3.0]))
        times = np.cumsum(rng.uniform(0.004, draw(st.sampled_from([0.02, 0.2, 1.0])), count))
        points = np.cumsum(rng.normal(0, scale, (count, 7)), axis=0)
        velocities = rng.normal(0, draw(st.sampled_from([0.0, 0.5, 20.0])), (count, 7))
        velocities[-1] = 0.0
        broken = draw(st.sampled_from([None, None, None, "nan", "times", "end"]))
        if broken == "nan":
            points[rng.integers(count), 3] = np.nan
        elif broken == "times":
            times = times[::-1].copy()
        elif broken == "end":
            velocities[-1] = 1.0
        stream.append((times, points, velocities, draw(st.sampled_from([0.0, 0.03, 0.4, 3.0])), rng.normal(0, 0.02, 7)))
    return stream


@settings(deadline=None, max_examples=100)
@given(stream=streams(), speed_scaling=st.sampled_from([1.0, 0.3]))
def test_whatever_comes_in_what_goes_out_is_safe(stream, speed_scaling):
    gate = SafetyGate(ROBOT)
    gate.speed_scaling = speed_scaling
    now_ns, last = NOW, None
    for times, points, velocities, pause, noise in stream:
        now_ns += round(pause * NANOSECONDS)
        place = HOME if last is None else sample(last, np.array([now_ns]))[0][0]
        verdict = check(gate, command(times, place + points, velocities, stamp_ns=now_ns), place + noise, now_ns)
        if verdict.command is None:
            assert verdict.kind == "refuse" and verdict.reason
            continue
        within_limits(verdict.command, now_ns)
        if last is not None:
            both = np.array([now_ns, now_ns + 5_000_000])
            (before, before_speed), (after, after_speed) = sample(last, both), sample(verdict.command, both)
            np.testing.assert_allclose(after, before, atol=2e-4)
            np.testing.assert_allclose(after_speed, before_speed, atol=0.09)
        last = verdict.command
