"""Points that nearly coincide, as wall clocks and grids of simulated time bring them about:

- however near a chunk's or a stop's arrival lies to a point of the running plan, the message passes the gate's and the
  controller's own checks, its times a microsecond or more apart, and continues the running plan;
- two chunks, or a chunk and a stop, at one and the same instant are no exception; nor are chunks of one observation.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.safety_gate import ARRIVAL_NS
from robovlms_ros.control.trajectory_controller_model import TrajectoryController
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, RobotState

PANDA = load_robot("panda")
ROBOT = dataclasses.replace(PANDA, gate=dataclasses.replace(PANDA.gate, speed_scaling_ramp=0.0))
HOME = np.array(ROBOT.home)
STEP = 0.05
START_NS = 1000 * NANOSECONDS
LEAD_NS = 20_000_000


def chunk(stamp_ns, speed):
    names = (*ROBOT.joints, "gripper")
    spec = ActionSpec("joint_position", "base", "rotation_vector", "chained", STEP, names)
    seconds = (stamp_ns - START_NS) / NANOSECONDS + STEP * np.arange(1, 17)[:, None]
    return ActionChunk(stamp_ns, np.hstack([HOME + speed * np.sin(3 * seconds), np.ones((16, 1))]), spec, "go", "test")


def points_of(command):
    return command.stamp_ns + np.round(command.times * NANOSECONDS).astype(np.int64)


events = st.fixed_dictionaries({
    "kind": st.sampled_from(["chunk", "chunk", "stop"]),
    "speed": st.sampled_from([0.02, 0.1, 0.4]),  # the last is clamped
    "near": st.sampled_from([0, LEAD_NS, ARRIVAL_NS]),  # which of its instants falls beside a point of the plan
    "point": st.integers(0, 30),
    "off_ns": st.sampled_from([-1500, -999, -1, 0, 1, 400, 999, 1000, 1001, 1999]),
    "age_ns": st.sampled_from([0, 80_000_000]),
})


@settings(deadline=None, max_examples=60)
@given(sequence=st.lists(events, min_size=2, max_size=6))
def test_no_nearness_of_points_breaks_a_message(sequence):
    executor = build_executor(ROBOT, None)
    controller, now_ns, points = TrajectoryController(ROBOT.joints), START_NS, np.array([START_NS])
    for event in sequence:
        later = points[points >= now_ns + event["near"]]
        if len(later):
            now_ns = max(now_ns, int(later[min(event["point"], len(later) - 1)]) - event["near"] + event["off_ns"])
        running = executor.commanded(now_ns)
        measured = RobotState(now_ns, HOME if running is None else running[0])
        if event["kind"] == "stop":
            if running is None:
                continue
            command = executor.smooth_stop(now_ns)
        else:
            decision = executor.on_chunk(chunk(now_ns - event["age_ns"], event["speed"]), measured, measured, now_ns)
            command = decision.command
            if command is None:  # far too fast, after a long stop perhaps
                assert "strictly" not in decision.verdict.reason
                continue
        points = points_of(command)
        assert np.diff(points).min() >= 1000
        controller.accept(command, now_ns)
        if running is not None:
            np.testing.assert_allclose(executor.commanded(now_ns)[0], running[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("off_ns", [-400, 0, 400])
def test_a_plan_point_beside_the_splice(off_ns):
    """The refusal that was seen: a point of the running plan less than a microsecond before the splice."""
    executor = build_executor(ROBOT, None)
    at_home = RobotState(START_NS, HOME)
    executor.on_chunk(chunk(START_NS, 0.02), at_home, at_home, START_NS)
    now_ns = START_NS + 300_000_000 - LEAD_NS + off_ns
    measured = RobotState(now_ns, executor.commanded(now_ns)[0])
    decision = executor.on_chunk(chunk(START_NS + 200_000_000, 0.02), measured, measured, now_ns)
    assert decision.verdict.kind == "pass", decision.verdict.reason
