"""MoveIt Servo: commands stamped now, at 20 Hz or more, after Servo has confirmed the type of
command comes.

Servo halts smoothly when commands stop, so silence is a stop too.
"""

from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.client import Client
from rclpy.task import Future

from robovlms_ros.control import controller_types as specs
from robovlms_ros.core.types import Array
from robovlms_ros.ros.controllers.base import Context, message_package
from robovlms_ros.ros.controllers.streaming import (
    CartesianPoseArm,
    StreamingArm,
    require_kinematics,
)
from robovlms_ros.ros.messages import to_time

# 1/s: how fast a twist also closes the gap between the planned and the measured pose, which
# integration alone leaves.
FEEDBACK = 2.0
FEEDBACK_SHARE = 0.25  # of the tool's speed limit: more than a plan that is followed ever needs
FEEDBACK_TURN = 0.5  # rad/s
TWIST_TOLERANCE = 1.05

# moveit_msgs/ServoStatus codes under which Servo does not follow; the others are OK or slower than
# commanded.
HALTED = {-1: "INVALID", 2: "HALT_FOR_SINGULARITY", 5: "HALT_FOR_COLLISION", 6: "JOINT_BOUND"}


class ServoLink:
    """Servo's services and status: switches the command type at activation, and knows why Servo
    is at rest."""

    def __init__(self, context: Context, servo: str, controller: str, command: str) -> None:
        self._node = context.node
        service = message_package("moveit_msgs.srv", controller).ServoCommandType
        status = message_package("moveit_msgs.msg", controller).ServoStatus
        self._request = service.Request(command_type=getattr(service.Request, command))
        self._client: Client = context.node.create_client(service, f"{servo}/switch_command_type")
        self._status = context.node.create_subscription(status, f"{servo}/status", self._on_status, 10)
        self._answer: Future | None = None
        self._halted: str | None = None

    def switch(self) -> None:
        """Request the command type, without waiting; requested again by `ready` while Servo is not
        there."""
        self._answer = self._client.call_async(self._request) if self._client.service_is_ready() else None

    def ready(self) -> bool:
        """True once Servo has taken the command type."""
        if self._answer is None:
            self.switch()
            return False
        return self._answer.done() and bool(self._answer.result() and self._answer.result().success)

    def problem(self) -> str | None:
        """Servo's reason not to follow."""
        if self._answer is None:
            return f"MoveIt Servo does not answer: no service {self._client.srv_name}."
        if self._answer.done() and not self.ready():
            return f"MoveIt Servo refused the command type {self._request.command_type} ({self._client.srv_name})."
        return self._halted

    def _on_status(self, message: Any) -> None:
        code = int(message.code)
        self._halted = f"MoveIt Servo halted: {HALTED[code]} {message.message}".strip() if code in HALTED else None

    def close(self) -> None:
        """Give the ROS entities back."""
        self._node.destroy_client(self._client)
        self._node.destroy_subscription(self._status)


class ServoArm(StreamingArm):
    """Base of both: nothing is sent before Servo has taken the command type."""

    _link: ServoLink

    def prepare(self) -> None:
        self._link.switch()

    def tick(self, now_ns: int) -> None:
        if self._link.ready():
            super().tick(now_ns)

    def problem(self) -> str | None:
        return self._link.problem()

    def close(self) -> None:
        self._link.close()
        super().close()


class ServoPoseArm(ServoArm, CartesianPoseArm):
    """The tool's pose as Servo's target."""

    def __init__(self, context: Context, spec: specs.ServoPose) -> None:
        self._link = ServoLink(context, spec.servo, spec.type, "POSE")
        super().__init__(context, spec)


class ServoTwistArm(ServoArm):
    """The tool's velocity on the trajectory, in the robot's base frame, plus what closes the gap to
    the plan."""

    def __init__(self, context: Context, spec: specs.ServoTwist) -> None:
        self._kinematics = require_kinematics(context, spec.type)
        self._link = ServoLink(context, spec.servo, spec.type, "TWIST")
        super().__init__(context, spec.rate, TwistStamped, spec.topic, spec.servo)
        unitless = spec.units == "unitless"
        self._scale = np.repeat([spec.linear_scale, spec.angular_scale], 3) if unitless else None

    def message(self, positions: Array, velocities: Array, now_ns: int) -> TwistStamped:
        twist = self._kinematics.jacobian(positions) @ velocities  # (6,) m/s, rad/s
        measured = self._context.measured()
        if measured is not None:
            here = self._kinematics.forward(measured.positions)
            twist = twist + self._feedback(pose_error(here, self._kinematics.forward(positions)))
        speed = float(np.linalg.norm(twist[:3]))
        twist = twist / max(1.0, speed / (TWIST_TOLERANCE * self._context.robot.limits.eef_speed))
        if self._scale is not None:
            twist = twist / self._scale
            twist = twist / max(1.0, float(np.abs(twist).max()))
        message = TwistStamped()
        message.header.stamp = to_time(now_ns)
        message.header.frame_id = self._context.robot.base_frame
        linear = message.twist.linear
        angular = message.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, twist)
        return message

    def _feedback(self, error: Array) -> Array:
        """The twist (6,) that closes a pose error (6,), bounded: a measurement must not become a
        fast command."""
        feedback = FEEDBACK * error
        bounds = (FEEDBACK_SHARE * self._context.robot.limits.eef_speed, FEEDBACK_TURN)
        for part, bound in zip((feedback[:3], feedback[3:]), bounds, strict=True):
            part /= max(1.0, float(np.linalg.norm(part)) / bound)
        return feedback


def pose_error(measured: Array, wanted: Array) -> Array:
    """(6,) what leads from one 4x4 pose to the other, in base axes: m, and a rotation vector in
    rad."""
    difference = wanted[:3, :3] @ measured[:3, :3].T
    axis = np.array([difference[2, 1] - difference[1, 2], difference[0, 2] - difference[2, 0],
                     difference[1, 0] - difference[0, 1]])  # 2 sin(angle) times the axis
    angle = np.arctan2(np.linalg.norm(axis), np.trace(difference) - 1.0)
    norm = float(np.linalg.norm(axis))
    rotation = axis * (angle / norm) if norm > 1e-9 else np.zeros(3)
    return np.concatenate([wanted[:3, 3] - measured[:3, 3], rotation])
