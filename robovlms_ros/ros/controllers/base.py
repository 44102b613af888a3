"""Base classes of controller and gripper adapters."""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy

from robovlms_ros.control.controller_types import GripperBase
from robovlms_ros.control.interfaces import CommandedArm
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.motion_guard import AdmittedCommand, AdmittedOpening
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.types import RobotState, RoboVLMsError, TrajectoryShape
from robovlms_ros.ros.spinning import QUIET_PUBLISHER

RELIABLE = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)


class ControllerError(RoboVLMsError):
    """A controller cannot be served: a message package is missing, or the robot's YAML requires
    what it cannot do."""


@dataclass(frozen=True)
class Context:
    """Arguments of an adapter.

    node: the node that publishes. measured: the arm's newest state. kinematics: for this
    adapter's use alone, as kinematics are not thread-safe; None where the robot has no description.
    """

    node: Node
    robot: RobotSpec
    measured: Callable[[], RobotState | None]
    kinematics: Kinematics | None = None


class Arm(CommandedArm):
    """Sends trajectories to one kind of arm controller. Calls come one at a time, from any
    thread."""

    rate = 0.0
    """Hz at which `tick` must be called; 0 where it does nothing."""

    def send(self, command: AdmittedCommand, now_ns: int) -> None:
        """Follow `command` from now on, in place of what came before. A smooth stop is a command
        like any other.

        Raises ControllerError for a command that the motion guard has not admitted.
        """
        if not isinstance(command, AdmittedCommand):
            raise ControllerError(f"{type(command).__name__} was not admitted by the motion guard: nothing is sent.")
        self._send(command, now_ns)

    @abstractmethod
    def _send(self, command: AdmittedCommand, now_ns: int) -> None:
        """Publish an admitted command."""

    def tick(self, now_ns: int) -> None:
        """Send what is due by time; nothing for a controller that takes whole trajectories."""

    def cease_commands(self) -> None:
        """Leave the command under way: the controller is away, or the command's times are void.

        A controller of whole trajectories finishes its own; one of single targets is brought to
        rest.
        """

    @property
    def shape(self) -> TrajectoryShape:
        """The shape of the commands that its controller continues smoothly; it may change at any
        time."""
        return "self_splice"

    @property
    def shape_text(self) -> str:
        """The shape and the reason for it; empty for a controller of single targets."""
        return ""

    @abstractmethod
    def listeners(self) -> int:
        """Number of subscribers or servers that receive commands."""

    def absence(self) -> str:
        return "" if self.listeners() else nobody_listens(self.name)

    def prepare(self) -> None:
        """Called at activation, before the first command; must not wait."""

    @abstractmethod
    def close(self) -> None:
        """Give the ROS entities back."""


class Gripper(ABC):
    """Commands a gripper's joint when the wanted opening changes; hysteresis and dwell are the
    executor's."""

    def __init__(self, spec: GripperBase) -> None:
        self._spec = spec
        self._opening: float | None = None

    def update(self, opening: AdmittedOpening) -> None:
        """Send a command when `opening`, 0 closed to 1 open, differs from the one sent last.

        Raises ControllerError for an opening that the motion guard has not admitted.
        """
        if not isinstance(opening, AdmittedOpening):
            raise ControllerError(f"a gripper opening of {opening} was not admitted by the motion guard.")
        if opening != self._opening:
            self._opening = opening
            self._command(self._spec.position(opening))

    def reset(self) -> None:
        """Forget what was sent: the next opening is a command."""
        self._opening = None

    @abstractmethod
    def _command(self, position: float) -> None:
        """Send the joint to `position` (m or rad)."""

    @abstractmethod
    def listeners(self) -> int:
        """Number of controllers that receive commands."""

    @abstractmethod
    def close(self) -> None:
        """Give the ROS entities back."""


class TopicGripper(Gripper):
    """Base of grippers behind a topic. kind: the message type."""

    def __init__(self, context: Context, spec: GripperBase, kind: type, topic: str) -> None:
        super().__init__(spec)
        self._node = context.node
        self._publisher = command_publisher(context, kind, topic)

    def listeners(self) -> int:
        return int(self._publisher.get_subscription_count())

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)


def nobody_listens(name: str) -> str:
    """Text for a topic or an action that nobody receives commands on."""
    return (
        f"nobody listens to {name}: start the controller, or correct its name in the robot's YAML"
    )


def command_publisher(context: Context, kind: type, topic: str) -> Publisher:
    """A publisher as controllers want it: reliable, and with few messages kept, as an old command
    is worth nothing."""
    return context.node.create_publisher(kind, topic, RELIABLE, event_callbacks=QUIET_PUBLISHER)


def message_package(module: str, controller: str) -> ModuleType:
    """`control_msgs.action` and the like. Raises ControllerError that names the apt package when it
    is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        distro = os.environ.get("ROS_DISTRO", "jazzy")
        raise ControllerError(
            f"controller type '{controller}' needs {package}, which is not installed ({error}). "
            f"Install it: sudo apt install ros-{distro}-{package.replace('_', '-')}"
        ) from error
