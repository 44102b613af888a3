"""Fault injection through the real graph, one test per watchdog.

Before: commands flow. During: the arm is brought to a smooth stop that its controller takes, and nothing follows (or it
is left to its last plan, which ends at rest, where nobody would hear or rightly time a stop); the status says why, and
the watchdog's own line in /diagnostics is an error. After: as soon as the cause is gone commands flow again, by
themselves, and the diagnostic is well.
"""

import threading
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


def silence(message):
    return None


def recovered(graph, diagnostic):
    """Commands flow, nothing was rejected, and status and diagnostic are well."""
    moment = time.time_ns()
    graph.wait_for(lambda: graph.arm.commands_since(moment), lambda: f"commands, it is {graph.listener.said()}")
    graph.listener.wait_state("running")
    graph.listener.wait_diagnosis(diagnostic, None)
    assert not graph.arm.rejected


def holds(graph, says, diagnostic, text=None):
    """A smooth stop and silence, the reason in status, last_stop and diagnostic."""
    graph.held("holding", says)
    assert graph.listener.status.last_stop
    graph.listener.wait_diagnosis(diagnostic, text or says)


@pytest.mark.parametrize(("what", "says", "diagnostic"), [
    ("wrist", "camera wrist stopped", "image_stale"),
    ("joint_states", "joint states are stale", "joint_states_stale"),
])
def test_silence(graph, what, says, diagnostic):
    graph.run()
    graph.arm.quirks[what] = silence
    try:
        holds(graph, says, diagnostic)
        graph.listener.wait_state("holding", f"/{graph.namespace}/{'wrist/image_raw' if what == 'wrist' else what}")
    finally:
        graph.arm.quirks.clear()
    recovered(graph, diagnostic)


def test_two_who_publish_the_same_joints(graph):
    """A second publisher of zeros: not believed, not commanded, named; neither is one that agrees."""
    from rclpy.node import Node
    from ros_graph import Spinner
    from sensor_msgs.msg import JointState

    from robovlms_ros.ros.messages import to_time

    for offset in (None, 0.0):
        graph.run()
        second = Node("second_driver", namespace=graph.namespace)
        publisher = second.create_publisher(JointState, "joint_states", 10)
        arm = graph.arm

        def publish(publisher=publisher, arm=arm, offset=offset):
            positions = np.zeros(7) if offset is None else arm.positions + offset
            message = JointState(name=list(arm.robot.joints), position=positions.tolist())
            message.header.stamp = to_time(arm.now_ns())
            publisher.publish(message)

        second.create_timer(0.05, publish)
        spinner = Spinner(second)
        try:
            before = arm.positions.copy()
            holds(graph, "joint states are not believed", "joint_states_implausible")
            graph.listener.wait_diagnosis("joint_states_implausible", f"/{graph.namespace}/second_driver")
            assert np.abs(arm.positions - before).max() < 0.2
        finally:
            spinner.close()
        recovered(graph, "joint_states_implausible")


def test_two_who_command(graph):
    from rclpy.node import Node
    from trajectory_msgs.msg import JointTrajectory

    graph.run()
    second = Node("stranger", namespace=graph.namespace)
    second.create_publisher(JointTrajectory, graph.arm.robot.controller.topic, 10)
    try:
        holds(graph, f"/{graph.namespace}/stranger also commands", "controller_shared")
    finally:
        second.destroy_node()
    recovered(graph, "controller_shared")


def test_another_clients_goal_on_the_same_controller(graph):
    """MoveIt beside the node: its presence is no fault, a goal of its that is under way is one."""
    from action_msgs.msg import GoalStatus, GoalStatusArray
    from rclpy.node import Node

    from robovlms_ros.ros.graph import LATCHED

    graph.run()
    second = Node("move_group", namespace=graph.namespace)
    controller = graph.arm.robot.controller.topic.rpartition("/")[0]
    status = second.create_publisher(
        GoalStatusArray, f"{controller}/follow_joint_trajectory/_action/status", LATCHED
    )
    try:
        goal = GoalStatus(status=GoalStatus.STATUS_EXECUTING)
        goal.goal_info.goal_id.uuid = [7] * 16
        status.publish(GoalStatusArray(status_list=[goal]))
        holds(graph, "another client of", "controller_shared")
        goal.status = GoalStatus.STATUS_SUCCEEDED
        status.publish(GoalStatusArray(status_list=[goal]))
        recovered(graph, "controller_shared")
    finally:
        second.destroy_node()


def test_image_frozen_while_the_joints_move(graph):
    from fake_policies import Injected, constant

    graph.run()
    kept = []

    def freeze(message):
        kept.append(kept[0] if kept else bytes(message.data))
        message.data = kept[0]
        return message

    graph.arm.quirks["static"] = freeze
    try:
        with Injected(graph, constant([0.0, 0.002, 0.0, 0.0, 0.0, 0.0])):
            holds(graph, "camera static is frozen", "image_frozen")
    finally:
        graph.arm.quirks.clear()
    recovered(graph, "image_frozen")


def test_an_image_that_stays_the_same_before_an_arm_at_rest_is_not_frozen(graph):
    from fake_policies import Injected, constant

    graph.run()
    with Injected(graph, constant([0.0] * 6)):
        graph.wait_for(lambda: not graph.arm.is_moving(), "the arm at rest")
        first = []

        def freeze(message):
            first.append(bytes(message.data))
            message.data = first[0]
            return message

        graph.arm.quirks["static"] = freeze
        try:
            graph.wait_for(lambda: len(first) > 16, "twice the time after which it would be frozen")
            moment = time.time_ns()
            graph.wait_for(lambda: graph.arm.commands_since(moment), "commands")
            graph.listener.wait_state("running")
        finally:
            graph.arm.quirks.clear()


@pytest.mark.parametrize(("seconds", "says"), [(8.0, "s ahead of the node's"), (-8.0, "s behind the node's")])
def test_camera_clock(graph, seconds, says):
    from robovlms_ros.ros.messages import from_time, to_time

    graph.run()

    def shift(message):
        message.header.stamp = to_time(from_time(message.header.stamp) + round(seconds * 1e9))
        return message

    graph.arm.quirks["wrist"] = shift
    try:
        graph.listener.wait_state("holding", "camera wrist's clock is")
        graph.listener.wait_diagnosis("camera_clock", says)
        graph.held("holding")
    finally:
        graph.arm.quirks.clear()
    recovered(graph, "camera_clock")


def test_no_instruction(make_graph):
    graph = make_graph()
    graph.activate()
    graph.listener.wait_state("waiting", "no instruction")
    graph.listener.wait_diagnosis("no_instruction", "publish one on the instruction topic")
    assert not graph.arm.commands and not graph.listener.chunks
    graph.run()
    graph.listener.wait_diagnosis("no_instruction", None)
    graph.listener.instruct("")
    holds(graph, "is empty", "no_instruction", "no instruction")
    graph.listener.instruct("lift the green cube")
    recovered(graph, "no_instruction")


def test_inference_late(graph):
    from fake_policies import Injected

    graph.run()
    go_on = threading.Event()

    def dawdle(original, observation):
        go_on.wait(60.0)
        return original(observation)

    with Injected(graph, dawdle):
        try:
            graph.wait_for(lambda: "inference takes" in graph.listener.status.detail, graph.listener.said)
            graph.listener.wait_diagnosis("inference_late", "allowed 3.0 s")
            graph.wait_for(lambda: not graph.arm.is_moving(), "the end of the running plan, at rest")
            assert graph.is_quiet()
        finally:
            go_on.set()
    recovered(graph, "inference_late")


def test_inference_died(graph):
    import torch
    from fake_policies import Injected

    graph.run()

    def out_of_memory(original, observation):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    with Injected(graph, out_of_memory):
        holds(graph, "out of memory", "inference_died")
        assert "OutOfMemoryError" in graph.listener.status.last_refusal
    recovered(graph, "inference_died")


def test_controller_gone(graph):
    """Nobody hears a stop, so none is sent; the controller that comes back is commanded from where the arm is then."""
    graph.run()
    graph.arm.hear(False)
    try:
        graph.listener.wait_state("holding", "nobody listens to")
        graph.listener.wait_diagnosis("controller_absent", "panda_arm_controller/joint_trajectory")
        graph.wait_for(lambda: not graph.arm.is_moving(), "the end of what the controller had")
        moved = graph.arm.positions + 0.1
        graph.put_arm(moved)
        moment = time.time_ns()
    finally:
        graph.arm.hear(True)
    graph.wait_for(lambda: graph.arm.commands_since(moment), graph.listener.said)
    first = graph.arm.commands_since(moment)[0].points[0].positions
    assert np.abs(np.array(first) - moved).max() < 0.09
    recovered(graph, "controller_absent")


@pytest.mark.parametrize("notices", ["tick", "chunk"])
def test_controller_absent_from_the_start(make_graph, make_robot, monkeypatch, notices):
    """It never ran, so it waits, whether the timer or a chunk is first to ask; nothing is sent to nobody."""
    from rclpy.node import Node
    from ros_graph import Spinner
    from trajectory_msgs.msg import JointTrajectory

    from robovlms_ros.ros.policy_runner import PolicyRunner

    graph = make_graph(robot=make_robot(lambda robot: robot["controller"].update(topic="nobody/joint_trajectory")))
    if notices == "chunk":
        monkeypatch.setattr(PolicyRunner, "tick", lambda pilot: None)
    graph.activate()
    graph.listener.instruct("lift the red cube")
    graph.listener.wait_state("waiting", "nobody listens to")
    assert not graph.listener.status.last_stop
    monkeypatch.undo()
    graph.listener.wait_diagnosis("controller_absent", "nobody/joint_trajectory")
    heard = []
    controller = Node("nobody", namespace=graph.namespace)
    controller.create_subscription(JointTrajectory, "~/joint_trajectory", heard.append, 10)
    spinner = Spinner(controller)
    try:
        graph.wait_for(lambda: heard, "a command")
        graph.listener.wait_state("running")
        graph.listener.wait_diagnosis("controller_absent", None)
    finally:
        spinner.close()


def test_controller_that_does_not_follow(make_graph):
    from fake_policies import Injected, constant

    graph = make_graph(watchdog__following_error=0.003, watchdog__following_time=0.3)
    graph.activate()
    graph.run()
    stuck = [*graph.arm.positions.tolist(), 0.04]

    def jam(message):
        message.position, message.velocity = stuck, [0.0] * 8
        return message

    with Injected(graph, constant([0.0, 0.01, 0.0, 0.0, 0.0, 0.0])):
        graph.arm.quirks["joint_states"] = jam
        try:
            graph.wait_for(lambda: "does not follow" in graph.listener.status.last_stop, graph.listener.said)
        finally:
            graph.arm.quirks.clear()
    recovered(graph, "controller_not_following")


def test_an_arm_that_does_not_move(make_graph):
    """It is held, the set point comes back to it, and it goes on from there once it can move."""
    from fake_policies import Injected, constant

    graph = make_graph(watchdog__standstill_time=1.0, watchdog__standstill_motion=0.02)
    graph.activate()
    graph.run()
    with Injected(graph, constant([0.0, 0.01, 0.0, 0.0, 0.0, 0.0])):
        graph.wait_for(graph.arm.is_moving, "motion")
        graph.arm.stuck = True
        pose = graph.arm.positions.copy()

        def away():
            return np.abs(graph.arm.set_point - pose).max()

        graph.wait_for(lambda: away() > 0.01, "a command that leaves the arm behind")
        graph.listener.wait_state("holding", "the arm does not move")
        graph.listener.wait_diagnosis("arm_not_following", "no joint moved")
        graph.wait_for(lambda: away() < 0.001, "the set point at the arm")
        gate = graph.node._runner._executor.gate
        graph.wait_for(lambda: gate.probing, "a plan that begins slowly")
        graph.arm.stuck = False
        graph.wait_for(lambda: not gate.probing, "motion, and with it the end of the suspicion")
    recovered(graph, "arm_not_following")


def test_controller_state_that_does_not_follow(make_graph, make_robot):
    """By the controller's own word, where control_msgs is installed: the joint states show nothing."""
    messages = pytest.importorskip("control_msgs.msg", reason="control_msgs is not installed")
    state = messages.JointTrajectoryControllerState
    topic = "panda_arm_controller/controller_state"
    graph = make_graph(robot=make_robot(lambda robot: robot["controller"].update(state_topic=topic)))
    off = [0.0]
    publisher = graph.arm.create_publisher(state, topic, 10)

    def report():
        message = state(joint_names=list(graph.arm.robot.joints))
        message.error.positions = [0.0, 0.0, off[0], 0.0, 0.0, 0.0, 0.0]
        publisher.publish(message)

    graph.arm.create_timer(0.05, report)
    graph.activate()
    graph.run()
    off[0] = -0.4
    holds(graph, "panda_joint3 is 0.400 rad from its command", "controller_not_following")
    off[0] = 0.0
    recovered(graph, "controller_not_following")


@pytest.mark.parametrize(("seconds", "says"), [(-500, "clock jumped back"), (500, "clock jumped forward by 5")])
def test_clock_jumped(make_graph, seconds, says):
    """Nothing can be timed: the controller is left to what it has, and nothing is sent until all stamps are new."""
    graph = make_graph(use_sim_time=True)
    graph.arm.clock_ns = 1_000 * 10**9
    graph.activate()
    graph.run()
    graph.arm.frozen = True
    graph.wait_for(lambda: graph.node._worker.inferring_since_ns is None and graph.is_quiet(), "standstill")
    graph.arm.quirks |= {"static": silence, "wrist": silence}
    moment = time.time_ns()
    graph.arm.rewind(graph.arm.clock_ns + seconds * 10**9)
    graph.arm.frozen = False
    graph.listener.wait_state("holding", says)
    graph.listener.wait_diagnosis("clock_jumped", "waiting for new images and joint states")
    assert "clock jumped" in graph.listener.status.last_stop
    assert not graph.arm.commands_since(moment)
    graph.arm.quirks.clear()
    graph.wait_for(lambda: graph.arm.commands_since(moment), graph.listener.said)
    begins = [m.header.stamp.sec - 1_000 - seconds for m in graph.arm.commands_since(moment)]
    assert min(begins) >= 0 and max(begins) < 400, "only the new time is used"
    graph.listener.wait_state("running")
    graph.listener.wait_diagnosis("clock_jumped", None)
