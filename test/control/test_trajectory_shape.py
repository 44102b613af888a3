"""A controller that blends new trajectories into the running one is moved as one that forgets it.

- a replacement's message has two points ahead or more, none near, no stamp, and ends at rest; as a
  self-splice it is sent unchanged;
- what such a controller commands is the commanded motion that the guard recorded, however late
  messages arrive, with `interpolate_from_desired_state` and without, limits kept; a self-splice
  makes it step;
- the first message starts where the arm is, whatever the controller did before: nothing, a hold
  elsewhere, one point;
- a stop ends at rest, also near the end of the motion; computing for as long as the lead allows
  loses no point;
- a changed shape goes on along the commanded motion.
"""

import dataclasses

import numpy as np
import pytest

from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.trajectory import extremes
from robovlms_ros.control.trajectory_controller_model import (
    TrajectoryController,
    TrajectoryMessage,
    TrajectoryPoint,
)
from robovlms_ros.control.trajectory_shape import BRIDGE_NS, TRANSIT_NS, wire_form
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, RobotState

PANDA = load_robot("panda")
GATE = dataclasses.replace(PANDA.gate, speed_scaling_ramp=0.0, max_refusals=1000)
ROBOT = dataclasses.replace(PANDA, gate=GATE)
HOME = np.array(ROBOT.home)
NAMES = (*ROBOT.joints, "gripper")
SPEC = ActionSpec("joint_position", "base", "rotation_vector", "chained", 1 / 30, NAMES)
START_NS, TICK_NS = 1000 * NANOSECONDS, 2_000_000
LAG = 20  # ticks


def ms(count):
    return count * 1_000_000


class Bench:
    """An executor, a controller that blends or not, and an arm that follows it LAG ticks later."""

    def __init__(self, shape, blends=True, desired=False, transit_ns=TRANSIT_NS):
        self.executor = build_executor(ROBOT, None)
        self.executor.shape = shape
        self.controller = TrajectoryController(
            ROBOT.joints, desired, allow_trajectory_replacement=blends
        )
        self.now_ns, self.transit_ns = START_NS, transit_ns
        self.commands, self.recorded, self.on_the_way = [HOME] * (LAG + 1), [], []

    def measured(self):
        return RobotState(self.now_ns, self.commands[-1 - LAG], np.zeros(7))

    def chunk(self, bias=0.0, speed=0.25):
        """A chunk of a swing of every joint whose image was taken 150 ms ago."""
        stamp_ns = self.now_ns - ms(150)
        seconds = (stamp_ns - START_NS) / NANOSECONDS + np.arange(1, 31)[:, None] / 30
        path = HOME + speed * (1 - np.cos(2 * seconds)) / 2 + bias
        values = np.hstack([path, np.ones((30, 1))])
        return ActionChunk(stamp_ns, values, SPEC, "swing", "test")

    def send(self, command):
        message = wire_form(command, self.now_ns)
        self.on_the_way.append((self.now_ns + self.transit_ns, message))
        return message

    def on_chunk(self, **kind):
        measured = self.measured()
        decision = self.executor.on_chunk(self.chunk(**kind), measured, measured, self.now_ns)
        assert decision.command is not None, decision.verdict
        return self.send(decision.command)

    def run(self, seconds):
        for _ in range(round(seconds * NANOSECONDS / TICK_NS)):
            while self.on_the_way and self.on_the_way[0][0] <= self.now_ns:
                self.controller.accept(self.on_the_way.pop(0)[1], self.now_ns)
            measured = self.commands[-1 - LAG]
            command = self.controller.update(self.now_ns, TICK_NS, measured, np.zeros(7))[0]
            self.commands.append(command)
            self.now_ns += TICK_NS
            known = self.executor.guard.commanded_at(self.now_ns)
            self.recorded.append(command if known is None else known[0])

    def stream(self, count=20, seed=0):
        rng = np.random.default_rng(seed)
        for _ in range(count):
            self.on_chunk(bias=rng.normal(0, 0.01))
            self.run(rng.uniform(0.1, 0.2))

    def worst_step(self):
        return np.abs(np.diff(self.commands[LAG:], axis=0)).max()

    def deviation(self):
        """Of the controller's commands from the recorded motion, rad."""
        return np.abs(np.array(self.commands[LAG + 1 :]) - np.array(self.recorded)).max()


def speed_of(bench):
    return extremes(bench.executor.guard.commanded).speed.max()


@pytest.mark.parametrize("desired", [False, True])
@pytest.mark.parametrize("transit_ms", [0, 1, 2, 4, 6])
def test_a_blending_controller_executes_what_the_guard_recorded(transit_ms, desired):
    bench = Bench("replacement", desired=desired, transit_ns=ms(transit_ms))
    bench.stream()
    fastest = 0.35  # rad/s: the swing, and the joins
    # A cycle is repeated where two trajectories are joined.
    late = abs(ms(transit_ms) - TRANSIT_NS) + TICK_NS
    assert bench.deviation() < fastest * 1.2 * late / NANOSECONDS
    assert bench.worst_step() < fastest * 1.2 * TICK_NS / NANOSECONDS
    assert 0.2 < speed_of(bench) < fastest


def test_a_controller_that_forgets_executes_what_the_guard_recorded():
    bench = Bench("self_splice", blends=False)
    bench.stream()
    assert bench.deviation() < 1e-9


@pytest.mark.parametrize("shape, blends", [("self_splice", True), ("replacement", False)])
def test_the_other_shape_moves_the_arm_elsewhere(shape, blends):
    bench = Bench(shape, blends)
    bench.stream()
    assert bench.deviation() > 0.008


def test_the_message_has_points_ahead_alone():
    bench = Bench("replacement")
    for _ in range(3):
        message = bench.on_chunk()
        assert message.stamp_ns == 0 and len(message.times) >= 2
        assert message.times[0] == pytest.approx((BRIDGE_NS - TRANSIT_NS) / NANOSECONDS)
        assert np.all(np.diff(message.times) > 0) and np.all(message.velocities[-1] == 0)
        bench.run(0.15)
    bench.executor.shape = "self_splice"
    command = bench.executor.smooth_stop(bench.now_ns)
    assert wire_form(command, bench.now_ns) is command and command.stamp_ns <= bench.now_ns


def test_computing_for_as_long_as_the_lead_allows_keeps_the_times():
    bench = Bench("replacement")
    bench.on_chunk()
    bench.run(0.2)
    command = bench.executor.smooth_stop(bench.now_ns)
    early, late = wire_form(command, bench.now_ns), wire_form(command, bench.now_ns + ms(20))
    np.testing.assert_allclose(early.times - 0.02, late.times, atol=1e-9)
    np.testing.assert_array_equal(early.positions, late.positions)


BEFORE = {
    "nothing": (),
    "a hold elsewhere": ((0.2, 0.012), (0.4, 0.012)),
    "one point": ((0.3, 0.012),),
}


@pytest.mark.parametrize("desired", [False, True])
@pytest.mark.parametrize("before", BEFORE)
def test_the_first_message_begins_without_a_step(before, desired):
    """A new node's: the controller may still hold what another one sent, off the measured pose."""
    bench = Bench("replacement", desired=desired)
    points = tuple(
        TrajectoryPoint(ms(round(1000 * t)), HOME + off, np.zeros(7)) for t, off in BEFORE[before]
    )
    if points:
        bench.controller.accept(TrajectoryMessage(0, ROBOT.joints, points), bench.now_ns)
    bench.run(1.0)
    held = bench.commands[-1]
    bench.commands[-1 - LAG :] = [held - 0.002] * (LAG + 1)  # it sags
    at_rest = len(bench.commands)
    for _ in range(5):
        bench.on_chunk(speed=0.1)
        bench.run(0.15)
    steps = np.abs(np.diff([held, *bench.commands[at_rest:]], axis=0)).max(axis=1)
    # The one at the beginning is the sag where the controller interpolates from the measured state.
    assert steps.max() < 0.003


@pytest.mark.parametrize("after", [0.04, 0.3, 1.5])
def test_a_stop_comes_to_rest_where_it_was_recorded(after):
    bench = Bench("replacement")
    bench.stream(3)
    bench.on_chunk()
    bench.run(after)
    message = bench.send(bench.executor.smooth_stop(bench.now_ns))
    assert len(message.times) >= 2
    bench.run(1.0)
    np.testing.assert_array_equal(bench.commands[-1], bench.commands[-2])
    end = bench.executor.guard.commanded.positions[-1]
    np.testing.assert_allclose(bench.commands[-1], end, atol=1e-9)
    # The next message is blended, too: it continues from rest.
    at_rest = len(bench.commands)
    bench.on_chunk()
    bench.run(0.2)
    assert np.abs(np.diff(bench.commands[at_rest - 1 :], axis=0)).max() < 0.001


def test_a_controller_that_stops_blending_and_blends_again_goes_on_smoothly():
    bench = Bench("replacement")
    bench.stream(5)
    for shape in ("self_splice", "replacement", "self_splice", "replacement"):
        bench.executor.shape = shape
        bench.controller.allow_trajectory_replacement = shape == "replacement"
        bench.stream(3)
    assert bench.worst_step() < 0.003
