"""One robot as its YAML describes it: joints, limits, tool, and its controllers."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.collision_config import CollisionConfig, WorldBody
from robovlms_ros.control.controller_types import ArmController, Gripper, check_ros_name
from robovlms_ros.control.lerobot_block import LeRobotBlock, read_calibration
from robovlms_ros.core import resources
from robovlms_ros.core.schema import ConfigError, build, current_names, read_mapping, require

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """Source of the kinematic model: a URDF or MJCF `file` beside the YAML, or a
    std_msgs/String `topic`."""

    file: str | None = None
    topic: str | None = None

    def __post_init__(self) -> None:
        if (self.file is None) == (self.topic is None):
            raise ConfigError(
                f"description: file = {self.file!r}, topic = {self.topic!r}: give exactly one, the path of a URDF or "
                "MJCF file or the topic of a robot_state_publisher (usually 'robot_description')."
            )
        if self.topic is not None:
            check_ros_name("description.topic", self.topic)


@dataclass(frozen=True)
class Box:
    """An axis-aligned box, m, in the robot's base frame."""

    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in (("lower", self.lower), ("upper", self.upper)):
            _check_numbers(f"limits.workspace.{name}", values, 3)
        for axis, low, high in zip("xyz", self.lower, self.upper, strict=True):
            if not low < high:
                raise ConfigError(f"limits.workspace: {axis} lower = {low} is not below upper = {high}.")


@dataclass(frozen=True)
class JointLimits:
    """Planning limits, per joint in the robot's order: rad, rad/s, rad/s^2 (m where prismatic).

    eef_speed: linear speed of the tool frame's origin, m/s.
    workspace: where that origin may go; None leaves it to the joint limits.
    """

    position_lower: tuple[float, ...]
    position_upper: tuple[float, ...]
    velocity: tuple[float, ...]
    acceleration: tuple[float, ...]
    eef_speed: float
    workspace: Box | None = None

    def __post_init__(self) -> None:
        _check_positive("limits.eef_speed", self.eef_speed)


FORMER_GATE_KEYS = {"authority": "speed_scaling", "authority_ramp": "speed_scaling_ramp"}
"""Keys of the block `gate` in the previous release -> present keys; accepted with a warning."""


@dataclass(frozen=True)
class GateConfig:
    """Settings of the safety gate: clamping, refusal counts, the ramp of the speed scaling.

    clamp: False refuses what True would slow down or clip.
    max_excess: a speed above this many times its limit is refused, not clamped.
    max_clamps: consecutive chunks that may be clamped; the next one is refused.
    max_refusals, refusal_time: deactivation is requested after so many refusals, consecutive or
        within refusal_window (s; 0: only consecutive; else refusal_time at least), that last so
        long (s).
    speed_scaling: part of the speed limits that the arm may use, above 0 to 1.
    speed_scaling_ramp: s after activation until it may use that part.
    """

    clamp: bool = True
    max_excess: float = 4.0
    max_clamps: int = 50
    max_refusals: int = 10
    refusal_time: float = 3.0
    refusal_window: float = 5.0
    speed_scaling: float = 1.0
    speed_scaling_ramp: float = 1.0

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.max_excess) and self.max_excess >= 1, "gate.max_excess", self.max_excess, "1 or more"
        )
        require(self.max_clamps >= 0, "gate.max_clamps", self.max_clamps, "0 or more")
        require(self.max_refusals >= 1, "gate.max_refusals", self.max_refusals, "1 or more")
        duration = self.refusal_time
        require(math.isfinite(duration) and duration >= 0, "gate.refusal_time", duration, "seconds, 0 or more")
        window = self.refusal_window
        require(0 <= window <= 3600, "gate.refusal_window", window, "seconds, 0 to 3600")
        scaling = self.speed_scaling
        require(0 < scaling <= 1, "gate.speed_scaling", scaling, "above 0, at most 1")
        ramp = self.speed_scaling_ramp
        valid = math.isfinite(ramp) and ramp >= 0
        require(valid, "gate.speed_scaling_ramp", ramp, "seconds, 0 or more")


@dataclass(frozen=True)
class IKSettings:
    """Iteration settings of inverse kinematics, and the tolerance of a reached step.

    position_tolerance, rotation_tolerance: m and rad, largest error of a reached step.
    rotation_weight: m per rad, what a rotation error counts against a position error where both
        cannot vanish.
    converged: iteration stops once both errors are below this part of the tolerances.
    singular_value: below this singular value of the weighted Jacobian (m per rad) a direction is
        damped.
    damping: the damping of a direction whose singular value is 0.
    max_step: rad, largest joint change of one iteration. patience: iterations without progress
        before it gives up.
    """

    position_tolerance: float = 1e-3
    rotation_tolerance: float = 5e-3
    rotation_weight: float = 1.0
    converged: float = 1e-3
    singular_value: float = 0.03
    damping: float = 0.03
    max_step: float = 0.3
    max_iterations: int = 60
    patience: int = 6

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            _check_positive(f"ik.{name}", getattr(self, name))


@dataclass(frozen=True)
class RobotSpec:
    """One robot. Joint-wise values follow `joints`, the order used everywhere inside.

    max_start_jump: rad, largest distance from the measured pose to the first point still to be
        executed.
    max_age: s, older images and joint states are not acted upon when they come in, nor such joint
        states by the gate.
    max_latency: s from an image to the command that answers it: how long the scene may change
        unseen before the arm acts on it (whatever the limit, no motion goes on past the chunk's
        horizon). At least max_age.
    posture_gain: 0 to 1, the part of the way to `home` that a redundant arm takes per step without
        moving its tool.
    collision, world: the gate's collision check, and the bodies around the robot.
    lerobot: LeRobot's numbers of this arm.
    folder: where the YAML lies; set by `load_robot`.
    """

    name: str
    joints: tuple[str, ...]
    description: Description
    base_frame: str
    eef_frame: str
    home: tuple[float, ...]
    limits: JointLimits
    max_start_jump: float
    max_age: float
    controller: ArmController
    gripper: Gripper | None = None
    gate: GateConfig = field(default_factory=GateConfig)
    ik: IKSettings = field(default_factory=IKSettings)
    posture_gain: float = 0.0
    max_latency: float = 1.0
    collision: CollisionConfig = field(default_factory=CollisionConfig)
    world: tuple[WorldBody, ...] = ()
    lerobot: LeRobotBlock = field(default_factory=LeRobotBlock)
    folder: Path = field(default=Path("."), compare=False)

    def __post_init__(self) -> None:
        require(bool(self.joints), "joints", self.joints, "at least one joint name")
        doubles = sorted({j for j in self.joints if self.joints.count(j) > 1})
        require(not doubles, "joints", doubles, "named once each")
        for name in ("name", "base_frame", "eef_frame"):
            require(bool(getattr(self, name)), name, getattr(self, name), "a name")
        _check_positive("max_start_jump", self.max_start_jump)
        _check_positive("max_age", self.max_age)
        latency = self.max_latency
        require(self.max_age <= latency < math.inf, "max_latency", latency, f"{self.max_age} (max_age) or more, finite")
        require(0 <= self.posture_gain <= 1, "posture_gain", self.posture_gain, "from 0 to 1")
        self._check_limits()
        if self.gripper is not None:
            require(self.gripper.joint not in self.joints, "gripper.joint", self.gripper.joint, "no joint of the arm")
        self.lerobot.check_count(len(self.motor_joints))
        names = [body.name for body in self.world]
        repeated = sorted({name for name in names if names.count(name) > 1})
        require(not repeated, "world: name", repeated, "unique")

    def _check_limits(self) -> None:
        count = len(self.joints)
        limits = self.limits
        for name in ("position_lower", "position_upper", "velocity", "acceleration"):
            _check_numbers(f"limits.{name}", getattr(limits, name), count)
        _check_numbers("home", self.home, count)
        for i, joint in enumerate(self.joints):
            low = limits.position_lower[i]
            high = limits.position_upper[i]
            if not low < high:
                raise ConfigError(f"limits of {joint}: position_lower = {low} is not below position_upper = {high}.")
            require(low <= self.home[i] <= high, f"home of {joint}", self.home[i], f"within its limits [{low}, {high}]")
            _check_positive(f"limits.velocity of {joint}", limits.velocity[i])
            _check_positive(f"limits.acceleration of {joint}", limits.acceleration[i])

    @property
    def description_path(self) -> Path | None:
        """The URDF or MJCF file, or None when the description comes from a topic."""
        return None if self.description.file is None else (self.folder / self.description.file).resolve()

    @property
    def motor_joints(self) -> tuple[str, ...]:
        """The joints that have a motor: the arm's, then the gripper's."""
        return self.joints if self.gripper is None else (*self.joints, self.gripper.joint)

    @property
    def collision_scope(self) -> Literal["none", "self", "all"]:
        """The part of the collision check that is on; `auto` is resolved."""
        if self.collision.check == "auto":
            return "all" if self.world else "none"
        return self.collision.check

    def lower(self) -> NDArray[np.float64]:
        """(J,) lower position limits."""
        return np.array(self.limits.position_lower)

    def upper(self) -> NDArray[np.float64]:
        """(J,) upper position limits."""
        return np.array(self.limits.position_upper)


def load_robot(name_or_path: str | Path) -> RobotSpec:
    """The robot of a YAML file, or of a shipped one by name (`panda`). Raises ConfigError naming
    place and remedy."""
    path = resources.find(name_or_path, "config/robots")
    robot = parse_robot(read_mapping(path), str(path), path.parent)
    if robot.description_path is not None and not robot.description_path.is_file():
        raise ConfigError(
            f"{path}: description.file = {robot.description.file!r}: no such file ({robot.description_path}). "
            "Give a URDF or MJCF path relative to the YAML, or `topic: robot_description`."
        )
    if robot.lerobot.calibration is not None:
        read_calibration(robot.folder / robot.lerobot.calibration, robot.lerobot.motors or robot.motor_joints)
    return robot


def parse_robot(data: Mapping[str, Any], where: str, folder: Path = Path(".")) -> RobotSpec:
    """A RobotSpec from a mapping; `folder` is what a description file is relative to.

    Raises ConfigError that begins with `where`.
    """
    if "folder" in data:
        raise ConfigError(f"{where}: unknown key 'folder'. Paths in the file are relative to the file.")
    gate = data.get("gate")
    if isinstance(gate, Mapping):
        present = current_names(gate, FORMER_GATE_KEYS, f"{where}: gate.", log.warning)
        data = {**data, "gate": present}
    try:
        return replace(build(RobotSpec, data, where), folder=folder)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from error


def _check_numbers(where: str, values: tuple[float, ...], count: int) -> None:
    if len(values) != count:
        raise ConfigError(f"{where} has {len(values)} values, must have {count}.")
    for i, value in enumerate(values):
        require(math.isfinite(value), f"{where}[{i}]", value, "a finite number")


def _check_positive(where: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, where, value, "a finite number above 0")
