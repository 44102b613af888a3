"""joint_trajectory_controller by its topic: an arm's, or a gripper's of one joint."""

from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.control import controller_types as specs
from robovlms_ros.control.motion_guard import AdmittedCommand
from robovlms_ros.control.trajectory_shape import wire_form
from robovlms_ros.ros.controllers.base import Context, TopicGripper, command_publisher
from robovlms_ros.ros.controllers.trajectory_controller import TrajectoryControllerArm
from robovlms_ros.ros.graph import ForeignGoals, other_publishers
from robovlms_ros.ros.messages import trajectory_to_message


class JointTrajectoryArm(TrajectoryControllerArm):
    """Publishes each command whole; the controller interpolates. A topic returns no answer."""

    def __init__(self, context: Context, spec: specs.JointTrajectory) -> None:
        self._node = context.node
        self._publisher = command_publisher(context, JointTrajectory, spec.topic)
        name = str(self._publisher.topic_name)
        super().__init__(context, spec, name, self._publisher.get_subscription_count)
        # joint_trajectory_controller serves an action beside its topic: MoveIt commands the same
        # joints by it.
        namespace = name.rpartition("/")[0]
        self._goals = ForeignGoals(context.node, f"{namespace}/follow_joint_trajectory")

    def _send(self, command: AdmittedCommand, now_ns: int) -> None:
        self._publisher.publish(trajectory_to_message(wire_form(command, now_ns)))

    def other_commanders(self) -> tuple[str, ...]:
        return other_publishers(self._node, self.name, own=1) + self._goals.found()

    def close(self) -> None:
        super().close()
        self._goals.close()
        self._node.destroy_publisher(self._publisher)


class OneJointTrajectoryGripper(TopicGripper):
    """Publishes one point per edge: the whole stroke in `travel_time`."""

    def __init__(self, context: Context, spec: specs.OneJointTrajectory) -> None:
        super().__init__(context, spec, JointTrajectory, spec.topic)
        self._one_joint = spec

    def _command(self, position: float) -> None:
        self._publisher.publish(trajectory_to_message(self._one_joint.command(position)))
