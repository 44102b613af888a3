"""The parameters of `vla_node` as one typed struct, checked against the table, and as config/vla.yaml.

Nothing here needs ROS: `declare.py` hands the table to rclpy, `config/vla.yaml` is written from it
(`python -m robovlms_ros.ros.parameters`).
"""

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from robovlms_ros.control.controller_types import ROS_NAME, check_ros_name
from robovlms_ros.control.robot import GateConfig
from robovlms_ros.control.safety_monitor import PermissionConfig, SafetyMonitorConfig
from robovlms_ros.control.schedule import ScheduleConfig
from robovlms_ros.core.schema import ConfigError, did_you_mean
from robovlms_ros.observations.images import AS_SENT, only_raw
from robovlms_ros.ros.parameter_table import CAMERA, PARAMETERS, Confirm, Parameter, Value


@dataclass(frozen=True)
class CameraParameters:
    """One camera: its name, base topic and transport. encoding: of its raw images; None is the messages' own."""

    name: str
    topic: str
    transport: Literal["raw", "compressed"]
    encoding: str | None = None

    def __post_init__(self) -> None:
        place = f"parameter camera.{self.name}"
        if self.transport == "compressed" and self.topic.endswith("/compressed"):
            raise ConfigError(
                f"{place}.topic = '{self.topic}': the transport `compressed` appends /compressed itself. Give the base "
                f"topic, '{self.topic.removesuffix('/compressed')}'.")
        if self.transport == "raw" and self.topic.endswith("/compressed"):
            raise ConfigError(
                f"{place}.topic = '{self.topic}': it carries compressed images. Set {place.split()[1]}.transport to "
                f"compressed, and give the base topic, '{self.topic.removesuffix('/compressed')}'.")
        if self.transport == "compressed" and self.encoding is not None:
            raise ConfigError(only_raw(place, self.encoding, "the transport to raw"))


@dataclass(frozen=True)
class NodeParameters:
    """The parameters' values; meaning, unit and range of each stand in PARAMETERS.

    watchdog: its max_age is the robot's, which `max_age` may override.
    """

    backbone: str
    checkpoint: str
    config: str
    robot: str
    device: str
    dtype: str
    fast_path: str
    dry_run: bool
    cameras: tuple[CameraParameters, ...]
    camera_tolerance: float
    joint_states_topic: str
    joint_states_tolerance: float
    instruction_topic: str
    instruction: str
    resume_instruction: bool
    goal_fault_time: float
    confirm: Confirm
    max_instruction_length: int
    robot_may_move_topic: str
    robot_may_move_timeout: float
    resume_after_stop: bool
    max_age: float
    max_latency: float
    authority: float
    authority_ramp: float
    max_inference_rate: float
    on_short_horizon: str
    on_slow_inference: str
    added_latency: float
    schedule: ScheduleConfig
    watchdog: SafetyMonitorConfig

    @property
    def permission(self) -> PermissionConfig | None:
        """The input robot_may_move; None where the arm needs no permission."""
        topic = self.robot_may_move_topic
        if not topic:
            return None
        check_ros_name("parameter robot_may_move_topic", topic)
        return PermissionConfig(topic, self.robot_may_move_timeout, self.resume_after_stop)

    def authority_of(self, gate: GateConfig) -> tuple[float, float]:
        """The part of the speed limits in use after the ramp, and the ramp (s): given here, else the robot's."""
        return self.authority or gate.authority, gate.authority_ramp if self.authority_ramp < 0 else self.authority_ramp


def expand(cameras: Iterable[str]) -> tuple[Parameter, ...]:
    """PARAMETERS with each `{camera}` written out for every camera."""
    names = tuple(cameras)
    expanded = []
    for parameter in PARAMETERS:
        if CAMERA not in parameter.name:
            expanded.append(parameter)
            continue
        for name in names:
            fields = {key: value.replace(CAMERA, name) if isinstance(value, str) else value
                      for key, value in vars(parameter).items()}
            expanded.append(Parameter(**fields))
    return tuple(expanded)


def check_cameras(names: Iterable[str]) -> tuple[str, ...]:
    """The camera names. Raises ConfigError unless there is at least one, each a ROS token, none twice."""
    cameras = tuple(names)
    for name in cameras:
        if not ROS_NAME.match(name) or "/" in name:
            raise ConfigError(f"parameter cameras: '{name}' must be letters, digits and underscores, no digit first.")
    if not cameras or len(set(cameras)) != len(cameras):
        raise ConfigError(f"parameter cameras = {list(cameras)}: must be at least one name, none twice.")
    return cameras


def check_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError, with the nearest name, for a parameter that the node does not have."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown parameter '{name}'.{did_you_mean(name, known)}")


def from_values(values: Mapping[str, Any]) -> NodeParameters:
    """The struct of a full set of values, each checked. Raises ConfigError."""
    cameras = check_cameras(values["cameras"])
    checked = {p.name: p.check(values[p.name]) for p in expand(cameras)}
    fields: dict[str, Any] = {name: value for name, value in checked.items() if "." not in name}
    schedule = {f.name: checked[f"schedule.{f.name}"] for f in dataclasses.fields(ScheduleConfig)}
    fields["schedule"] = ScheduleConfig(**schedule)  # type: ignore[arg-type]
    watched = [f.name for f in dataclasses.fields(SafetyMonitorConfig) if f.name != "max_age"]
    watchdog = {name: checked[f"watchdog.{name}"] for name in watched}
    fields["watchdog"] = SafetyMonitorConfig(**watchdog)  # type: ignore[arg-type]
    fields["cameras"] = tuple(
        CameraParameters(
            name, checked[f"camera.{name}.topic"], checked[f"camera.{name}.transport"],  # type: ignore[arg-type]
            _encoding(checked[f"camera.{name}.encoding"]))
        for name in cameras
    )
    return NodeParameters(**fields)


def _encoding(value: Value) -> str | None:
    return None if value == AS_SENT else str(value)


def defaults(cameras: Iterable[str] | None = None) -> dict[str, Value]:
    """Every parameter's default, by name, for the given cameras or the default ones."""
    names = tuple(cameras) if cameras is not None else tuple(_parameter("cameras").default)  # type: ignore[arg-type]
    values = {p.name: p.default for p in expand(names)}
    return {**values, "cameras": list(names)}


def _parameter(name: str) -> Parameter:
    return next(p for p in PARAMETERS if p.name == name)


def to_yaml() -> str:
    """The text of config/vla.yaml: every parameter at its default, under a comment with meaning and range."""
    lines = [
        "# Parameters of vla_node at their defaults; `/**` makes the file fit any node name and namespace.",
        "# Written by `python -m robovlms_ros.ros.parameters > config/vla.yaml`; edit a copy, give it as params_file.",
        "/**:",
        "  ros__parameters:",
    ]
    for parameter in expand(_parameter("cameras").default):  # type: ignore[arg-type]
        allowed = parameter.allowed()
        lines += _wrapped(parameter.description + (f" Allowed: {allowed}." if allowed else ""))
        lines.append(f"    {parameter.name}: {_literal(parameter.default)}")
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int = 110) -> list[str]:
    lines, line = [], "    #"
    for word in text.split():
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = "    #"
        line += " " + word
    return [*lines, line]


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(value) + "]"
    if value in ("", "off"):
        return f'"{value}"'  # YAML reads a bare off as false
    return str(value)


if __name__ == "__main__":
    sys.stdout.write(to_yaml())
