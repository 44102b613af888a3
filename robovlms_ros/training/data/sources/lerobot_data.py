"""The `data.lerobot` block of a training YAML: columns of a LeRobot folder and their units."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.control.lerobot_units import RecordedUnits, recorded_units
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.schema import ConfigError, build, did_you_mean, require
from robovlms_ros.training.data.episodes import DataError

SUFFIX = ".pos"
"""Of LeRobot's names of joint columns."""
BOTH_READINGS = (
    "degrees or as percent of each joint's range, -100..100: the robot's use_degrees while "
    "recording decides, true by default since LeRobot 0.4.4. Declare it (`data: {lerobot: {units: "
    "degrees}}` or `percent`, docs/so101.md), or give numbers: degrees (scale 0.017453), percent "
    "(scale (upper - lower) / 200, offset (upper + lower) / 2, with the ends of the range in rad)"
)
"""The two units of SO-100 and SO-101 recordings."""


@dataclass(frozen=True)
class LeRobotData:
    """The `data.lerobot` block of a training YAML.

    cameras: the policy's camera name -> feature; by default the feature whose last part has that
        name.
    action: the feature with the recorded actions, in the policy's `action.space`. arm, gripper: its
        columns; by default the last is the gripper's and the others the arm's.
    units: `degrees` or `percent` as LeRobot records arms with bus servos. Columns are then found by
        the motors' names, and scale, offset and the gripper's ends follow from the robot's YAML
        (`lerobot`). `si`: by the following numbers. robot: that YAML; default `action.robot`.
    scale, offset: of the arm, one number for all columns or one each: SI value = scale * recorded
        number + offset.
    gripper_closed, gripper_open: recorded numbers of a closed and an open gripper.
    intervention: the feature that is true where a person drives, for `training.corrections`; read
        where it exists.
    state: the feature with the measured state; proprioception: name -> its columns, for the names
        that the policy takes. Joint positions take `scale` and `offset`, the gripper its own
        numbers, poses are metres and radians.
    """

    cameras: dict[str, str] = field(default_factory=dict)
    action: str = "action"
    arm: tuple[int, ...] = ()
    gripper: int = -1
    units: Literal["si", "degrees", "percent"] = "si"
    robot: str | None = None
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    gripper_closed: float = 0.0
    gripper_open: float = 1.0
    intervention: str = "intervention"
    state: str = "observation.state"
    proprioception: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gripper_closed == self.gripper_open:
            raise ConfigError(
                f"data.lerobot: gripper_closed and gripper_open are both {self.gripper_open:g}: "
                "must differ."
            )
        for name in ("scale", "offset"):
            numbers = getattr(self, name)
            require(
                len(numbers) > 0 and all(math.isfinite(x) for x in numbers),
                f"data.lerobot.{name}",
                numbers,
                "one finite number, or one for each joint",
            )
        require(all(self.scale), "data.lerobot.scale", self.scale, "other than 0")


def is_percent_or_degrees(robot_type: str) -> bool:
    """True for the arms that LeRobot records in degrees or in percent of their range, as the
    recording chose."""
    return re.search(r"so[-_ ]?10[01]", robot_type.lower()) is not None


def read_block(
    mapping: Mapping[str, Any], config: PolicyConfig, features: Mapping[str, Any], path: Path
) -> tuple[LeRobotData, list[str]]:
    """The block with its units resolved to columns and numbers, and notes on them. Raises
    ConfigError and DataError.

    features: of the folder at `path`, by name.
    """
    data = build(LeRobotData, mapping, "data.lerobot")
    if data.units == "si":
        return data, []
    assert config.action is not None
    require(
        config.action.space == "joint_position",
        "data.lerobot.units",
        data.units,
        f"si with action.space = '{config.action.space}'; joint units are for joint_position",
    )
    name = data.robot or config.action.robot
    if name is None:
        raise ConfigError(
            f"data.lerobot.units = '{data.units}' without data.lerobot.robot: the robot's YAML "
            "relates these numbers to radians. Give a name (so101) or a YAML, or set action.robot."
        )
    robot = load_robot(name)
    numbers = recorded_units(robot, data.units)
    declared = ["scale", "offset"]
    if robot.lerobot.calibration is not None:
        declared += ["gripper_closed", "gripper_open"]
    twice = [key for key in declared if key in mapping]
    if twice:
        raise ConfigError(
            f"data.lerobot.{twice[0]} and units = '{data.units}' declare the same twice: remove "
            f"{', '.join(twice)}, or set units to si."
        )
    resolved = _with_numbers(data, numbers, mapping)
    resolved = _with_columns(resolved, numbers.motors, mapping, config, features, path)
    return resolved, _notes(resolved, numbers, name, robot.lerobot.calibration)


def _with_numbers(
    data: LeRobotData, numbers: RecordedUnits, mapping: Mapping[str, Any]
) -> LeRobotData:
    closed = data.gripper_closed if "gripper_closed" in mapping else numbers.gripper_closed
    opened = data.gripper_open if "gripper_open" in mapping else numbers.gripper_open
    return dataclasses.replace(
        data,
        scale=tuple(numbers.scale.tolist()),
        offset=tuple(numbers.offset.tolist()),
        gripper_closed=closed,
        gripper_open=opened,
    )


def _with_columns(
    data: LeRobotData,
    motors: Sequence[str],
    mapping: Mapping[str, Any],
    config: PolicyConfig,
    features: Mapping[str, Any],
    path: Path,
) -> LeRobotData:
    """Columns by the motors' names, where the block does not give them."""
    arm_dims = config.action_head.action_dim - 1
    if len(motors) != arm_dims + 1:
        raise ConfigError(
            f"action_head.action_dim = {arm_dims + 1}: must be {len(motors)}, the motors of the "
            f"robot ({', '.join(motors)})."
        )
    if "arm" not in mapping and data.action in features:
        columns = _columns_of(features, data.action, motors, path)
        data = dataclasses.replace(data, arm=columns[:-1], gripper=columns[-1])
    wanted = set(config.proprioception.names) if config.proprioception else set()
    states = dict(data.proprioception)
    missing = wanted & {"joint_positions", "gripper"} - set(states)
    if missing and data.state in features:
        columns = _columns_of(features, data.state, motors, path)
        found = {"joint_positions": columns[:-1], "gripper": columns[-1:]}
        states |= {name: found[name] for name in missing}
    return dataclasses.replace(data, proprioception=states)


def state_columns(
    features: Mapping[str, Any], data: LeRobotData, motors: Sequence[str], path: Path
) -> list[int]:
    """Columns of the motors in the states: as the block gives them, else by the motors' names."""
    given = [
        *data.proprioception.get("joint_positions", ()),
        *data.proprioception.get("gripper", ()),
    ]
    return (
        given
        if len(given) == len(motors)
        else list(_columns_of(features, data.state, motors, path))
    )


def _columns_of(
    features: Mapping[str, Any], feature: str, motors: Sequence[str], path: Path
) -> tuple[int, ...]:
    """The columns MOTOR.pos of a feature, in the order of the motors."""
    names = features[feature].get("names")
    if isinstance(names, Mapping):  # {"motors": [...]}, as version 2 has it
        names = [name for group in names.values() if isinstance(group, list) for name in group]
    names = [str(name) for name in names] if isinstance(names, list) else []
    columns = []
    for motor in motors:
        column = f"{motor}{SUFFIX}"
        if column not in names:
            raise DataError(
                f"{path}: '{feature}' has no column '{column}'.{did_you_mean(column, names)} Its "
                f"columns: {', '.join(names) or 'without names'}. Set `lerobot.motors` in the "
                "robot's YAML to the motors' names, "
                "or data.lerobot.arm and .gripper to the columns; numbers in radians have units: "
                "si."
            )
        columns.append(names.index(column))
    return tuple(columns)


def _notes(
    data: LeRobotData, numbers: RecordedUnits, robot: str, calibration: str | None
) -> list[str]:
    """One line for each motor."""
    source = f"calibration {calibration}" if calibration else "no calibration needed"
    lines = [f"units: {data.units}, by robot '{robot}' ({source})"]
    ends = (-100.0, 100.0) if data.units == "percent" else (-90.0, 90.0)
    for motor, scale, offset in zip(numbers.motors, data.scale, data.offset, strict=False):
        low, high = (scale * end + offset for end in ends)
        lines.append(f"{motor}: {ends[0]:g} is {low:.3f} rad, {ends[1]:g} is {high:.3f} rad")
    if len(numbers.motors) > len(data.scale):
        lines.append(
            f"{numbers.motors[-1]}: closed at {data.gripper_closed:.1f}, open at "
            f"{data.gripper_open:.1f} "
            "percent of its range"
        )
    return lines
