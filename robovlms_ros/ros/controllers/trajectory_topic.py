"""joint_trajectory_controller by its topic: an arm's, or a gripper's of one joint."""

from typing import Any

import numpy as np
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.control import controller_types as specs
from robovlms_ros.control.motion_guard import AdmittedCommand
from robovlms_ros.control.trajectory_shape import wire_form
from robovlms_ros.core.types import TrajectoryCommand, TrajectoryShape
from robovlms_ros.ros.controllers.base import (
    Arm,
    Context,
    Gripper,
    command_publisher,
    message_package,
)
from robovlms_ros.ros.controllers.shape_detection import ShapeDetection
from robovlms_ros.ros.graph import ForeignGoals, other_publishers
from robovlms_ros.ros.messages import trajectory_to_message


class JointTrajectoryArm(Arm):
    """Publishes each command whole; the controller interpolates.

    A topic returns no answer. Where control_msgs is installed and the robot's YAML names the
    controller's state topic, the tracking error is read there.
    """

    def __init__(self, context: Context, spec: specs.JointTrajectory) -> None:
        self._node = context.node
        self._publisher = command_publisher(context, JointTrajectory, spec.topic)
        # joint_trajectory_controller serves an action beside its topic: MoveIt commands the same
        # joints by it.
        namespace = str(self._publisher.topic_name).rpartition("/")[0]
        self._goals = ForeignGoals(context.node, f"{namespace}/follow_joint_trajectory")
        self._detection = ShapeDetection(context.node, self.name, spec.trajectory_shape)
        self._followed: tuple[str, float] | None = None
        self._state = None
        if spec.state_topic is not None:
            messages = message_package("control_msgs.msg", "joint_trajectory with state_topic")
            self._state = context.node.create_subscription(
                messages.JointTrajectoryControllerState, spec.state_topic, self._on_state, 10)

    def _on_state(self, message: Any) -> None:
        errors = [abs(error) for error in message.error.positions]
        if errors:
            worst = int(np.argmax(errors))
            self._followed = (str(message.joint_names[worst]), float(errors[worst]))

    def _send(self, command: AdmittedCommand, now_ns: int) -> None:
        self._publisher.publish(trajectory_to_message(wire_form(command, now_ns)))

    @property
    def shape(self) -> TrajectoryShape:
        return self._detection.shape

    @property
    def shape_text(self) -> str:
        return self._detection.text

    @property
    def name(self) -> str:
        return str(self._publisher.topic_name)

    def listeners(self) -> int:
        return int(self._publisher.get_subscription_count())

    def other_commanders(self) -> tuple[str, ...]:
        return other_publishers(self._node, self.name) + self._goals.found()

    def following(self) -> tuple[str, float] | None:
        return self._followed

    def close(self) -> None:
        self._detection.close()
        self._goals.close()
        self._node.destroy_publisher(self._publisher)
        if self._state is not None:
            self._node.destroy_subscription(self._state)


class OneJointTrajectoryGripper(Gripper):
    """Publishes one point per edge: the whole stroke in `travel_time`."""

    def __init__(self, context: Context, spec: specs.OneJointTrajectory) -> None:
        super().__init__(spec)
        self._node = context.node
        self._joint = spec.joint
        self._travel_time = spec.travel_time
        self._publisher = command_publisher(context, JointTrajectory, spec.topic)

    def _command(self, position: float) -> None:
        self._publisher.publish(trajectory_to_message(TrajectoryCommand(
            stamp_ns=0, joints=(self._joint,), times=np.array([self._travel_time]),
            positions=np.array([[position]]), velocities=np.zeros((1, 1)))))

    def listeners(self) -> int:
        return int(self._publisher.get_subscription_count())

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)
