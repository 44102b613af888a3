"""The action `~/execute` through rclpy's action client, while the arm moves.

- A goal succeeds by each rule, by a mark and by the success topic; a mark may be a failure.
- Timeout, cancel, fault, deactivation and a killed client end it. Every end is a smooth stop, after
  which nothing is inferred and the instruction is empty.
- A goal with preempt replaces another one without a stop; without preempt it is refused.
- While a goal runs, the topic's instructions are refused; a goal replaces the topic's instruction.
- Goals that do not fit are refused with the reason in the log and in the status.
- Activation does not resume an old instruction.
"""

import itertools
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros

MOVE = [0.0, 0.001, 0.0, 0.0, 0.0, 0.0]
REST = [0.0] * 6


@pytest.fixture(scope="module")
def graph(ros, tiny_checkpoint, make_robot):
    from ros_graph import Graph

    graph = Graph(tiny_checkpoint, robot=make_robot(), goal_fault_time=8.0)
    graph.activate()
    yield graph
    graph.close()


@pytest.fixture
def client(graph):
    """A client of the action; the node is active and without an instruction at the end."""
    from action_client import GoalClient

    client = GoalClient(graph)
    yield client
    client.close()
    graph.arm.quirks.clear()
    if graph.node.lifecycle_state == "inactive":
        graph.node.trigger_activate()


def stopped(graph, detail="no instruction"):
    """A smooth stop that continues the motion before it; nothing is commanded or inferred after."""
    graph.held("waiting", detail)
    assert graph.listener.status.instruction == ""
    chunks = len(graph.listener.chunks)
    time.sleep(0.5)
    assert len(graph.listener.chunks) == chunks, "no inference after the end"
    assert worst_step(graph) < 1e-3
    assert not graph.arm.rejected


def worst_step(graph, begin=0):
    """Largest step (rad) and kink (rad per 10 ms) between a command and the one it replaced."""
    from robovlms_ros.control.trajectory import curve_of

    worst = 0.0
    curves = [(now, curve_of(command, now)) for now, command in graph.sent[begin:]]
    for (_, before), (now, after) in itertools.pairwise(curves):
        at = np.array([max(now, int(after.times_ns[0]))])
        old, new = before(at), after(at)
        worst = max(worst, np.abs(old[0] - new[0]).max(), np.abs(old[1] - new[1]).max() / 100)
    return worst


def succeeded(answer):
    from action_msgs.msg import GoalStatus

    return answer.status == GoalStatus.STATUS_SUCCEEDED


def test_done_by_rest(graph, client):
    from fake_policies import Injected, constant

    with Injected(graph, constant(REST)):
        goal = client.send("lift the red cube", done_when=["still_for 1.0"])
        answer = goal.result()
    assert succeeded(answer)
    assert answer.result.termination_reason == "succeeded"
    assert answer.result.outcome == "unknown"
    assert "still_for 1" in answer.result.message
    stopped(graph)


def test_done_by_a_closed_gripper(graph, client):
    from fake_policies import Injected, constant

    def half_open(message):
        message.position[-1] = 0.02
        return message

    graph.arm.quirks["joint_states"] = half_open
    with Injected(graph, constant(MOVE, opening=0.0)):
        goal = client.send("lift the red cube", done_when=["gripper_closed_on_object"])
        answer = goal.result()
    assert succeeded(answer)
    assert "gripper_closed_on_object" in answer.result.message
    stopped(graph)


@pytest.mark.parametrize(("outcome", "reason"), [("success", "succeeded"), ("failure", "failed")])
def test_done_by_a_mark(graph, client, outcome, reason):
    goal = client.send("lift the red cube")
    goal.wait_running()
    assert client.mark(outcome, "seen from above").success
    answer = goal.result()
    assert succeeded(answer) == (outcome == "success")
    assert answer.result.termination_reason == reason
    assert answer.result.outcome == outcome
    assert "seen from above" in answer.result.message
    graph.wait_for(lambda: client.outcomes == [outcome], "the marker")
    stopped(graph)
    late = client.mark("success", "")
    assert not late.success
    assert "no instruction" in late.message
    assert "success, failure" in client.mark("perhaps", "").message


def test_done_by_the_success_topic(graph, client):
    goal = client.send("lift the red cube")
    goal.wait_running()
    client.publish_success(False)
    client.publish_success(True)
    answer = goal.result()
    assert (answer.result.termination_reason, answer.result.outcome) == ("succeeded", "success")
    stopped(graph)


def test_timeout(graph, client):
    from action_msgs.msg import GoalStatus

    goal = client.send("lift the red cube", max_duration=3.0)
    answer = goal.result()
    assert answer.status == GoalStatus.STATUS_ABORTED
    assert answer.result.termination_reason == "timed_out"
    assert "3 s" in answer.result.message
    stopped(graph)


def test_cancel(graph, client):
    from action_msgs.msg import GoalStatus

    goal = client.send("lift the red cube")
    goal.wait_running()
    feedback = goal.feedback[-1]
    assert feedback.chunks > 0
    assert feedback.elapsed > 0.0
    assert feedback.reaction_time > 0.0
    assert np.isnan(feedback.progress)
    goal.cancel()
    answer = goal.result()
    assert answer.status == GoalStatus.STATUS_CANCELED
    assert answer.result.termination_reason == "canceled"
    stopped(graph)


def test_a_goal_replaces_another_without_a_stop(graph, client):
    first = client.send("lift the red cube")
    first.wait_running()
    stop = graph.listener.status.last_stop_time
    second = client.send("lift the green cube", preempt=True)
    assert first.result().result.termination_reason == "preempted"
    second.wait_running()
    assert graph.listener.status.last_stop_time == stop
    assert graph.listener.status.instruction == "lift the green cube"
    second.cancel()
    second.result()
    stopped(graph)


def test_a_second_goal_without_preempt_is_refused(graph, client):
    first = client.send("lift the red cube")
    first.wait_running()
    assert client.send("lift the green cube") is None
    graph.wait_for(lambda: "another goal" in graph.listener.status.last_refusal, "the reason")
    first.wait_running()
    first.cancel()
    assert first.result().result.termination_reason == "canceled"
    stopped(graph)


def test_a_fault(graph, client):
    goal = client.send("lift the red cube")
    goal.wait_running()
    graph.arm.quirks["wrist"] = lambda message: None
    graph.held("holding", "camera wrist stopped")
    answer = goal.result()
    assert answer.result.termination_reason == "fault"
    assert "camera wrist stopped" in answer.result.message
    graph.arm.quirks.clear()
    stopped(graph)


def test_a_short_fault_does_not_end_the_goal(graph, client):
    goal = client.send("lift the red cube")
    goal.wait_running()
    graph.arm.quirks["wrist"] = lambda message: None
    graph.held("holding", "camera wrist stopped")
    graph.arm.quirks.clear()
    goal.wait_running()
    goal.cancel()
    assert goal.result().result.termination_reason == "canceled"


def test_deactivation_and_no_old_instruction_after_it(graph, client):
    goal = client.send("lift the red cube")
    goal.wait_running()
    graph.node.trigger_deactivate()
    answer = goal.result()
    assert answer.result.termination_reason == "deactivated"
    graph.held("inactive")
    assert client.send("lift the red cube") is None
    graph.node.trigger_activate()
    stopped(graph)


def test_an_old_instruction_is_not_resumed(graph, client):
    graph.run("lift the red cube")
    graph.node.trigger_deactivate()
    graph.held("inactive")
    graph.node.trigger_activate()
    stopped(graph)
    graph.run("lift the red cube")
    assert client.mark("success", "by hand").success
    stopped(graph)


def test_a_goal_and_the_topic(graph, client):
    graph.run("lift the green cube")
    goal = client.send("lift the red cube")
    goal.wait_running()
    assert graph.listener.status.instruction == "lift the red cube"
    graph.listener.instruct("lift the green cube")
    graph.wait_for(lambda: "on the topic refused" in graph.listener.status.last_refusal, "the text")
    assert graph.listener.status.instruction == "lift the red cube"
    goal.cancel()
    goal.result()
    stopped(graph)
    graph.run("lift the green cube")
    assert client.mark("success", "").success


@pytest.mark.parametrize(("fields", "says"), [
    ({"instruction": " "}, "it is empty"),
    ({"max_duration": -1.0}, "max_duration = -1.0"),
    ({"max_duration": float("nan")}, "max_duration = nan"),
    ({"done_when": ["still_fo 2"]}, "Did you mean 'still_for'"),
])
def test_goals_that_do_not_fit(graph, client, fields, says):
    assert client.send(**{"instruction": "lift the red cube", **fields}) is None
    graph.wait_for(lambda: says in graph.listener.status.last_refusal, graph.listener.said)


def test_a_killed_client(graph):
    code = f"""
import rclpy
from rclpy.action import ActionClient
from rclpy.node import Node
from robovlms_ros.action import ExecuteInstruction
rclpy.init()
node = Node("doomed", namespace="{graph.namespace}")
client = ActionClient(node, ExecuteInstruction, "vla/execute")
client.wait_for_server()
goal = ExecuteInstruction.Goal(instruction="lift the red cube")
rclpy.spin_until_future_complete(node, client.send_goal_async(goal))
print("sent", flush=True)
rclpy.spin(node)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "sent"
        graph.listener.wait_state("running")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    graph.wait_for(lambda: "no client" in graph.listener.status.last_stop, graph.listener.said)
    stopped(graph)
