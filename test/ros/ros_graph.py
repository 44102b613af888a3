"""A ROS graph for tests: one context, an arm that is there without physics, and whoever listens to it.

The arm follows trajectories by the model of joint_trajectory_controller, publishes joint states and two cameras, and
can be told to fall silent or to lie. Waiting is for conditions, with generous deadlines; no test asserts a time.
"""

import io
import threading
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from PIL import Image as PillowImage
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.msg import ActionChunk, PolicyStatus
from robovlms_ros.ros.inputs import LATCHED
from robovlms_ros.ros.messages import from_time, to_time
from robovlms_ros.runtime.robot import load_robot
from robovlms_ros.sim.trajectory_controller import (
    TrajectoryController,
    TrajectoryMessage,
    TrajectoryPoint,
    TrajectoryRejected,
)

DEADLINE = 60.0
SIZE = 32
PERIOD_NS = 40_000_000  # of the joint states; the cameras' is four times that

# A machine that runs other things too may stop a process for a second: what is late there is no fault of the node.
PATIENT = {
    "max_age": 4.0, "joint_states_tolerance": 1.0, "watchdog__inference_timeout": 20.0, "watchdog__clock_jump": 60.0,
    "watchdog__clock_tolerance": 1.0, "watchdog__following_time": 5.0,
}


def wait_for(condition, what, deadline=DEADLINE):
    """Wait until the condition holds; fail with `what` (a text, or a function that makes one) after the deadline."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline:.0f} s for {what() if callable(what) else what}")
        time.sleep(0.02)


class Spinner:
    """Nodes spun in a thread of their own until `close`."""

    def __init__(self, *nodes, threads=1):
        self.nodes = nodes
        self._closing = False
        self.executor = SingleThreadedExecutor() if threads == 1 else MultiThreadedExecutor(threads)
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


class FakeArm(Node):
    """A Panda that does exactly as its controller says, with two cameras of noise. `quirks` bend what it publishes.

    quirks: what (static, wrist, jpeg: the wrist's camera compressed, joint_states) -> function from the message to the
        message to send, or None.
    clock_ns: simulated time, published on /clock and used for stamps; None is the system's clock.
    """

    def __init__(self, namespace="", joint_states="joint_states"):
        super().__init__("fake_arm", namespace=namespace)
        self.robot = load_robot("panda")
        self.quirks = {}
        self.commands, self.gripper_commands, self.rejected = [], [], []
        self.clock_ns = None
        self.frozen = False
        self._clock_publisher = self.create_publisher(Clock, "/clock", 10)
        self._controller = TrajectoryController(self.robot.joints)
        self.positions = np.array(self.robot.home)
        self.velocities = np.zeros_like(self.positions)
        self._updated_ns = 0
        self._states = self.create_publisher(JointState, joint_states, 10)
        self._images = {name: self.create_publisher(Image, f"{name}/image_raw", qos_profile_sensor_data)
                        for name in ("static", "wrist")}
        self._jpeg = self.create_publisher(CompressedImage, "wrist/image_raw/compressed", qos_profile_sensor_data)
        self._rng = np.random.default_rng(0)
        self.create_subscription(JointTrajectory, self.robot.controller.topic, self._on_command, 10)
        self.create_subscription(JointTrajectory, self.robot.gripper.topic, self.gripper_commands.append, 10)
        self.create_timer(PERIOD_NS / 1e9, self._step)
        self._ticks = 0

    def now_ns(self):
        return self.get_clock().now().nanoseconds if self.clock_ns is None else self.clock_ns

    def _on_command(self, message):
        self.commands.append((time.monotonic(), message))
        points = tuple(TrajectoryPoint(from_time(p.time_from_start), p.positions, p.velocities) for p in message.points)
        try:
            self._controller.accept(
                TrajectoryMessage(from_time(message.header.stamp), tuple(message.joint_names), points), self.now_ns())
        except TrajectoryRejected as error:
            self.rejected.append(str(error))

    def teleport(self, positions):
        """Put the arm elsewhere, as a person or a simulator does."""
        self.positions = np.array(positions)
        self._controller.reset()

    def rewind(self, clock_ns):
        """Simulated time jumps back."""
        self.clock_ns = clock_ns
        self._controller.reset()

    def _step(self):
        if self.frozen:
            return
        if self.clock_ns is not None:
            self.clock_ns += PERIOD_NS
            self._clock_publisher.publish(Clock(clock=to_time(self.clock_ns)))
        now = self.now_ns()
        period = now - self._updated_ns if 0 < now - self._updated_ns < 10**9 else PERIOD_NS
        self.positions, self.velocities = self._controller.update(now, period, self.positions, self.velocities)
        self._updated_ns = now
        state = JointState(name=[*self.robot.joints, self.robot.gripper.joint],
                           position=[*self.positions.tolist(), 0.04], velocity=[*self.velocities.tolist(), 0.0])
        self._send(self._states, "joint_states", state, now)
        self._ticks += 1
        if self._ticks % 4 == 0:
            for name, publisher in self._images.items():
                image = Image(width=SIZE, height=SIZE, encoding="rgb8", step=3 * SIZE)
                image.data.frombytes(self._rng.integers(0, 256, 3 * SIZE * SIZE, dtype=np.uint8).tobytes())
                self._send(publisher, name, image, now)
            buffer = io.BytesIO()
            PillowImage.fromarray(self._rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(buffer, "JPEG")
            jpeg = CompressedImage(format="rgb8; jpeg compressed bgr8")
            jpeg.data.frombytes(buffer.getvalue())
            self._send(self._jpeg, "jpeg", jpeg, now)

    def _send(self, publisher, name, message, now):
        message.header.stamp = to_time(now)
        message = self.quirks.get(name, lambda m: m)(message)
        if message is not None:
            publisher.publish(message)

    def commands_since(self, moment):
        return [message for at, message in self.commands if at > moment]


class Listener(Node):
    """A person at the console: gives instructions, calls services, reads status, chunks and diagnostics."""

    def __init__(self, target, namespace=""):
        super().__init__("listener", namespace=namespace)
        self.statuses, self.chunks, self.diagnostics = [], [], []
        self._instruction = self.create_publisher(String, "instruction", LATCHED)
        self.create_subscription(PolicyStatus, f"{target}/status", self.statuses.append, LATCHED)
        self.create_subscription(ActionChunk, f"{target}/action_chunk", self.chunks.append, 50)
        self.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 50)
        self._calls = {name: self.create_client(kind, f"{target}/{name}")
                          for name, kind in (("reset", Trigger), ("pause", SetBool))}

    @property
    def status(self):
        return self.statuses[-1] if self.statuses else PolicyStatus()

    def instruct(self, text):
        self._instruction.publish(String(data=text))

    def call(self, name, **fields):
        client = self._calls[name]
        wait_for(client.service_is_ready, f"the service {name}")
        future = client.call_async(client.srv_type.Request(**fields))
        wait_for(future.done, f"an answer of {name}")
        return future.result()

    def wait_state(self, state, detail=""):
        wait_for(lambda: self.status.state == state and detail in self.status.detail,
                 lambda: f"status {state} with {detail!r}, it is {self.status.state}: {self.status.detail!r}")


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

    def __init__(self, checkpoint, node="vla", joint_states="joint_states", **values):
        from robovlms_ros.ros.vla_node import VLANode

        Graph.count += 1
        self.namespace = namespace = f"robot{Graph.count}"
        given = {"checkpoint": str(checkpoint), "dry_run": False, **PATIENT, **values}
        arguments = ["--ros-args", "-r", f"__ns:=/{namespace}"]
        self.node = VLANode(node, parameter_overrides=parameters(**given), cli_args=arguments)
        self.arm = FakeArm(namespace, joint_states)
        self.listener = Listener(node, namespace)
        self._spinners = [Spinner(self.arm, self.listener), Spinner(self.node, threads=3)]

    def activate(self):
        assert self.node.trigger_configure() == TransitionCallbackReturn.SUCCESS, self.listener.status.last_stop
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS

    def run(self, instruction="lift the red cube"):
        """Until the arm is being commanded."""
        self.listener.instruct(instruction)
        self.listener.wait_state("running")
        wait_for(lambda: self.arm.commands, "a command")

    def is_quiet(self, seconds=0.5):
        """Whether nothing that moves is published for a while."""
        time.sleep(0.1)
        moment = time.monotonic()
        time.sleep(seconds)
        return not self.arm.commands_since(moment)

    def close(self):
        if self.node.lifecycle_state == "active":
            self.node.trigger_deactivate()
        if self.node.lifecycle_state == "inactive":
            self.node.trigger_cleanup()
        for spinner in self._spinners:
            spinner.close()
