"""A joint_trajectory_controller behind a topic or an action: the shape of its messages, its
presence, its published state."""

from collections.abc import Callable
from importlib import import_module

from robovlms_ros.control.controller_types import FollowJointTrajectory, JointTrajectory
from robovlms_ros.core.types import RobotState, TrajectoryShape
from robovlms_ros.ros.controllers.base import Arm, Context, message_package
from robovlms_ros.ros.controllers.controller_presence import ControllerPresence, controller_name
from robovlms_ros.ros.controllers.controller_state import ControllerStateReader
from robovlms_ros.ros.controllers.shape_detection import ShapeDetection


class TrajectoryControllerArm(Arm):
    """Base of the adapters that send whole trajectories to a joint_trajectory_controller.

    name: the full name of the topic or action. listeners: its number of receivers.
    """

    def __init__(
        self,
        context: Context,
        spec: JointTrajectory | FollowJointTrajectory,
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
            context, name, spec.node, listeners, isinstance(spec, JointTrajectory), self._state
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
    context: Context, spec: JointTrajectory | FollowJointTrajectory, controller: str
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
