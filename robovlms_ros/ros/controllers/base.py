"""What every controller adapter can do, and what every gripper adapter shares."""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from rclpy.node import Node

from robovlms_ros.runtime.controllers import GripperBase
from robovlms_ros.runtime.kinematics import Kinematics
from robovlms_ros.runtime.robot import RobotSpec
from robovlms_ros.types import NANOSECONDS, RobotState, RoboVLMsError, TrajectoryCommand


class ControllerError(RoboVLMsError):
    """A controller cannot be served: a message package is missing, or the robot's YAML asks for what it cannot do."""


@dataclass(frozen=True)
class Context:
    """What an adapter is made with.

    node: the node it speaks through. measured: the arm's newest state. kinematics: for this adapter's use alone, as
    kinematics are not thread-safe; None where the robot has no description.
    """

    node: Node
    robot: RobotSpec
    measured: Callable[[], RobotState | None]
    kinematics: Kinematics | None = None


class Arm(ABC):
    """Sends trajectories to one kind of arm controller. Calls come one at a time, from any thread."""

    rate = 0.0
    """Hz at which `tick` must be called; 0 where it does nothing."""

    @abstractmethod
    def send(self, command: TrajectoryCommand, now_ns: int) -> None:
        """Follow `command` from now on, in place of what came before. A smooth stop is a command like any other."""

    def tick(self, now_ns: int) -> None:  # noqa: B027
        """Send what is due by time; nothing for a controller that takes whole trajectories."""

    @abstractmethod
    def listeners(self) -> int:
        """How many controllers hear what is sent."""

    def problem(self) -> str | None:
        """Why the controller does not do what it is told, None while nothing is known."""
        return None

    def prepare(self) -> None:  # noqa: B027
        """Called at activation, before the first command; must not wait."""

    @abstractmethod
    def close(self) -> None:
        """Give the ROS entities back."""


class Gripper(ABC):
    """Turns a stream of openings, 0 closed to 1 open, into commands: edges only, with hysteresis and a dwell time."""

    def __init__(self, spec: GripperBase) -> None:
        self._spec = spec
        self._open: bool | None = None
        self._changed_ns = 0

    def update(self, opening: float, now_ns: int) -> None:
        """Send a command when `opening` crosses to the other side and the last command is `dwell` seconds old."""
        spec = self._spec
        wanted = self._open
        if opening >= spec.open_above:
            wanted = True
        elif opening <= spec.close_below:
            wanted = False
        rested = self._open is None or now_ns - self._changed_ns >= spec.dwell * NANOSECONDS
        if wanted is not None and wanted != self._open and rested:
            self._open, self._changed_ns = wanted, now_ns
            self.command(spec.position(1.0 if wanted else 0.0))

    def reset(self) -> None:
        """Forget which side the gripper is on: the next opening is a command."""
        self._open = None

    @abstractmethod
    def command(self, position: float) -> None:
        """Send the joint to `position` (m or rad)."""

    @abstractmethod
    def listeners(self) -> int:
        """How many controllers hear what is sent."""

    @abstractmethod
    def close(self) -> None:
        """Give the ROS entities back."""


def message_package(module: str, controller: str) -> ModuleType:
    """`control_msgs.action` and the like. Raises ControllerError that names the apt package when it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        distro = os.environ.get("ROS_DISTRO", "jazzy")
        raise ControllerError(
            f"controller type '{controller}' needs {package}, which is not installed ({error}). "
            f"Install it: sudo apt install ros-{distro}-{package.replace('_', '-')}"
        ) from error
