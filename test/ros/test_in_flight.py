"""Handling of an inference that is under way, on a policy slow enough (added latency) that one always is.

- A new instruction: the running plan goes on, no chunk of the old words follows once the new ones are heard, the next
  inference's chunk replaces the plan, and the commanded trajectory, by the model of the controller, has no step in it.
- Reset and deactivate: the arm is stopped, and the chunk that was in flight is never published, nor executed.
- Cleanup: ends the inference thread, and the node can be configured again.
"""

import dataclasses
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros

LATENCY = 0.8
TICK_NS = 2_000_000


@pytest.fixture
def graph(make_graph):
    graph = make_graph(added_latency=LATENCY)
    graph.activate()
    return graph


def towards_its_colour(original, observation):
    """A policy for which red is 4 cm to the right of green: chunks of one and the other are far apart."""
    chunk = original(observation)
    side = 1.0 if "red" in chunk.instruction else -1.0
    values = np.zeros_like(chunk.values)
    values[:, 1] = side * (0.02 + 0.002 * np.arange(1, len(values) + 1))
    values[:, 6] = 1.0
    return dataclasses.replace(chunk, values=values)


def worst_step(sent, joints):
    """rad per 2 ms tick that a controller makes of commands [(decided ns, command)], from the second one on."""
    from robovlms_ros.control.trajectory_controller_model import TrajectoryController

    controller = TrajectoryController(joints)
    commands = list(sent)
    now = commands[0][0]
    position, last, worst = commands[0][1].positions[0], None, 0.0
    while commands or now < sent[-1][0] + 10**9:
        while commands and commands[0][0] <= now:
            controller.accept(commands.pop(0)[1], now)
        position, _ = controller.update(now, TICK_NS, position, np.zeros_like(position))
        if last is not None:
            worst = max(worst, float(np.abs(position - last).max()))
        last, now = position, now + TICK_NS
    return worst


def test_a_new_instruction_in_flight(graph):
    from fake_arm import is_stop
    from fake_policies import Injected

    graph.run("lift the red cube")
    with Injected(graph, towards_its_colour):
        graph.run("lift the red cube")
        begin = len(graph.sent)
        for words in ("lift the green cube", "lift the red cube", "lift the green cube"):
            moment = time.time_ns()
            graph.wait_in_flight()
            graph.listener.instruct(words)
            graph.wait_for(lambda w=words: graph.node._inputs.instruction == w, "the node to hear it")
            heard = time.time_ns()
            graph.wait_for(lambda h=heard: len(graph.listener.chunks_since(h)) >= 2, "the new words' chunks")
            new = graph.listener.chunks_since(heard)
            assert {chunk.instruction for chunk in new} == {words}
            first = next(i for i, at in enumerate(graph.listener.chunk_times) if at > heard)
            before = graph.listener.chunks[first - 1].sequence
            assert new[0].sequence <= before + 3, "at most what was in flight, and what began meanwhile, is lost"
            graph.wait_for(lambda h=heard: graph.arm.commands_since(h), "a command")
            assert not any(is_stop(message) for message in graph.arm.commands_since(moment)), "the plan goes on"
        sent = graph.sent[begin:]
    robot = graph.arm.robot
    assert len(sent) >= 4
    assert worst_step(sent, robot.joints) <= 1.01 * max(robot.limits.velocity) * TICK_NS / 1e9
    assert not graph.arm.rejected


def test_the_steps_would_be_seen(graph):
    """The same chunks without scheduling (each placed where it begins) do step: the test above can fail."""
    from fake_policies import Injected

    graph.run("lift the red cube")
    with Injected(graph, towards_its_colour):
        graph.run("lift the red cube")
        graph.run("lift the green cube")
        sent = list(graph.sent)
    apart = [(at, dataclasses.replace(command, positions=command.positions + 0.03 * (index % 2)))
             for index, (at, command) in enumerate(sent)]
    robot = graph.arm.robot
    assert worst_step(apart, robot.joints) > 2 * max(robot.limits.velocity) * TICK_NS / 1e9


def test_reset_in_flight(graph):
    from fake_arm import is_stop
    from fake_policies import Injected, constant

    from robovlms_ros.ros.messages import from_time

    graph.run()
    with Injected(graph, constant([0.0, 0.0005, 0.0, 0.0, 0.0, 0.0])):
        for _ in range(2):
            moment, flying = time.time_ns(), graph.wait_in_flight()
            assert graph.listener.call("reset").success
            answered = time.time_ns()
            graph.wait_for(lambda m=moment: any(map(is_stop, graph.arm.commands_since(m))), "the stop")
            graph.wait_for(lambda a=answered: len(graph.listener.chunks_since(a)) >= 2, "chunks after the reset")
            assert all(from_time(c.header.stamp) > flying for c in graph.listener.chunks_since(answered))
            first = graph.listener.chunk_times[-len(graph.listener.chunks_since(answered))]
            stop = next(at for at, message in graph.arm.commands if at > moment and is_stop(message))
            assert not [at for at, _ in graph.arm.commands if stop < at < first], "nothing between the stop and a chunk"
            graph.wait_for(lambda f=first: graph.arm.commands_since(f), "commands")
    assert not graph.arm.rejected


def test_deactivate_and_clean_up_in_flight(graph):
    from rclpy.lifecycle import TransitionCallbackReturn

    graph.run()
    for cleans_up in (False, True):
        graph.wait_in_flight()
        assert graph.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
        ended = time.time_ns()
        worker = graph.node._worker
        assert worker.inferring_since_ns is not None, "it was in flight"
        if cleans_up:
            assert graph.node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
            assert not worker.alive
        graph.wait_for(lambda w=worker: w.inferring_since_ns is None, "the end of what was in flight")
        graph.held("unconfigured" if cleans_up else "inactive")
        assert not graph.listener.chunks_since(ended) and not graph.arm.commands_since(ended)
        if cleans_up:
            graph.activate()
        else:
            assert graph.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        graph.run()
