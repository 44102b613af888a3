"""A ROS graph for tests: one context, an arm that is there without physics, and whoever listens to it.

The arm follows trajectories by the model of joint_trajectory_controller, publishes joint states and two cameras, and
can be told to fall silent or to lie. Waiting is for the condition that is asserted, with generous deadlines; no test
asserts a time. What came before what is told by the publishers' stamps, not by when a busy machine delivered it.
"""

import threading
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from fake_arm import FakeArm, is_stop
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from robovlms_ros.msg import ActionChunk, PolicyStatus
from robovlms_ros.ros.graph import LATCHED
from robovlms_ros.ros.spinning import SteadyExecutor, SteadySingleThreadedExecutor

DEADLINE = 60.0
SERVICES = {"reset": Trigger, "pause": SetBool, "confirm": Trigger}

# A machine that runs other things too may stop a process for a second: what is late there is no fault of the node.
PATIENT = {
    "max_age": 4.0, "joint_states_tolerance": 1.0, "watchdog__inference_timeout": 20.0, "watchdog__clock_jump": 60.0,
    "watchdog__clock_tolerance": 1.0, "watchdog__following_time": 5.0,
    "watchdog__standstill_time": 5.0, "watchdog__reference_time": 5.0,
}


def wait_for(condition, what, deadline=DEADLINE):
    """Wait until the condition holds; fail with `what` (a text, or a function that makes one) after the deadline."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline:.0f} s for {what() if callable(what) else what}")
        time.sleep(0.02)


def answer(client, **fields):
    """The answer of a service; another thread spins the client's node."""
    wait_for(client.service_is_ready, f"the service {client.srv_name}")
    future = client.call_async(client.srv_type.Request(**fields))
    wait_for(future.done, f"an answer of {client.srv_name}")
    return future.result()


class Spinner:
    """Nodes spun in a thread of their own until `close`."""

    def __init__(self, *nodes, threads=1):
        self.nodes = nodes
        self._closing = False
        self.executor = SteadySingleThreadedExecutor() if threads == 1 else SteadyExecutor(threads)
        for node in nodes:
            self.executor.add_node(node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        try:
            self.executor.spin()
        except ExternalShutdownException:
            pass
        except Exception:
            if not self._closing:  # while they are being shut down, rclpy's executors may trip over themselves
                raise

    def close(self):
        self._closing = True
        self.executor.shutdown(timeout_sec=10.0)
        self._thread.join(10.0)
        for node in self.nodes:
            node.destroy_node()


class Listener(Node):
    """A person at the console: gives instructions, calls services, reads status, chunks and diagnostics."""

    def __init__(self, target, namespace=""):
        super().__init__("listener", namespace=namespace)
        self.target = f"/{namespace}/{target}" if namespace else f"/{target}"
        self.statuses, self.chunks, self.diagnostics = [], [], []
        self.chunk_times = []  # when each was published, ns of the system's clock
        self._instruction = self.create_publisher(String, "instruction", LATCHED)
        self.create_subscription(PolicyStatus, f"{target}/status", self.statuses.append, LATCHED)
        self.create_subscription(ActionChunk, f"{target}/action_chunk", self._on_chunk, 50)
        self.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 50)
        self._calls = {name: self.create_client(kind, f"{target}/{name}")
                       for name, kind in SERVICES.items()}

    def _on_chunk(self, message, info):
        self.chunk_times.append(info["source_timestamp"])
        self.chunks.append(message)

    def chunks_since(self, moment):
        """Those published after a moment, `time.time_ns()`."""
        return [chunk for at, chunk in zip(self.chunk_times, self.chunks, strict=False) if at > moment]

    @property
    def status(self):
        return self.statuses[-1] if self.statuses else PolicyStatus()

    def instruct(self, text):
        self._instruction.publish(String(data=text))

    def call(self, name, **fields):
        return answer(self._calls[name], **fields)

    def wait_state(self, state, detail=""):
        def reached():
            status = self.status
            return status.state == state and detail in status.detail

        wait_for(reached, lambda: f"status {state} with {detail!r}, it is {self.said()}")

    def said(self):
        status = self.status
        return f"{status.state}: {status.detail!r}; last stop {status.last_stop!r}, refusal {status.last_refusal!r}"

    def diagnosed(self, name):
        """The newest /diagnostics entry of that name: (message, is it an error); None before the first."""
        for array in reversed(self.diagnostics):
            for status in array.status:
                if status.hardware_id == self.target and status.name == f"{self.target}: {name}":
                    return status.message, status.level == DiagnosticStatus.ERROR
        return None

    def wait_diagnosis(self, name, says):
        """Until /diagnostics has an error of that name that says so; with says None, until it is well."""
        def told():
            found = self.diagnosed(name)
            return found is not None and (found == ("ok", False) if says is None else found[1] and says in found[0])

        wait_for(told, lambda: f"the diagnostic {name} to say {says!r}, it is {self.diagnosed(name)}")


TINY = {
    "model": {"backbone": "paligemma", "history_length": 2, "action_chunk_size": 40, "history_step": 0.16},
    "action_head": {"type": "lstm", "hidden_size": 32, "num_layers": 1},
    "vlm": {"size": "tiny", "vocabulary": ["lift", "the", "red", "green", "cube"]},
    "cameras": ["static", "wrist"],
    "action": {
        "space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "from_observation",
        "step_duration": 0.1, "units": {"translation": 0.0005, "rotation": 0.001}, "gripper": {"open_value": 1},
    },
}


def parameters(**values):
    """rclpy parameter overrides."""
    return [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]


class Graph:
    """A policy node, an arm and a listener in a namespace of their own; `close` ends all three."""

    count = 0

    wait_for = staticmethod(wait_for)
    answer = staticmethod(answer)

    def __init__(self, checkpoint, node="vla", joint_states="joint_states", make_arm=FakeArm, **values):
        from robovlms_ros.ros.vla_node import VLANode

        Graph.count += 1
        self.namespace = namespace = f"robot{Graph.count}"
        given = {"checkpoint": str(checkpoint), "dry_run": False, **PATIENT, **values}
        arguments = ["--ros-args", "-r", f"__ns:=/{namespace}"]
        self.node = VLANode(node, parameter_overrides=parameters(**given), cli_args=arguments)
        self.arm = make_arm(namespace, joint_states)
        self.sent = []  # (the node's time when it decided, ns; the command)
        self.listener = Listener(node, namespace)
        others = Spinner(self.arm, self.arm.controller, self.listener)
        self._spinners = [others, Spinner(self.node, threads=5)]

    def activate(self):
        assert self.node.trigger_configure() == TransitionCallbackReturn.SUCCESS, self.listener.status.last_stop
        if self.node._arm is not None:
            send = self.node._arm.send

            def keep(command, now_ns):
                self.sent.append((now_ns, command))
                send(command, now_ns)

            self.node._arm.send = keep
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS

    def run(self, instruction="lift the red cube"):
        """Until the arm is being commanded for this instruction."""
        moment, count = time.time_ns(), len(self.listener.chunks)
        self.listener.instruct(instruction)
        wait_for(lambda: self.arm.commands_since(moment), lambda: f"a command, it is {self.listener.said()}")
        wait_for(lambda: any(c.instruction == instruction for c in self.listener.chunks[count:]),
                 f"a chunk for {instruction!r}")
        wait_for(lambda: self.listener.status.state == "running" and self.listener.status.instruction == instruction,
                 lambda: f"running, it is {self.listener.said()}")

    def is_quiet(self, seconds=0.5):
        """True if no motion is published for a while, from now on."""
        moment = time.time_ns()
        time.sleep(seconds)
        return not self.arm.commands_since(moment)

    def held(self, state, detail=""):
        """Wait for a state; the last command must be a stop that the controller took, with nothing after it."""
        self.listener.wait_state(state, detail)
        wait_for(lambda: is_stop(self.arm.last), "the stop")
        stop = self.arm.last
        assert self.is_quiet(), "the stop is the last thing that is sent"
        assert self.arm.last is stop and not self.arm.rejected
        return stop

    def set_parameter(self, name, value):
        """The node's answer to a change of one parameter."""
        return self.node.set_parameters([Parameter(name, value=value)])[0]

    def put_arm(self, positions):
        """Until the node has seen it there; again and again, as a stop that is still under way would undo it."""
        def seen():
            self.arm.teleport(positions)
            return np.allclose(self.node._inputs.measured().positions, positions)

        wait_for(seen, "the node to see where the arm was put")

    def wait_in_flight(self):
        """Until an inference is under way; returns the node's time then, ns."""
        wait_for(lambda: self.node._worker.inferring_since_ns is not None, "an inference in flight")
        return self.node.now_ns()

    def close(self):
        if self.node.lifecycle_state == "active":
            self.node.trigger_deactivate()
        if self.node.lifecycle_state == "inactive":
            self.node.trigger_cleanup()
        for spinner in self._spinners:
            spinner.close()
