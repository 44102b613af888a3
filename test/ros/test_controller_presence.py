"""The controller is present where its own node receives commands and is active.

- A recorder or a plotter on the same topic is no controller; `controller.node` names another one,
  or any.
- An inactive controller that keeps its subscription is absent: by its lifecycle services, by the
  controller manager, by `controller_state` that falls silent.
- Where nothing can be queried the subscription counts, with one line in the log.
- A controller that executes another motion than commanded: nothing is sent until it rests, and the
  sender is named where the graph shows it.

Each through the real graph: before, during and after. What needs control_msgs or
controller_manager_msgs skips where they are not installed.
"""

import threading
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros

TOPIC = "panda_arm_controller/joint_trajectory"


def absent(graph, says):
    """Nothing more is sent, the reason in status and diagnostic."""
    graph.listener.wait_state("holding", says)
    graph.listener.wait_diagnosis("controller_absent", says)
    assert graph.is_quiet()
    assert says in graph.listener.status.last_stop


def recovered(graph, diagnostic="controller_absent"):
    moment = time.time_ns()
    graph.wait_for(lambda: graph.arm.commands_since(moment), graph.listener.said)
    graph.listener.wait_state("running")
    graph.listener.wait_diagnosis(diagnostic, None)
    assert not graph.arm.rejected


@pytest.fixture
def subscriber(ros):
    """A function that makes a node that receives trajectories and does nothing with them."""
    from rclpy.node import Node
    from trajectory_msgs.msg import JointTrajectory

    nodes = []

    def make(name, namespace, topic=TOPIC):
        nodes.append(Node(name, namespace=namespace))
        nodes[-1].create_subscription(JointTrajectory, topic, lambda message: None, 10)
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()


def test_a_recorder_is_no_controller(make_graph, subscriber):
    graph = make_graph()
    subscriber("recorder", graph.namespace)
    graph.activate()
    graph.run()
    graph.arm.hear(False)
    try:
        absent(graph, f"/{graph.namespace}/recorder listens to /{graph.namespace}/{TOPIC}")
        assert f"/{graph.namespace}/panda_arm_controller does not" in graph.listener.status.detail
    finally:
        graph.arm.hear(True)
    recovered(graph)


def test_the_robots_yaml_names_another_node_or_any(stage, subscriber):
    space = stage.sender.get_namespace()
    subscriber("driver", space, "some_controller/joint_trajectory")

    def make(**block):
        arm = stage.arm(
            type="joint_trajectory", topic="some_controller/joint_trajectory", **block
        )
        stage.wait_for(arm.listeners, "the connection")
        return arm

    default = make()
    stage.wait_for(lambda: "/driver listens" in default.absence(), "the driver's name")
    assert f"node {space}/some_controller does not" in default.absence()
    assert "controller.node" in default.absence()
    named = make(node="driver")
    stage.wait_for(lambda: not named.absence(), "the driver")
    assert not make(node="*").absence()
    other = make(node="/elsewhere/driver")
    stage.wait_for(lambda: "node /elsewhere/driver does not" in other.absence(), "the other name")


def test_names_that_decide():
    from robovlms_ros.ros.controllers.controller_presence import strangers

    own = "/robot/arm_controller"
    assert strangers(own, (own, "/recorder")) == ()
    assert strangers(own, ("/recorder", "/plotter", "/plotter")) == ("/plotter", "/recorder")
    assert strangers("", ("/recorder",)) == ()
    bare = "_NODE_NAMESPACE_UNKNOWN_/_CREATED_BY_BARE_DDS_APP_"
    assert strangers(own, (bare, "/recorder")) == ()


def test_a_topic_of_the_robots_own_namespace_names_no_controller(stage, subscriber):
    from robovlms_ros.ros.controllers.controller_presence import controller_name

    space = stage.sender.get_namespace()
    assert controller_name(stage.sender, f"{space}/joint_trajectory", None) == ""
    assert controller_name(stage.sender, f"{space}/arm/joint_trajectory", None) == f"{space}/arm"
    assert controller_name(stage.sender, f"{space}/x/y", "driver") == f"{space}/driver"
    assert controller_name(stage.sender, f"{space}/x/y", "/a/driver") == "/a/driver"
    assert controller_name(stage.sender, f"{space}/x/y", "*") == f"{space}/x"
    subscriber("driver", space, "joint_trajectory")
    arm = stage.arm(type="joint_trajectory", topic="joint_trajectory")
    stage.wait_for(arm.listeners, "the connection")
    assert not arm.absence()


@pytest.mark.parametrize("node", ["", "two words", "9"])
def test_a_name_that_is_none_is_refused(stage, node):
    from robovlms_ros.core.schema import ConfigError

    for block in (
        {"type": "joint_trajectory", "topic": "a/b"},
        {"type": "follow_joint_trajectory", "action": "a/b"},
        {"type": "cartesian_pose", "topic": "a/b"},
        {"type": "forward_position", "topic": "a/b"},
    ):
        with pytest.raises(ConfigError, match=r"controller\.node"):
            stage.context(controller={**block, "node": node})


class Lifecycle:
    """The lifecycle services of a controller's node."""

    def __init__(self, node):
        from lifecycle_msgs.msg import TransitionEvent
        from lifecycle_msgs.srv import GetState

        self.state = (3, "active")
        node.create_service(GetState, "~/get_state", self._answer)
        self._events = node.create_publisher(TransitionEvent, "~/transition_event", 10)

    def _answer(self, request, response):
        response.current_state.id, response.current_state.label = self.state
        return response

    def change(self, number, label):
        self.state = (number, label)
        event = self._events.msg_type()
        event.goal_state.id, event.goal_state.label = self.state
        self._events.publish(event)


def test_an_inactive_controller_by_its_lifecycle(make_graph):
    graph = make_graph()
    lifecycle = Lifecycle(graph.arm.controller)
    graph.activate()
    graph.run()
    graph.arm.active = False
    lifecycle.change(2, "inactive")
    absent(graph, f"/{graph.namespace}/panda_arm_controller is inactive (by get_state)")
    graph.arm.active = True
    lifecycle.change(3, "active")
    recovered(graph)


def test_a_controller_that_is_inactive_from_the_start(make_graph):
    graph = make_graph()
    lifecycle = Lifecycle(graph.arm.controller)
    lifecycle.state = (2, "inactive")
    graph.activate()
    graph.listener.instruct("lift the red cube")
    graph.listener.wait_diagnosis("controller_absent", "is inactive (by get_state)")
    lifecycle.change(3, "active")
    recovered(graph)


def test_an_inactive_controller_by_the_controller_manager(make_graph):
    messages = pytest.importorskip(
        "controller_manager_msgs.msg", reason="controller_manager_msgs is not installed"
    )
    from rclpy.node import Node

    from robovlms_ros.ros.graph import LATCHED

    graph = make_graph()
    manager = Node("controller_manager", namespace=graph.namespace)
    publisher = manager.create_publisher(
        messages.ControllerManagerActivity, "~/activity", LATCHED
    )

    def publish(number, label):
        activity = messages.ControllerManagerActivity()
        states = {"broadcaster": (3, "active"), "panda_arm_controller": (number, label)}
        for name, state in states.items():
            entry = messages.NamedLifecycleState(name=name)
            entry.state.id, entry.state.label = state
            activity.controllers.append(entry)
        publisher.publish(activity)

    try:
        publish(3, "active")
        graph.activate()
        graph.run()
        graph.arm.active = False
        publish(2, "inactive")
        absent(graph, "panda_arm_controller is inactive (by controller_manager)")
        graph.arm.active = True
        publish(3, "active")
        recovered(graph)
        publish(2, "inactive")
        graph.listener.wait_state("holding", "is inactive")
    finally:
        manager.destroy_node()
    # A manager that is gone is no source.
    recovered(graph)


def test_an_inactive_controller_by_its_silence(make_graph):
    messages = pytest.importorskip("control_msgs.msg", reason="control_msgs is not installed")
    graph = make_graph()
    graph.arm.report_state(messages)
    graph.activate()
    graph.run()
    graph.wait_for(lambda: graph.node._arm.reference() is not None, "the controller's state")
    graph.arm.active = False
    absent(graph, f"stopped publishing /{graph.namespace}/panda_arm_controller/controller_state")
    graph.arm.active = True
    recovered(graph)


def test_one_line_in_the_log_where_nothing_can_be_queried(stage, subscriber, monkeypatch):
    lines = []
    monkeypatch.setattr(stage.sender.get_logger(), "info", lines.append)
    subscriber("some_controller", stage.sender.get_namespace(), "~/joint_trajectory")
    arm = stage.arm(type="joint_trajectory", topic="some_controller/joint_trajectory")
    said = lambda: [line for line in lines if "the presence of" in line]  # noqa: E731
    stage.wait_for(said, "the line")
    time.sleep(1.2)
    assert len(said()) == 1
    assert "some_controller alone: its state cannot be queried" in said()[0]
    assert not arm.absence()


def in_process(graph):
    """The controller's reference without its message, for machines without control_msgs."""
    from robovlms_ros.core.types import RobotState

    graph.node._arm.reference = lambda: RobotState(graph.arm.now_ns(), graph.arm.set_point)


def by_message(graph):
    messages = pytest.importorskip("control_msgs.msg", reason="control_msgs is not installed")
    graph.arm.report_state(messages)
    graph.wait_for(lambda: graph.node._arm.reference() is not None, "the controller's state")


def strange_trajectory(graph, seconds):
    """A slow motion of joint 1 by 0.4 rad, as another client would send it."""
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    goal = graph.arm.set_point + np.array([0.4, 0, 0, 0, 0, 0, 0])
    point = JointTrajectoryPoint(positions=goal.tolist(), velocities=[0.0] * 7)
    point.time_from_start.sec = seconds
    return JointTrajectory(joint_names=list(graph.arm.robot.joints), points=[point])


@pytest.mark.parametrize("report", [in_process, by_message])
def test_another_motion_than_commanded(make_graph, report):
    """Its sender does not show in the graph: nothing is sent until the controller rests."""
    from fake_policies import Injected

    graph = make_graph(watchdog__reference_time=0.4)
    graph.activate()
    report(graph)
    graph.run()
    begun = threading.Event()
    go_on = threading.Event()

    def dawdle(original, observation):
        begun.set()
        go_on.wait(60.0)
        return original(observation)

    with Injected(graph, dawdle):  # no command of ours replaces the foreign motion
        try:
            graph.wait_for(begun.is_set, "an inference")
            graph.wait_for(
                lambda: graph.is_quiet(1.0) and not graph.arm.is_moving(), "the end of the plan"
            )
            graph.arm.follow(strange_trajectory(graph, 2))
            graph.listener.wait_state("holding", "another motion than commanded")
            graph.listener.wait_diagnosis("controller_reference", "the graph shows no other sender")
            assert "panda_joint1" in graph.listener.status.last_stop
            moment = time.time_ns()
            graph.wait_for(lambda: not graph.arm.is_moving(), "the end of the foreign motion")
            assert not graph.arm.commands_since(moment)
            end = graph.arm.positions.copy()
        finally:
            go_on.set()
        graph.wait_for(lambda: graph.arm.commands_since(moment), graph.listener.said)
    first = graph.arm.commands_since(moment)[0].points[0].positions
    assert np.abs(np.array(first) - end).max() < 0.02
    recovered(graph, "controller_reference")


def test_the_sender_of_another_motion_is_named(make_graph):
    from fake_policies import Injected, constant
    from rclpy.node import Node
    from trajectory_msgs.msg import JointTrajectory

    graph = make_graph(watchdog__reference_time=0.4)
    graph.activate()
    in_process(graph)
    graph.run()
    with Injected(graph, constant([0.0] * 6)):
        second = Node("stranger", namespace=graph.namespace)
        publisher = second.create_publisher(JointTrajectory, TOPIC, 10)
        try:
            graph.held("holding", f"/{graph.namespace}/stranger also commands")
            publisher.publish(strange_trajectory(graph, 3))
            says = f"/{graph.namespace}/stranger also commands it or did so"
            graph.listener.wait_diagnosis("controller_reference", says)
        finally:
            second.destroy_node()
        graph.wait_for(lambda: not graph.arm.is_moving(), "the end of the foreign motion")
    recovered(graph, "controller_reference")
