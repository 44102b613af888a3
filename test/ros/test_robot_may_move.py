"""The input robot_may_move: a safety system's permission to move.

- Without a first message nothing moves; with true the arm moves.
- False is a smooth stop. The arm does not go on when true returns: it needs a new instruction, and
  one that came while the permission was withdrawn is dropped.
- With resume_after_stop the arm goes on by itself.
- A periodic permission that is not renewed is withdrawn.
- A goal of ~/execute ends by it.
"""

import time

import pytest

pytestmark = pytest.mark.ros


@pytest.fixture
def permit(make_graph):
    """A function that makes an active graph, and a function that publishes the permission."""
    from rclpy.node import Node
    from ros_graph import Spinner
    from std_msgs.msg import Bool

    from robovlms_ros.ros.graph import LATCHED, NEWEST_ONLY

    spinners = []

    def make(timeout=0.0, **values):
        graph = make_graph(
            robot_may_move_topic="robot_may_move", robot_may_move_timeout=timeout, **values
        )
        node = Node("safety_system", namespace=graph.namespace)
        qos = NEWEST_ONLY if timeout else LATCHED
        publisher = node.create_publisher(Bool, "robot_may_move", qos)
        spinners.append(Spinner(node))
        graph.activate()
        return graph, lambda value: publisher.publish(Bool(data=value))

    yield make
    for spinner in spinners:
        spinner.close()


def test_nothing_moves_without_it_and_false_stops_for_good(permit):
    graph, publish = permit()
    graph.listener.instruct("lift the red cube")
    graph.listener.wait_state("waiting", "permission to move has not come")
    assert not graph.arm.commands
    publish(True)
    graph.run()
    publish(False)
    graph.held("waiting", "the robot may not move: false on robot_may_move")
    graph.listener.wait_diagnosis("robot_may_not_move", "false on robot_may_move")
    assert "may not move" in graph.listener.status.last_stop
    graph.listener.instruct("lift the green cube")
    time.sleep(0.5)
    publish(True)
    graph.listener.wait_state("waiting", "no instruction")
    assert graph.is_quiet(1.0)
    graph.run("lift the green cube")


def test_it_may_resume(permit):
    graph, publish = permit(resume_after_stop=True)
    publish(True)
    graph.run()
    publish(False)
    graph.held("holding", "the robot may not move")
    moment = time.time_ns()
    publish(True)
    graph.wait_for(lambda: graph.arm.commands_since(moment), "commands")
    graph.listener.wait_state("running")
    assert not graph.arm.rejected


def test_a_permission_that_is_not_renewed(permit):
    graph, publish = permit(timeout=5.0)
    timer = graph.arm.create_timer(0.1, lambda: publish(True))
    graph.run()
    timer.cancel()
    graph.held("waiting", "nothing on robot_may_move for more than 5 s")


def test_a_goal_ends_by_it(permit):
    from action_client import GoalClient

    graph, publish = permit()
    publish(True)
    client = GoalClient(graph)
    try:
        goal = client.send("lift the red cube")
        goal.wait_running()
        publish(False)
        answer = goal.result()
        assert answer.result.termination_reason == "fault"
        assert "the robot may not move" in answer.result.message
        graph.held("waiting", "may not move")
    finally:
        client.close()
