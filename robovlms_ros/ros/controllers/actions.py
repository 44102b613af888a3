"""Controllers behind an action: joint_trajectory_controller's, and the two kinds of gripper
controller."""

import uuid
from abc import abstractmethod
from typing import Any

from builtin_interfaces.msg import Duration
from rclpy.action import ActionClient
from rclpy.task import Future
from sensor_msgs.msg import JointState
from unique_identifier_msgs.msg import UUID

from robovlms_ros.control import controller_types as specs
from robovlms_ros.control.motion_guard import AdmittedCommand
from robovlms_ros.control.trajectory_shape import wire_form
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.ros.controllers.base import (
    Context,
    Gripper,
    command_publisher,
    message_package,
)
from robovlms_ros.ros.controllers.trajectory_topic import TrajectoryControllerArm
from robovlms_ros.ros.graph import ForeignGoals, other_publishers
from robovlms_ros.ros.messages import trajectory_to_message


class Goals:
    """One action client that keeps sending goals, each replacing the last, and stores what
    became of them."""

    def __init__(self, context: Context, action: type, name: str) -> None:
        self._node = context.node
        self._client = ActionClient(context.node, action, name)
        self.name = name
        self.foreign = ForeignGoals(context.node, name)
        self._sent = 0
        self.problem: str | None = None

    def send(self, goal: Any) -> bool:
        """Send without waiting; returns False where no server is there, which is a problem and not
        an exception."""
        if not self._client.server_is_ready():
            self.problem = f"no action server on {self.name}."
            return False
        self._sent += 1
        number = self._sent
        identity = UUID(uuid=list(uuid.uuid4().bytes))
        self.foreign.expect(identity)
        answer = self._client.send_goal_async(goal, goal_uuid=identity)
        answer.add_done_callback(lambda future: self._on_answer(future, number))
        return True

    def _on_answer(self, future: Future, number: int) -> None:
        handle = future.result()
        if handle is None or not handle.accepted:
            self.problem = f"the controller rejected a goal on {self.name}."
            return
        self.problem = None
        handle.get_result_async().add_done_callback(lambda result: self._on_result(result, number))

    def _on_result(self, future: Future, number: int) -> None:
        # An earlier goal ends as aborted when the next one replaces it: only the newest one's end
        # means anything.
        answer = future.result()
        if answer is not None and number == self._sent and getattr(answer.result, "error_code", 0) != 0:
            text = f"{answer.result.error_code} {answer.result.error_string}".strip()
            self.problem = f"the controller aborted a trajectory on {self.name}: {text}."

    def listeners(self) -> int:
        """1 while the server is there."""
        return int(self._client.server_is_ready())

    def close(self) -> None:
        """Give the client back."""
        self.foreign.close()
        self._client.destroy()


class FollowJointTrajectoryArm(TrajectoryControllerArm):
    """joint_trajectory_controller by its action: unlike the topic, it reports when it rejects or
    aborts."""

    def __init__(self, context: Context, spec: specs.FollowJointTrajectory) -> None:
        self._node = context.node
        self._action = message_package("control_msgs.action", spec.type).FollowJointTrajectory
        self._goals = Goals(context, self._action, spec.action)
        action = context.node.resolve_service_name(spec.action)
        super().__init__(context, spec, action, self._goals.listeners)
        # The controller takes trajectories on a topic beside its action.
        self._topic = f"{action.rpartition('/')[0]}/joint_trajectory"
        nanoseconds = round(spec.goal_time_tolerance * NANOSECONDS)
        self._tolerance = Duration(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)

    def _send(self, command: AdmittedCommand, now_ns: int) -> None:
        trajectory = trajectory_to_message(wire_form(command, now_ns))
        goal = self._action.Goal(trajectory=trajectory, goal_time_tolerance=self._tolerance)
        self._goals.send(goal)

    def other_commanders(self) -> tuple[str, ...]:
        return other_publishers(self._node, self._topic, own=0) + self._goals.foreign.found()

    def problem(self) -> str | None:
        return self._goals.problem

    def close(self) -> None:
        super().close()
        self._goals.close()


class ActionGripper(Gripper):
    """A gripper controller behind an action. No topic carries an action's goals, so each goal is
    published as a JointState (`~/gripper_command`) for recordings."""

    def __init__(
        self, context: Context,
        spec: specs.GripperCommand | specs.ParallelGripperCommand, action: str,
    ) -> None:
        super().__init__(spec)
        self._action = getattr(message_package("control_msgs.action", spec.type), action)
        self._joint = spec.joint
        self._max_effort = spec.max_effort
        self._goals = Goals(context, self._action, spec.action)
        self._node = context.node
        self._commands = command_publisher(context, JointState, "~/gripper_command")

    def _command(self, position: float) -> None:
        if self._goals.send(self._goal(position)):
            state = JointState(name=[self._joint], position=[position])
            state.header.stamp = self._node.get_clock().now().to_msg()
            self._commands.publish(state)

    @abstractmethod
    def _goal(self, position: float) -> Any:
        """The goal that moves the joint to `position` (m or rad)."""

    def listeners(self) -> int:
        return self._goals.listeners()

    def close(self) -> None:
        self._goals.close()
        self._node.destroy_publisher(self._commands)


class GripperCommandGripper(ActionGripper):
    """gripper_controllers' action (Jazzy)."""

    def __init__(self, context: Context, spec: specs.GripperCommand) -> None:
        super().__init__(context, spec, "GripperCommand")

    def _goal(self, position: float) -> Any:
        goal = self._action.Goal()
        goal.command.position = position
        goal.command.max_effort = self._max_effort
        return goal


class ParallelGripperCommandGripper(ActionGripper):
    """parallel_gripper_controller's action (Kilted)."""

    def __init__(self, context: Context, spec: specs.ParallelGripperCommand) -> None:
        super().__init__(context, spec, "ParallelGripperCommand")

    def _goal(self, position: float) -> Any:
        state = JointState(name=[self._joint], position=[position])
        if self._max_effort > 0:
            state.effort = [self._max_effort]
        return self._action.Goal(command=state)
