"""The controller and gripper blocks of a robot's YAML: one dataclass per `type`, each field with
its unit.

They hold the target and the settings of the commands; the adapters that send are in
`robovlms_ros.ros.controllers`. Names of topics, actions and services are relative, so that
namespaces and remappings work. Packages of third parties add arm controllers:
docs/add_a_controller.md.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from robovlms_ros.core.registry import CONTROLLERS, KINDS, names, resolve
from robovlms_ros.core.schema import ConfigError, did_you_mean, require, shown
from robovlms_ros.core.types import TrajectoryCommand

# A ROS name: optional leading / or ~/, then tokens of letters, digits and underscores that do not
# start with a digit.
ROS_NAME = re.compile(r"^(/|~/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*$")


def check_ros_name(where: str, value: str) -> None:
    """Raise ConfigError unless `value` is a valid ROS topic, service or action name."""
    require(bool(ROS_NAME.match(value)), where, value, "a ROS name such as arm_controller/joint_trajectory")


ANY_NODE = "*"
"""`controller.node` of a controller whose node has no known name: any subscriber counts."""


def check_node(value: str | None) -> None:
    """Raise ConfigError unless `value` is the name of a controller's node, ANY_NODE or None."""
    if value is not None and value != ANY_NODE:
        allowed = "the name of a node such as arm_controller, or '*' for any subscriber"
        require(bool(ROS_NAME.match(value)), "controller.node", value, allowed)


def check_range(where: str, value: float, low: float, high: float, unit: str) -> None:
    """Raise ConfigError unless `value` is finite and lies from `low` to `high` (in `unit`)."""
    allowed = f"from {low:g} to {high:g} {unit}"
    require(math.isfinite(value) and low <= value <= high, where, value, allowed)


class ArmController:
    """Base of the arm controllers' blocks: frozen dataclasses, distinguished by their `type`.

    adapter: `module:Class` of the adapter, a subclass of `robovlms_ros.ros.controllers.base.Arm`,
    for types of third parties. A name, because this module is imported on machines without ROS.
    """

    type: str
    adapter: ClassVar[str] = ""

    @classmethod
    def variant(cls, tag: object, where: str) -> Any:
        """The dataclass of `type: tag`, ours or of an entry point.

        Raises ConfigError that begins with `where`.
        """
        if not isinstance(tag, str):
            allowed = did_you_mean("", names("controller"))
            raise ConfigError(f"{where}.type = {shown(tag)}: must be a text.{allowed}")
        found = resolve("controller", tag, f"{where}.type")
        if tag not in CONTROLLERS:
            _check_third_party(found, tag, where)
        return found


def _check_third_party(found: Any, tag: str, where: str) -> None:
    source = f"{where}.type = '{tag}': entry point of the group {KINDS['controller'].group}"
    is_block = isinstance(found, type) and issubclass(found, ArmController)
    is_block = is_block and dataclasses.is_dataclass(found)
    if not is_block:
        raise ConfigError(
            f"{source} names {found!r}: must be a dataclass that derives from ArmController."
        )
    if ":" not in found.adapter:
        raise ConfigError(
            f"{source}: {found.__name__}.adapter = '{found.adapter}': must be 'module:Class'."
        )


WantedShape = Literal["auto", "self_splice", "replacement"]


@dataclass(frozen=True)
class JointTrajectory(ArmController):
    """joint_trajectory_controller by its topic (trajectory_msgs/JointTrajectory).

    trajectory_shape: `self_splice` for a controller that forgets the running trajectory when a new
    one arrives (Jazzy, Kilted), `replacement` for one that blends them
    (allow_trajectory_replacement), `auto`: by its parameters.
    state_topic: its control_msgs/JointTrajectoryControllerState, by which the tracking error is
        judged; None takes the tracking error from the joint states, and reads the node's
        `~/controller_state` for the rest where control_msgs is installed.
    node: name of the controller's node; None takes the topic's namespace, ANY_NODE any subscriber.
    """

    type: Literal["joint_trajectory"]
    topic: str
    state_topic: str | None = None
    trajectory_shape: WantedShape = "auto"
    node: str | None = None

    def __post_init__(self) -> None:
        check_ros_name("controller.topic", self.topic)
        check_node(self.node)
        if self.state_topic is not None:
            check_ros_name("controller.state_topic", self.state_topic)


@dataclass(frozen=True)
class FollowJointTrajectory(ArmController):
    """joint_trajectory_controller by its action (control_msgs/action/FollowJointTrajectory).

    trajectory_shape, state_topic, node: as for its topic.
    """

    type: Literal["follow_joint_trajectory"]
    action: str
    goal_time_tolerance: float = 0.5  # s
    state_topic: str | None = None
    trajectory_shape: WantedShape = "auto"
    node: str | None = None

    def __post_init__(self) -> None:
        check_ros_name("controller.action", self.action)
        check_node(self.node)
        if self.state_topic is not None:
            check_ros_name("controller.state_topic", self.state_topic)
        check_range("controller.goal_time_tolerance", self.goal_time_tolerance, 0.0, 60.0, "s")


def state_topic(spec: object) -> str | None:
    """Name of the topic on which a joint_trajectory_controller publishes its state; None for
    blocks of other controllers, and for one whose command name has no namespace.

    spec: a robot's `controller` or `gripper`.
    """
    if not isinstance(spec, JointTrajectory | FollowJointTrajectory | OneJointTrajectory):
        return None
    given = getattr(spec, "state_topic", None)
    if given is not None:
        return str(given)
    command = spec.action if isinstance(spec, FollowJointTrajectory) else spec.topic
    node = getattr(spec, "node", None)
    # The namespace of the command is the controller's name, by the convention of ros2_control.
    controller = command.rpartition("/")[0] if node in (None, ANY_NODE) else node
    return f"{controller}/controller_state" if controller else None


@dataclass(frozen=True)
class ServoTwist(ArmController):
    """MoveIt Servo by twist (geometry_msgs/TwistStamped).

    servo: the servo node's name, prefix of its switch_command_type and pause_servo services and its
        status topic.
    units: `speed_units` (m/s, rad/s) or `unitless` ([-1, 1] of linear_scale m/s, angular_scale
        rad/s).
    rate: Hz at which commands are sent; Servo halts on commands older than 0.1 s.
    """

    type: Literal["servo_twist"]
    servo: str = "servo_node"
    topic: str = "servo_node/delta_twist_cmds"
    units: Literal["speed_units", "unitless"] = "speed_units"
    linear_scale: float = 0.4  # m/s at 1.0, Servo's scale.linear
    angular_scale: float = 0.8  # rad/s at 1.0, Servo's scale.rotational
    rate: float = 50.0

    def __post_init__(self) -> None:
        check_ros_name("controller.servo", self.servo)
        check_ros_name("controller.topic", self.topic)
        check_range("controller.linear_scale", self.linear_scale, 0.001, 10.0, "m/s")
        check_range("controller.angular_scale", self.angular_scale, 0.001, 10.0, "rad/s")
        check_range("controller.rate", self.rate, 20.0, 1000.0, "Hz")


@dataclass(frozen=True)
class ServoPose(ArmController):
    """MoveIt Servo by pose (geometry_msgs/PoseStamped in the robot's base frame)."""

    type: Literal["servo_pose"]
    servo: str = "servo_node"
    topic: str = "servo_node/pose_target_cmds"
    rate: float = 50.0  # Hz

    def __post_init__(self) -> None:
        check_ros_name("controller.servo", self.servo)
        check_ros_name("controller.topic", self.topic)
        check_range("controller.rate", self.rate, 20.0, 1000.0, "Hz")


@dataclass(frozen=True)
class CartesianPose(ArmController):
    """A Cartesian controller's target (geometry_msgs/PoseStamped): cartesian_motion_controller,
    crisp_controllers.

    node: as for `joint_trajectory`.
    """

    type: Literal["cartesian_pose"]
    topic: str
    rate: float = 50.0  # Hz
    node: str | None = None

    def __post_init__(self) -> None:
        check_node(self.node)
        check_ros_name("controller.topic", self.topic)
        check_range("controller.rate", self.rate, 1.0, 1000.0, "Hz")


@dataclass(frozen=True)
class ForwardPosition(ArmController):
    """forward_command_controller (std_msgs/Float64MultiArray): it neither interpolates nor limits,
    so the node does.

    node: as for `joint_trajectory`.
    """

    type: Literal["forward_position"]
    topic: str
    rate: float = 100.0  # Hz
    node: str | None = None

    def __post_init__(self) -> None:
        check_node(self.node)
        check_ros_name("controller.topic", self.topic)
        check_range("controller.rate", self.rate, 20.0, 1000.0, "Hz")


@dataclass(frozen=True)
class ChunkOnly(ArmController):
    """No controller: the node publishes action chunks and nothing that moves."""

    type: Literal["chunk_only"]


@dataclass(frozen=True, kw_only=True)
class GripperBase:
    """Fields of every gripper, and the thresholds at which an opening between 0 (closed) and 1
    (open) becomes a command.

    joint: its joint's name in joint_states (and in the command, where that names joints).
    open_position, closed_position: that joint's positions, m or rad.
    close_below, open_above: hysteresis on the policy's opening.
    dwell: s, shortest time between two commands.
    """

    joint: str
    open_position: float
    closed_position: float
    close_below: float = 0.4
    open_above: float = 0.6
    dwell: float = 0.2

    def __post_init__(self) -> None:
        require(bool(self.joint), "gripper.joint", self.joint, "a joint name")
        for name in ("open_position", "closed_position"):
            require(math.isfinite(getattr(self, name)), f"gripper.{name}", getattr(self, name), "a finite number")
        require(
            self.open_position != self.closed_position,
            "gripper.closed_position",
            self.closed_position,
            f"different from open_position ({self.open_position})",
        )
        require(
            0 < self.close_below < self.open_above < 1,
            "gripper: (close_below, open_above)",
            (self.close_below, self.open_above),
            "increasing and between 0 and 1",
        )
        check_range("gripper.dwell", self.dwell, 0.0, 10.0, "s")

    def opening(self, position: float) -> float:
        """The opening 0 (closed) to 1 (open) of a joint position, clipped."""
        part = (position - self.closed_position) / (self.open_position - self.closed_position)
        return min(1.0, max(0.0, part))

    def position(self, opening: float) -> float:
        """The joint position of an opening 0 (closed) to 1 (open), clipped."""
        return self.closed_position + min(1.0, max(0.0, opening)) * (self.open_position - self.closed_position)


@dataclass(frozen=True, kw_only=True)
class OneJointTrajectory(GripperBase):
    """A joint_trajectory_controller of the gripper's joint. travel_time: s for the whole stroke."""

    type: Literal["one_joint_trajectory"]
    topic: str
    travel_time: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ros_name("gripper.topic", self.topic)
        check_range("gripper.travel_time", self.travel_time, 0.01, 30.0, "s")

    def command(self, position: float) -> TrajectoryCommand:
        """One point, due at once: the joint at `position` (m or rad), at rest after travel_time."""
        times = np.array([self.travel_time])
        point = np.array([[position]])
        return TrajectoryCommand(0, (self.joint,), times, point, np.zeros((1, 1)))


@dataclass(frozen=True, kw_only=True)
class ActionGripperBase(GripperBase):
    """A gripper behind an action. max_effort: N or N m, 0: the driver's."""

    action: str
    max_effort: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ros_name("gripper.action", self.action)
        check_range("gripper.max_effort", self.max_effort, 0.0, 10000.0, "N")


@dataclass(frozen=True, kw_only=True)
class GripperCommand(ActionGripperBase):
    """gripper_controllers (Jazzy, control_msgs/action/GripperCommand)."""

    type: Literal["gripper_command"]


@dataclass(frozen=True, kw_only=True)
class ParallelGripperCommand(ActionGripperBase):
    """parallel_gripper_controller (Kilted, control_msgs/action/ParallelGripperCommand)."""

    type: Literal["parallel_gripper_command"]


@dataclass(frozen=True, kw_only=True)
class GripperArray(GripperBase):
    """A forward controller of the gripper's joint (std_msgs/Float64MultiArray with its
    position)."""

    type: Literal["float64_multi_array"]
    topic: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ros_name("gripper.topic", self.topic)


Gripper = OneJointTrajectory | GripperCommand | ParallelGripperCommand | GripperArray
