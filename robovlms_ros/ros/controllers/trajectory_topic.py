"""joint_trajectory_controller by its topic: an arm's, or a gripper's of one joint."""

import numpy as np
from rclpy.qos import QoSProfile, ReliabilityPolicy
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.ros.controllers.base import Arm, Context, Gripper
from robovlms_ros.ros.messages import trajectory_to_message
from robovlms_ros.runtime import controllers as specs
from robovlms_ros.types import TrajectoryCommand

RELIABLE = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)


class JointTrajectoryArm(Arm):
    """Publishes each command whole; the controller interpolates."""

    def __init__(self, context: Context, spec: specs.JointTrajectory) -> None:
        self._node = context.node
        self._publisher = context.node.create_publisher(JointTrajectory, spec.topic, RELIABLE)

    def send(self, command: TrajectoryCommand, now_ns: int) -> None:
        self._publisher.publish(trajectory_to_message(command))

    def listeners(self) -> int:
        return int(self._publisher.get_subscription_count())

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)


class OneJointTrajectoryGripper(Gripper):
    """Publishes one point per edge: the whole stroke in `travel_time`."""

    def __init__(self, context: Context, spec: specs.OneJointTrajectory) -> None:
        super().__init__(spec)
        self._node = context.node
        self._joint, self._travel_time = spec.joint, spec.travel_time
        self._publisher = context.node.create_publisher(JointTrajectory, spec.topic, RELIABLE)

    def command(self, position: float) -> None:
        self._publisher.publish(trajectory_to_message(TrajectoryCommand(
            stamp_ns=0, joints=(self._joint,), times=np.array([self._travel_time]),
            positions=np.array([[position]]), velocities=np.zeros((1, 1)))))

    def listeners(self) -> int:
        return int(self._publisher.get_subscription_count())

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)
