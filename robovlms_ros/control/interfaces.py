"""Connections of one arm: its observations and its controller, as runner and monitor use them."""

from abc import ABC, abstractmethod
from typing import Protocol

from robovlms_ros.core.types import Array, RobotState


class ObservationSource(Protocol):
    """Observations of one arm, as the policy runner and the monitor read them."""

    @property
    def instruction(self) -> str:
        """The task in force, empty while there is none."""

    def set_instruction(self, text: str) -> None:
        """Put a checked instruction in force, by whatever way it came; empty for none."""

    def state_at(self, stamp_ns: int) -> RobotState:
        """The arm at an image's stamp; raises ObservationError."""

    def measured(self) -> RobotState | None:
        """The arm's newest state."""

    def speed(self) -> Array:
        """(J,) measured speed, rad/s; infinite where the joint states do not cover enough time."""

    def problem(self, now_ns: int) -> str | None:
        """Text of an unusable message or of cameras that do not match; None without one."""

    def topic_of(self, fault: str) -> str:
        """The topic behind a fault, empty where there is none."""

    def clear_joint_states(self) -> None:
        """Forget the joint states: the next ones need not be reachable from the last."""

    def clear(self) -> None:
        """Forget images and joint states, as after a clock jump. The instruction stays."""


class CommandedArm(ABC):
    """Connection of an arm's controller adapter."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The topic or action that receives commands."""

    @abstractmethod
    def absence(self) -> str:
        """The reason why no controller receives commands; empty where one does."""

    def other_commanders(self) -> tuple[str, ...]:
        """Names of the nodes or clients beside this one that command the controller."""
        return ()

    def reference(self) -> RobotState | None:
        """The set point that the controller executes, at its stamp, where the controller reports
        it; else None."""
        return None

    def following(self) -> tuple[str, float] | None:
        """The joint furthest from its command and the distance (rad), where the controller reports
        it; else None."""
        return None

    def problem(self) -> str | None:
        """The controller's own complaint, None without one."""
        return None
