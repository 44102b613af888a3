"""Controllers that take one target at a time: the trajectory is sampled here, at the adapter's
rate."""

from abc import abstractmethod
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from std_msgs.msg import Float64MultiArray

from robovlms_ros.control import controller_types as specs
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.motion_guard import AdmittedCommand
from robovlms_ros.control.target_stream import TargetStream
from robovlms_ros.core.types import Array
from robovlms_ros.ros.controllers.base import (
    Arm,
    Context,
    ControllerError,
    TopicGripper,
    command_publisher,
)
from robovlms_ros.ros.controllers.controller_presence import ControllerPresence
from robovlms_ros.ros.graph import other_publishers
from robovlms_ros.ros.messages import to_time


class StreamingArm(Arm):
    """Samples the running trajectory at each tick; a subclass makes the message of one sample.

    rate: Hz. kind, topic: the message type and the controller's topic. controller: name of its
    node, None: the topic's namespace, ANY_NODE: unknown. Publishes nothing once the trajectory is
    over.
    """

    def __init__(
        self,
        context: Context,
        rate: float,
        kind: type,
        topic: str,
        controller: str | None = specs.ANY_NODE,
    ) -> None:
        self._context = context
        self.rate = rate
        self._stream = TargetStream(context.robot, rate)
        self._publisher = command_publisher(context, kind, topic)
        self._presence = ControllerPresence(context, self.name, controller, self.listeners)

    def _send(self, command: AdmittedCommand, now_ns: int) -> None:
        self._stream.follow(command, now_ns)
        self.tick(now_ns)

    def cease_commands(self) -> None:
        self._stream.brake()

    def tick(self, now_ns: int) -> None:
        target = self._stream.target(now_ns)
        if target is not None:
            self._publisher.publish(self.message(*target, now_ns))

    @abstractmethod
    def message(self, positions: Array, velocities: Array, now_ns: int) -> Any:
        """The controller's message of one target: (J,) rad, (J,) rad/s, as the robot's joints."""

    @property
    def name(self) -> str:
        return str(self._publisher.topic_name)

    def listeners(self) -> int:
        return int(self._publisher.get_subscription_count())

    def absence(self) -> str:
        return self._presence.absence()

    def other_commanders(self) -> tuple[str, ...]:
        return other_publishers(self._context.node, self.name, own=1)

    def close(self) -> None:
        self._presence.close()
        self._context.node.destroy_publisher(self._publisher)


class ForwardPositionArm(StreamingArm):
    """forward_command_controller: one position per joint and tick."""

    def __init__(self, context: Context, spec: specs.ForwardPosition) -> None:
        super().__init__(context, spec.rate, Float64MultiArray, spec.topic, spec.node)

    def message(self, positions: Array, velocities: Array, now_ns: int) -> Float64MultiArray:
        return Float64MultiArray(data=positions.tolist())


class CartesianPoseArm(StreamingArm):
    """A Cartesian controller's target: the tool's pose on the trajectory, in the robot's base
    frame, stamped now."""

    def __init__(self, context: Context, spec: specs.CartesianPose | specs.ServoPose) -> None:
        self._kinematics = require_kinematics(context, spec.type)
        controller = spec.servo if isinstance(spec, specs.ServoPose) else spec.node
        super().__init__(context, spec.rate, PoseStamped, spec.topic, controller)

    def message(self, positions: Array, velocities: Array, now_ns: int) -> PoseStamped:
        message = to_pose(self._kinematics.forward(positions))
        message.header.stamp = to_time(now_ns)
        message.header.frame_id = self._context.robot.base_frame
        return message


class Float64MultiArrayGripper(TopicGripper):
    """A forward controller of the gripper's joint: its position, at each edge."""

    def __init__(self, context: Context, spec: specs.GripperArray) -> None:
        super().__init__(context, spec, Float64MultiArray, spec.topic)

    def _command(self, position: float) -> None:
        self._publisher.publish(Float64MultiArray(data=[position]))


def require_kinematics(context: Context, controller: str) -> Kinematics:
    """The context's kinematics. Raises ControllerError when the robot has none."""
    if context.kinematics is None:
        raise ControllerError(f"controller type '{controller}' needs the robot's description; give one in its YAML.")
    return context.kinematics


def to_pose(matrix: Array) -> PoseStamped:
    """A 4x4 pose as a PoseStamped without header."""
    message = PoseStamped()
    position = message.pose.position
    orientation = message.pose.orientation
    position.x, position.y, position.z = map(float, matrix[:3, 3])
    orientation.x, orientation.y, orientation.z, orientation.w = quaternion(matrix[:3, :3])
    return message


def quaternion(rotation: Array) -> tuple[float, float, float, float]:
    """(x, y, z, w) of a rotation matrix (3, 3): Shepperd's method, well conditioned for every
    angle."""
    r = rotation
    squares = np.array([
        1 + r[0, 0] - r[1, 1] - r[2, 2], 1 - r[0, 0] + r[1, 1] - r[2, 2],
        1 - r[0, 0] - r[1, 1] + r[2, 2], 1 + r[0, 0] + r[1, 1] + r[2, 2],
    ])
    rows = np.array([
        [squares[0], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]],
        [r[0, 1] + r[1, 0], squares[1], r[1, 2] + r[2, 1], r[0, 2] - r[2, 0]],
        [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], squares[2], r[1, 0] - r[0, 1]],
        [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], squares[3]],
    ])
    row = rows[int(np.argmax(squares))]
    x, y, z, w = map(float, row / np.linalg.norm(row))
    return x, y, z, w
