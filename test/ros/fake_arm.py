"""An arm without physics and two cameras of noise, for a graph that has neither."""

import io

import numpy as np
from PIL import Image as PillowImage
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.trajectory_controller_model import (
    TrajectoryController,
    TrajectoryMessage,
    TrajectoryPoint,
    TrajectoryRejected,
)
from robovlms_ros.ros.messages import from_time, to_time
from robovlms_ros.ros.spinning import QUIET_SUBSCRIPTION

SIZE = 32
PERIOD_NS = 40_000_000  # of the joint states; the cameras' is four times that


class FakeArm(Node):
    """A Panda (or `robot`) that does exactly as its controller commands, with cameras of noise. `quirks` bend what it
    publishes.

    quirks: what (static, wrist, jpeg: the wrist's camera compressed, joint_states) -> function from the message to the
        message to send, or None.
    frozen: nothing happens and nothing is published, simulated time included.
    stuck: the joints stay where they are; the controller goes on.
    controller: the controller's node, to be spun beside this one.
    active: False as a controller that is inactive: it keeps its subscription and drops commands.
    set_point: the controller's last command. jaw: the gripper's position, which commands leave as it is.
    clock_ns: simulated time, published on /clock and used for stamps; None is the system's clock.
    commands: (when it was published, ns of the system's clock; the message).
    """

    def __init__(self, namespace="", joint_states="joint_states", robot="panda", cameras=("static", "wrist")):
        super().__init__("fake_arm", namespace=namespace)
        self.robot = load_robot(robot)
        self.jaw = self.robot.gripper.open_position
        self.quirks = {}
        self.commands, self.gripper_commands, self.rejected = [], [], []
        self.clock_ns = None
        self.frozen = False
        self.stuck = False
        self.active = True
        self.controller = Node(self.robot.controller.topic.rpartition("/")[0], namespace=namespace)
        self._reports = None
        self._clock_publisher = self.create_publisher(Clock, "/clock", 10)
        self._controller = TrajectoryController(self.robot.joints)
        self.positions = np.array(self.robot.home)
        self.velocities = np.zeros_like(self.positions)
        self.set_point = self.positions
        self._updated_ns = 0
        self._states = self.create_publisher(JointState, joint_states, 10)
        self._images = {name: self.create_publisher(Image, f"{name}/image_raw", qos_profile_sensor_data)
                        for name in cameras}
        self._jpeg = self.create_publisher(CompressedImage, "wrist/image_raw/compressed", qos_profile_sensor_data)
        self._rng = np.random.default_rng(0)
        self._hearing = None
        self.hear(True)
        self.create_subscription(JointTrajectory, self.robot.gripper.topic, self.gripper_commands.append, 10)
        self.create_timer(PERIOD_NS / 1e9, self._step)
        self._ticks = 0

    def now_ns(self):
        return self.get_clock().now().nanoseconds if self.clock_ns is None else self.clock_ns

    def hear(self, listen):
        """Start or stop the controller."""
        if self._hearing is not None:
            self.controller.destroy_subscription(self._hearing)
            self._hearing = None
        if listen:
            topic = self.robot.controller.topic
            self._hearing = self.controller.create_subscription(
                JointTrajectory, topic, self._on_command, 10, event_callbacks=QUIET_SUBSCRIPTION
            )

    def _on_command(self, message, info):
        self.commands.append((info["source_timestamp"], message))
        if self.active:
            self.follow(message)

    def follow(self, message):
        """Execute a trajectory of any sender."""
        points = tuple(TrajectoryPoint(from_time(p.time_from_start), p.positions, p.velocities) for p in message.points)
        try:
            self._controller.accept(
                TrajectoryMessage(from_time(message.header.stamp), tuple(message.joint_names), points), self.now_ns())
        except TrajectoryRejected as error:
            self.rejected.append(str(error))

    def report_state(self, messages):
        """Publish the controller's state from now on; messages: control_msgs.msg."""
        kind = messages.JointTrajectoryControllerState
        self._reports = self.controller.create_publisher(kind, "~/controller_state", 10)

    def _report(self, now):
        state = self._reports.msg_type(joint_names=list(self.robot.joints))
        state.header.stamp = to_time(now)
        state.reference.positions = self.set_point.tolist()
        state.error.positions = (self.set_point - self.positions).tolist()
        self._reports.publish(state)

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
        self.set_point, velocities = self._controller.update(
            now, period, self.positions, self.velocities)
        self.velocities = np.zeros_like(velocities) if self.stuck else velocities
        self.positions = self.positions if self.stuck else self.set_point
        self._updated_ns = now
        if self._reports is not None and self.active:
            self._report(now)
        state = JointState(name=[*self.robot.joints, self.robot.gripper.joint],
                           position=[*self.positions.tolist(), self.jaw], velocity=[*self.velocities.tolist(), 0.0])
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

    @property
    def last(self):
        return self.commands[-1][1]

    def commands_since(self, moment):
        """Those published after a moment, `time.time_ns()`."""
        return [message for at, message in self.commands if at > moment]

    def is_moving(self):
        return max(abs(self.velocities)) > 1e-6


def is_stop(message):
    """True if a command brings the arm to rest and keeps it there, as only a stop does."""
    last, end = message.points[-2:]
    stays = from_time(end.time_from_start) - from_time(last.time_from_start) > 10**9
    return stays and last.positions == end.positions and not any(end.velocities)
