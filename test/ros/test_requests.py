"""Requests that do not fit: every transition in every state over the real service, parameters of wrong types and at the
wrong time, every service in every state, simulated time below zero. Each is answered, and the node goes on.
"""

import itertools
from functools import partialmethod

import pytest

pytestmark = pytest.mark.ros

STATES = {  # state: transitions that lead there from unconfigured
    "unconfigured": (), "inactive": (1,), "active": (1, 3), "finalized": (5,),
}
ALLOWED = {
    "unconfigured": {1: "inactive", 5: "finalized"},
    "inactive": {2: "unconfigured", 3: "active", 6: "finalized"},
    "active": {4: "inactive", 7: "finalized"},
    "finalized": {},
}
LABELS = {1: "configure", 2: "cleanup", 3: "activate", 4: "deactivate"}


@pytest.fixture
def plain(ros):
    """A lifecycle node that does nothing in its transitions, and a client of any of its services."""
    from ros_graph import Spinner, wait_for

    from robovlms_ros.ros.lifecycle import PlainLifecycleNode

    nodes = []

    class Client:
        count = itertools.count()

        def __init__(self):
            self.name = f"plain{next(self.count)}"
            self.node = PlainLifecycleNode(self.name)
            self.client = ros.create_node(f"client_of_{self.name}")
            self._spinners = [Spinner(self.node), Spinner(self.client)]
            nodes.append(self)

        def call(self, kind, name, request):
            client = self.client.create_client(kind, f"{self.name}/{name}")
            wait_for(client.service_is_ready, f"the service {name}")
            future = client.call_async(request)
            wait_for(future.done, f"an answer of {name}")
            return future.result()

        def change(self, number, label=""):
            from lifecycle_msgs.srv import ChangeState

            request = ChangeState.Request()
            request.transition.id, request.transition.label = number, label
            return self.call(ChangeState, "change_state", request).success

        def close(self):
            for spinner in self._spinners:
                spinner.close()

    yield Client
    for node in nodes:
        node.close()


@pytest.mark.untimed
@pytest.mark.parametrize("state", STATES)
def test_every_transition_id_in_every_state(plain, state):
    for number in (*range(10), 10, 30, 40, 50, 60, 99, 255):
        graph = plain()
        for step in STATES[state]:
            assert graph.change(step)
        assert graph.node.lifecycle_state == state
        assert graph.change(number) is (number in ALLOWED[state])
        assert graph.node.lifecycle_state == ALLOWED[state].get(number, state)
        graph.close()


@pytest.mark.untimed
@pytest.mark.parametrize("state", STATES)
def test_every_label_in_every_state(plain, state):
    graph = plain()
    for step in STATES[state]:
        assert graph.change(step)
    for label in ("create", "destroy", "transition_success", "", "\x1b[2J", "x" * 100_000):
        assert not graph.change(0, label)
    for number, label in LABELS.items():
        if number not in ALLOWED[state]:
            assert not graph.change(0, label)
    assert graph.node.lifecycle_state == state


@pytest.mark.untimed
def test_a_label_that_fits_is_carried_out(plain):
    graph = plain()
    for label, state in (("configure", "inactive"), ("activate", "active"), ("deactivate", "inactive"),
                         ("cleanup", "unconfigured"), ("shutdown", "finalized")):
        assert graph.change(0, label)
        assert graph.node.lifecycle_state == state


@pytest.mark.untimed
def test_a_trigger_that_does_not_fit_fails(plain):
    node = plain().node
    assert not node.change_state("activate")
    assert node.lifecycle_state == "unconfigured"
    assert node.change_state("configure")
    assert node.lifecycle_state == "inactive"


def renamed_private_method(monkeypatch):
    """rclpy with another private name behind its public `trigger_*` methods."""
    from rclpy.lifecycle import LifecycleNodeMixin

    private = "_LifecycleNodeMixin__change_state"
    change = getattr(LifecycleNodeMixin, private)
    monkeypatch.delattr(LifecycleNodeMixin, private)
    numbers = {label: number for number, label in LABELS.items()}
    shutdowns = {"unconfigured": 5, "inactive": 6, "active": 7}

    def trigger(node, label):
        return change(node, numbers.get(label) or shutdowns[node.lifecycle_state])

    for label in (*numbers, "shutdown"):
        method = partialmethod(trigger, label)
        monkeypatch.setattr(LifecycleNodeMixin, f"trigger_{label}", method)


@pytest.mark.untimed
@pytest.mark.parametrize("private", ["present", "renamed"])
def test_transitions_need_no_private_method_of_rclpy(plain, monkeypatch, private):
    if private == "renamed":
        renamed_private_method(monkeypatch)
    graph = plain()
    assert not graph.change(3)
    assert not graph.change(4)
    for number, state in ((1, "inactive"), (3, "active"), (4, "inactive"), (6, "finalized")):
        assert not graph.change(99)
        assert not graph.change(10)
        assert graph.change(number)
        assert graph.node.lifecycle_state == state
    assert not graph.change(1)


@pytest.mark.untimed
def test_a_state_machine_that_raises_is_answered(plain, monkeypatch):
    graph = plain()

    def refuse():
        raise RuntimeError("Transition is not registered")

    monkeypatch.setattr(graph.node, "trigger_configure", refuse)
    assert not graph.change(1)
    monkeypatch.undo()
    assert graph.change(1)


def parameter(name, kind, **value):
    from rcl_interfaces.msg import Parameter, ParameterValue

    return Parameter(name=name, value=ParameterValue(type=kind, **value))


def hostile_parameters():
    """Parameters of wrong types, unknown types, out of range, unknown, undeclared by an empty value."""
    nan = float("nan")
    return [
        parameter("dry_run", 4, string_value="off"), parameter("dry_run", 2, integer_value=1),
        parameter("checkpoint", 1, bool_value=True), parameter("checkpoint", 0),
        parameter("speed_scaling", 3), parameter("speed_scaling", 3, double_value=nan),
        parameter("speed_scaling", 3, double_value=2.0), parameter("speed_scaling", 42),
        parameter("speed_scaling", 9, string_array_value=["a"]), parameter("speed_scaling", 255),
        parameter("authority", 3, double_value=nan), parameter("authority", 255),
        parameter("max_instruction_length", 2, integer_value=-(2**63)), parameter("cameras", 4, string_value="one"),
        parameter("cameras", 9, string_array_value=["one"]), parameter("nonsense", 4, string_value="x"),
        parameter("", 4, string_value="x"), parameter("\x1b[2J" * 1000, 1, bool_value=True),
        parameter("use_sim_time", 4, string_value="true"), parameter("use_sim_time", 0),
        parameter("robot", 4, string_value="x" * 100_000),
    ]


@pytest.fixture
def asked(make_graph):
    """A node with a client for any of its services: (graph, call(kind, name, request))."""
    from ros_graph import wait_for

    graph = make_graph()

    def call(kind, name, request):
        client = graph.listener.create_client(kind, f"vla/{name}")
        wait_for(client.service_is_ready, f"the service {name}")
        future = client.call_async(request)
        wait_for(future.done, f"an answer of {name}")
        return future.result()

    return graph, call


def requests():
    """Requests of every kind that a lifecycle node with parameters serves, transitions apart."""
    from lifecycle_msgs.srv import GetAvailableStates, GetAvailableTransitions, GetState
    from rcl_interfaces.srv import (
        DescribeParameters,
        GetParameters,
        GetParameterTypes,
        ListParameters,
        SetParameters,
        SetParametersAtomically,
    )
    from std_srvs.srv import SetBool, Trigger

    names = ["speed_scaling", "nonsense", "", "\x1b[2J"]
    yield GetState, "get_state", GetState.Request()
    yield GetAvailableStates, "get_available_states", GetAvailableStates.Request()
    yield GetAvailableTransitions, "get_available_transitions", GetAvailableTransitions.Request()
    yield GetAvailableTransitions, "get_transition_graph", GetAvailableTransitions.Request()
    yield Trigger, "reset", Trigger.Request()
    for paused in (True, True, False, False):
        yield SetBool, "pause", SetBool.Request(data=paused)
    yield DescribeParameters, "describe_parameters", DescribeParameters.Request(names=names)
    yield GetParameters, "get_parameters", GetParameters.Request(names=names)
    yield GetParameterTypes, "get_parameter_types", GetParameterTypes.Request(names=names)
    yield ListParameters, "list_parameters", ListParameters.Request(prefixes=names, depth=2**64 - 1)
    for item in hostile_parameters():
        yield SetParameters, "set_parameters", SetParameters.Request(parameters=[item])
        yield (SetParametersAtomically, "set_parameters_atomically",
               SetParametersAtomically.Request(parameters=[item, item]))


@pytest.mark.untimed
@pytest.mark.parametrize("state", STATES)
def test_every_service_answers_in_every_state(asked, state):
    graph, call = asked
    before = graph.node._declared.read().checkpoint
    for step in STATES[state]:
        assert graph.node.change_state(step)
    for kind, name, request in requests():
        answer = call(kind, name, request)
        if name == "set_parameters" and request.parameters[0].name not in ("", "robot", "speed_scaling"):
            assert not any(result.successful for result in answer.results), request
    assert graph.node.lifecycle_state == state
    assert graph.node.get_parameter("checkpoint").value == before


@pytest.mark.untimed
def test_use_sim_time_is_refused_unless_unconfigured(asked):
    from rcl_interfaces.srv import SetParameters

    graph, call = asked
    request = SetParameters.Request(parameters=[parameter("use_sim_time", 1, bool_value=True)])
    assert graph.node.change_state("configure")
    result = call(SetParameters, "set_parameters", request).results[0]
    assert not result.successful
    assert "use_sim_time" in result.reason and "it is inactive" in result.reason
    assert not graph.node._time_source.ros_time_is_active
    assert graph.node.change_state("cleanup")
    assert call(SetParameters, "set_parameters", request).results[0].successful


def test_a_negative_clock_is_ignored(make_graph):
    from rosgraph_msgs.msg import Clock

    graph = make_graph(use_sim_time=True)
    graph.arm.clock_ns = 1_000 * 10**9
    graph.activate()
    graph.run()
    message = Clock()
    message.clock.sec = -5
    for _ in range(20):
        graph.arm._clock_publisher.publish(message)
    count = len(graph.listener.chunks)
    graph.wait_for(lambda: len(graph.listener.chunks) > count + 3, "chunks after the negative clock")
    graph.listener.wait_state("running")
    assert graph.node.now_ns() > 999 * 10**9


def test_a_busy_callback_does_not_delay_the_clock(make_graph):
    import threading

    graph = make_graph(use_sim_time=True)
    graph.arm.clock_ns = 1_000 * 10**9
    graph.activate()
    entered = threading.Event()
    left = threading.Event()

    def work():
        entered.set()
        left.wait(20)

    timer = graph.node.create_timer(0.01, work, clock=graph.node._steady)
    try:
        graph.wait_for(entered.is_set, "the callback in the node's default group")
        before = graph.node.now_ns()
        graph.wait_for(lambda: graph.node.now_ns() > before, "the node's clock to advance")
    finally:
        left.set()
        graph.node.destroy_timer(timer)


@pytest.mark.untimed
def test_modules_are_indexed_before_the_first_log(tmp_path, monkeypatch):
    import importlib
    import inspect

    from robovlms_ros.ros.lifecycle import index_modules

    (tmp_path / "loaded_late.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("loaded_late")
    index_modules()
    assert module.__file__ in inspect.modulesbyfile
