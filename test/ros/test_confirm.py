"""A person between the policy and the arm: ~/confirm, ~/planned_trajectory, ~/verdict, dry_run.

- `each_chunk`: nothing moves before ~/confirm; the motion that was shown is executed to its end,
  then the next one waits. `first_chunk`: the arm goes on by itself, until a stop.
- A chunk does not wait any longer once the arm was moved or a fault came.
- ~/planned_trajectory carries the command that is sent, in dry_run the one that would be.
- ~/verdict carries pass, clamp or refuse, the reason, the nearest limit.
- dry_run and confirm change while the node is inactive, with the same policy in memory.
"""

import math
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros

MOVE = [0.0, 0.001, 0.0, 0.0, 0.0, 0.0]


@pytest.fixture
def watch():
    """A function that subscribes a graph's listener to ~/planned_trajectory and ~/verdict."""
    from trajectory_msgs.msg import JointTrajectory

    from robovlms_ros.msg import ChunkVerdict

    def subscribe(graph):
        planned = []
        verdicts = []
        node = graph.listener
        node.create_subscription(JointTrajectory, "vla/planned_trajectory", planned.append, 50)
        node.create_subscription(ChunkVerdict, "vla/verdict", verdicts.append, 50)
        return planned, verdicts

    return subscribe


def ends(trajectory):
    return np.array(trajectory.points[-1].positions)


def confirm(graph):
    return graph.listener.call("confirm")


def test_each_chunk(make_graph, watch):
    from fake_policies import Injected, constant

    graph = make_graph(confirm="each_chunk")
    planned, verdicts = watch(graph)
    graph.activate()
    assert not confirm(graph).success
    with Injected(graph, constant(MOVE)):
        graph.listener.instruct("lift the red cube")
        for _ in range(2):
            before = len(graph.arm.commands)
            graph.listener.wait_state("waiting", "waits for ~/confirm")
            graph.wait_for(lambda: planned and verdicts, "the plan")
            assert graph.is_quiet(1.0)
            shown = ends(planned[-1])
            assert not verdicts[-1].sent
            assert confirm(graph).success
            graph.wait_for(lambda n=before: len(graph.arm.commands) > n, "the command")
            np.testing.assert_allclose(ends(graph.arm.last), shown, atol=1e-3)
            graph.wait_for(lambda: verdicts[-1].sent or "waits" in graph.listener.status.detail, "")
            assert any(verdict.sent for verdict in verdicts)
            graph.wait_for(
                lambda s=shown: np.allclose(graph.arm.positions, s, atol=2e-3), "the motion's end"
            )
            assert len(graph.arm.commands) == before + 1
            planned.clear()
            verdicts.clear()
    assert not graph.arm.rejected


def test_first_chunk_and_an_arm_that_was_moved(make_graph):
    graph = make_graph(confirm="first_chunk")
    graph.activate()
    graph.listener.instruct("lift the red cube")
    graph.listener.wait_state("waiting", "waits for ~/confirm")
    graph.put_arm(graph.arm.positions + 0.1)
    answer = confirm(graph)
    assert not answer.success
    assert "the arm moved by 0.1" in answer.message
    graph.listener.wait_state("waiting", "waits for ~/confirm")
    assert not graph.arm.commands
    assert confirm(graph).success
    graph.listener.wait_state("running")
    graph.wait_for(lambda: len(graph.arm.commands) > 3, "commands by themselves")
    graph.listener.call("reset")
    graph.listener.wait_state("waiting", "waits for ~/confirm")
    graph.held("waiting", "waits for ~/confirm")


def test_a_fault_while_a_chunk_waits(make_graph):
    graph = make_graph(confirm="each_chunk")
    graph.activate()
    graph.listener.instruct("lift the red cube")
    graph.listener.wait_state("waiting", "waits for ~/confirm")
    graph.arm.quirks["wrist"] = lambda message: None
    graph.listener.wait_state("waiting", "camera wrist stopped")
    assert not confirm(graph).success
    graph.arm.quirks.clear()
    graph.listener.wait_state("waiting", "waits for ~/confirm")
    assert not graph.arm.commands


def test_dry_run_changes_while_inactive(make_graph, watch):
    graph = make_graph(dry_run=True)
    planned, verdicts = watch(graph)
    graph.activate()
    policy = graph.node._policy
    graph.listener.instruct("lift the red cube")
    graph.wait_for(lambda: planned and verdicts, "what would be sent")
    graph.listener.wait_state("running")
    assert not graph.arm.commands
    assert not any(verdict.sent for verdict in verdicts)
    assert {verdict.verdict for verdict in verdicts} <= {"pass", "clamp"}
    name, kind = verdicts[-1].nearest_limit.split()
    assert name in graph.arm.robot.joints
    assert kind in ("position", "velocity", "acceleration")
    assert 0.0 < verdicts[-1].limit_use < 1.05
    assert not graph.set_parameter("dry_run", False).successful
    graph.node.trigger_deactivate()
    assert graph.set_parameter("dry_run", False).successful
    graph.node.trigger_activate()
    graph.run()
    assert not graph.listener.status.dry_run
    assert graph.node._policy is policy
    graph.node.trigger_deactivate()
    assert graph.set_parameter("dry_run", True).successful
    graph.node.trigger_activate()
    moment = time.time_ns()
    chunks = len(graph.listener.chunks)
    graph.listener.instruct("lift the red cube")
    graph.wait_for(lambda: len(graph.listener.chunks) > chunks + 3, "chunks")
    assert not graph.arm.commands_since(moment)


def test_a_refused_chunk(make_graph, watch):
    from fake_policies import Injected, constant

    graph = make_graph()
    planned, verdicts = watch(graph)
    graph.activate()
    with Injected(graph, constant([0.0, 0.5, 0.0, 0.0, 0.0, 0.0])):
        graph.listener.instruct("lift the red cube")
        graph.wait_for(lambda: verdicts, "a verdict")
    first = verdicts[0]
    assert (first.verdict, first.sent, first.nearest_limit) == ("refuse", False, "")
    assert first.reason
    assert math.isnan(first.limit_use)
    assert not planned


def test_the_plan_is_what_is_sent(live, watch):
    planned, verdicts = watch(live)
    live.run()
    live.wait_for(lambda: len(planned) > 3 and len(verdicts) > 3, "plans")
    sent = [message for _, message in live.arm.commands]
    live.wait_for(lambda: planned[2] in [m for _, m in live.arm.commands], "the same command")
    assert sent
    assert all(verdict.sent for verdict in verdicts if verdict.verdict != "refuse")
