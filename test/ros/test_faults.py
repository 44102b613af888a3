"""Fault injection through the real graph, one test per watchdog and per band of the gate.

Commands flow before; the arm is brought to rest (or left to its last plan where nobody would hear or time a stop) and
the reason is readable during; commands flow again after, by themselves, when the cause is gone.
"""

import dataclasses
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def graph(ros, tiny_checkpoint, make_robot):
    """An active graph whose watchdogs notice small things."""
    from ros_graph import Graph

    graph = Graph(tiny_checkpoint, robot=make_robot(), watchdog__frozen_time=1.5, watchdog__frozen_motion=0.005,
                  watchdog__inference_timeout=3.0)
    graph.activate()
    yield graph
    graph.close()


def at_rest(message):
    return not any(message.points[-1].velocities)


def held_after(graph):
    """The stop was the last command, and the controller took it."""
    assert graph.is_quiet()
    assert at_rest(graph.arm.commands[-1][1])
    assert not graph.arm.rejected


class Injected:
    """The node's policy session with `predict_action_chunk` replaced, for the time of a with block."""

    def __init__(self, graph, function):
        self.session, self.function = graph.node._session, function

    def __enter__(self):
        self.original = self.session.predict_action_chunk
        self.session.predict_action_chunk = lambda observation: self.function(self.original, observation)

    def __exit__(self, *_):
        self.session.predict_action_chunk = self.original


def test_image_frozen(graph):
    graph.run()
    kept = []

    def freeze(message):
        kept.append(kept[0] if kept else bytes(message.data))
        message.data = kept[0]
        return message

    graph.arm.quirks["static"] = freeze
    try:
        with Injected(graph, constant([0.0, 0.002, 0.0, 0.0, 0.0, 0.0])):
            graph.listener.wait_state("holding", "camera static is frozen")
        held_after(graph)
    finally:
        graph.arm.quirks.clear()
    graph.listener.wait_state("running")


@pytest.mark.parametrize(("seconds", "says"), [(8.0, "ahead of"), (-8.0, "behind")])
def test_camera_clock(graph, seconds, says):
    from ros_graph import from_time, to_time

    graph.run()

    def shift(message):
        message.header.stamp = to_time(from_time(message.header.stamp) + round(seconds * 1e9))
        return message

    graph.arm.quirks["wrist"] = shift
    try:
        graph.listener.wait_state("holding", "camera wrist's clock is")
        assert says in graph.listener.status.detail
        held_after(graph)
    finally:
        graph.arm.quirks.clear()
    graph.listener.wait_state("running")


def test_inference_late(graph):
    graph.run()

    def dawdle(original, observation):
        time.sleep(5.0)
        return original(observation)

    with Injected(graph, dawdle):
        graph.wait_for(lambda: "inference takes" in graph.listener.status.detail, "the complaint")
        assert at_rest(graph.arm.commands[-1][1]), "the running plan ends at rest by itself"
    graph.listener.wait_state("running")


def test_inference_died(graph):
    import torch

    graph.run()

    def out_of_memory(original, observation):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    with Injected(graph, out_of_memory):
        graph.listener.wait_state("holding", "out of memory")
        held_after(graph)
    graph.listener.wait_state("running")


def test_controller_not_following(make_graph):
    graph = make_graph(watchdog__following_error=0.003, watchdog__following_time=0.3)
    graph.activate()
    graph.run()
    stuck = [*graph.arm.positions.tolist(), 0.04]

    def jam(message):
        message.position, message.velocity = stuck, [0.0] * 8
        return message

    with Injected(graph, constant([0.0, 0.01, 0.0, 0.0, 0.0, 0.0])):
        graph.arm.quirks["joint_states"] = jam
        graph.wait_for(lambda: any("does not follow" in s.detail for s in graph.listener.statuses), "the reason")
    assert graph.listener.status.last_stop
    graph.arm.quirks.clear()
    graph.listener.wait_state("running")


def test_controller_absent(make_graph, make_robot):
    graph = make_graph(robot=make_robot(lambda robot: robot["controller"].update(topic="nobody/joint_trajectory")))
    graph.activate()
    graph.listener.instruct("lift the red cube")
    graph.wait_for(lambda: "nobody listens to" in graph.listener.status.detail, "the complaint")
    from trajectory_msgs.msg import JointTrajectory

    graph.listener.create_subscription(JointTrajectory, "nobody/joint_trajectory", lambda message: None, 10)
    graph.listener.wait_state("running")


def constant(step, horizon=40):
    """A policy that asks for the same pose delta (6,) per step, chained from the observation, gripper open."""
    def answer(original, observation):
        chunk = original(observation)
        values = np.outer(np.arange(1, horizon + 1), np.append(step, 0.0))
        values[:, 6] = 1.0
        return dataclasses.replace(chunk, values=values)
    return answer


def test_gate_passes_and_is_smooth(graph):
    graph.run()
    with Injected(graph, constant([0.0, 0.0005, 0.0, 0.0, 0.0, 0.0])):
        moment = time.monotonic()
        graph.wait_for(lambda: len(graph.arm.commands_since(moment)) > 5, "commands")
        graph.listener.wait_state("running")
    assert not graph.arm.rejected


def test_gate_clamps_what_is_too_fast(graph):
    graph.run()
    robot = graph.arm.robot
    with Injected(graph, constant([0.0, 0.0, -0.02, 0.0, 0.0, 0.6])):
        moment = time.monotonic()
        graph.wait_for(lambda: len(graph.arm.commands_since(moment)) > 3 or
                       graph.listener.status.state == "holding", "a verdict")
    for message in graph.arm.commands_since(moment):
        speeds = np.abs([p.velocities for p in message.points])
        assert (speeds <= np.array(robot.limits.velocity) * 1.01 + 1e-9).all()
    graph.listener.call("pause", data=True)
    graph.arm.teleport(np.array(robot.home))
    graph.listener.call("pause", data=False)
    graph.listener.wait_state("running")


REFUSED = {
    "unreachable": ([0.2, 0.2, 0.2, 0.0, 0.0, 0.0], ""),
    "not finite": ([np.nan, 0.0, 0.0, 0.0, 0.0, 0.0], "not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_gate_refuses_holds_and_infers_again(graph, case):
    step, says = REFUSED[case]
    graph.run()
    with Injected(graph, constant(step)):
        graph.listener.wait_state("holding", says)
        held_after(graph)
        assert graph.listener.status.refusals > 0 and graph.listener.status.last_refusal
    graph.listener.wait_state("running")


def test_deactivates_after_refusals_in_a_row(make_graph, make_robot):
    # A busy machine makes a chunk or two too old at the start; not twenty in a row.
    graph = make_graph(robot=make_robot(lambda robot: robot["gate"].update(max_refusals=20)))
    graph.activate()
    graph.run()
    with Injected(graph, constant([np.nan] * 6)):
        graph.listener.wait_state("inactive")
    assert "refusals in a row" in graph.listener.status.last_refusal
    assert graph.is_quiet()
