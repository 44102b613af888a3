"""joint_trajectory_controller: the base of its adapters, and its topic, an arm's or a gripper's of
one joint."""

from collections.abc import Callable
from importlib import import_module

from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.control import controller_types as specs
from robovlms_ros.control.motion_guard import AdmittedCommand
from robovlms_ros.control.trajectory_shape import wire_form
from robovlms_ros.core.types import RobotState, TrajectoryShape
from robovlms_ros.ros.controllers.base import (
    Arm,
    Context,
    TopicGripper,
    command_publisher,
    message_package,
)
from robovlms_ros.ros.controllers.controller_presence import ControllerPresence, controller_name
from robovlms_ros.ros.controllers.controller_state import ControllerStateReader
from robovlms_ros.ros.controllers.shape_detection import ShapeDetection
from robovlms_ros.ros.graph import ForeignGoals, other_publishers
from robovlms_ros.ros.messages import trajectory_to_message


class TrajectoryControllerArm(Arm):
    """Base of the adapters that send whole trajectories to a joint_trajectory_controller.

    name: the full name of the topic or action. listeners: its number of receivers.
    """

    def __init__(
        self,
        context: Context,
        spec: specs.JointTrajectory | specs.FollowJointTrajectory,
        name: str,
        listeners: Callable[[], int],
    ) -> None:
        self._name = name
        self._count = listeners
        controller = controller_name(context.node, name, spec.node)
        prefix = name.rpartition("/")[0]
        self._detection = ShapeDetection(context.node, controller or prefix, spec.trajectory_shape)
        self._state = _state_reader(context, spec, controller)
        self._reports_error = spec.state_topic is not None
        self._presence = ControllerPresence(
            context, name, spec.node, listeners, isinstance(spec, specs.JointTrajectory), self._state
        )

    @property
    def shape(self) -> TrajectoryShape:
        return self._detection.shape

    @property
    def shape_text(self) -> str:
        return self._detection.text

    @property
    def name(self) -> str:
        return self._name

    def listeners(self) -> int:
        return self._count()

    def absence(self) -> str:
        return self._presence.absence()

    def reference(self) -> RobotState | None:
        return None if self._state is None else self._state.reference()

    def following(self) -> tuple[str, float] | None:
        if self._state is None or not self._reports_error:
            return None
        return self._state.error()

    def close(self) -> None:
        self._detection.close()
        self._presence.close()
        if self._state is not None:
            self._state.close()


def _state_reader(
    context: Context, spec: specs.JointTrajectory | specs.FollowJointTrajectory, controller: str
) -> ControllerStateReader | None:
    """The reader of the named topic or of `~/controller_state`; None where neither can be read.

    Raises ControllerError for a named topic without control_msgs.
    """
    topic = spec.state_topic
    if topic is not None:
        messages = message_package("control_msgs.msg", f"{spec.type} with state_topic")
        topic = context.node.resolve_topic_name(topic)
        return ControllerStateReader(context, topic, messages.JointTrajectoryControllerState)
    if not controller:
        return None
    try:
        messages = import_module("control_msgs.msg")
    except ImportError:
        return None
    topic = f"{controller}/controller_state"
    return ControllerStateReader(context, topic, messages.JointTrajectoryControllerState)


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
