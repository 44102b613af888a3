"""The parameters of `vla_node`: one declaration from which everything else follows.

Each field of NodeParameters holds default, description, unit and range. From them follow the table
(`expand`), the typed struct (`from_values`), rclpy's descriptors (`declare.py`), config/vla.yaml
and docs/parameters.md (`parameter_files.py` writes both). No ROS is needed.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from robovlms_ros.control.controller_types import ROS_NAME, check_ros_name
from robovlms_ros.control.faults import PermissionConfig, SafetyMonitorConfig
from robovlms_ros.control.robot import FORMER_GATE_KEYS, GateConfig
from robovlms_ros.control.schedule import ScheduleConfig
from robovlms_ros.core.schema import ConfigError, current_names, did_you_mean, parameter
from robovlms_ros.inference.optimized.options import REMEDY, REMOVED
from robovlms_ros.observations.images import AS_SENT, Encoding, only_raw

Value = str | bool | int | float | list[str]
CAMERA = "{camera}"
CAMERAS = ("static", "wrist")
Confirm = Literal["off", "first_chunk", "each_chunk"]
"""The chunks that wait for a person: none, the first one after every stop, every one."""
KINDS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list of texts",
}


@dataclass(frozen=True)
class CameraParameters:
    """One camera: its name, base topic and transport. encoding: None is the messages' own."""

    name: str
    topic: str = parameter("{camera}/image_raw", "Base topic of the camera.", topic=True)
    transport: Literal["raw", "compressed"] = parameter(
        "raw",
        "raw: sensor_msgs/Image on the topic; compressed: sensor_msgs/CompressedImage (JPEG, PNG) "
        "on topic/compressed.",
    )
    encoding: str | None = parameter(
        AS_SENT,
        "Encoding of the camera's raw images, in place of the one that the messages name: for a "
        "driver that sends 8UC3, which leaves the order of the colours open, or a wrong name. "
        "auto: the messages' own.",
        choices=typing.get_args(Encoding),
    )
    calibration: str = parameter(
        "",
        "For ~/preview/NAME: YAML with the pose of the camera's optical frame and its calibration, "
        "by path or by the name of one in config/cameras. Empty: no picture.",
    )
    info_topic: str = parameter(
        "",
        "sensor_msgs/CameraInfo whose calibration is used in place of the YAML's. Empty: the "
        "YAML's.",
    )

    def __post_init__(self) -> None:
        place = f"camera.{self.name}"
        base = self.topic.removesuffix("/compressed")
        if base != self.topic:
            reason = "the transport `compressed` appends /compressed itself. Give"
            if self.transport == "raw":
                change = f"Set {place}.transport to compressed"
                reason = f"it carries compressed images. {change}, and give"
            raise ConfigError(
                f"parameter {place}.topic = '{self.topic}': {reason} the base topic, '{base}'."
            )
        if self.transport == "compressed" and self.encoding is not None:
            rule = only_raw(f"parameter {place}", self.encoding, "the transport to raw")
            raise ConfigError(rule)
        if self.info_topic:
            check_ros_name(f"parameter {place}.info_topic", self.info_topic)
        if self.info_topic and not self.calibration:
            raise ConfigError(
                f"parameter {place}.info_topic = '{self.info_topic}': it has no effect without "
                f"{place}.calibration, a YAML with the camera's pose."
            )


@dataclass(frozen=True)
class NodeParameters:
    """The values of all parameters; `from_values` makes them.

    Facts of a field beside default, description, unit, low and high: topic: a ROS name. fixed:
    given only when the node starts. live: changed at any time. inactive: changed while unconfigured
    or inactive, in force from the next activation. All others: while unconfigured.
    watchdog: its max_age is the robot's, which `max_age` may override.
    """

    backbone: str = parameter(
        "",
        "The preset in config/backbones (kosmos, paligemma, llava, ...). With a checkpoint that "
        "names its backbone it may stay empty; if given, the two must agree.",
    )
    checkpoint: str = parameter(
        "",
        "Folder with the policy's config.yaml and model.safetensors, or `random`: random weights, "
        "for wiring and benchmarks, never out of dry_run. Empty: with `backbone` and dry_run a "
        "small shipped policy of the simulated Panda; otherwise configure fails.",
    )
    config: str = parameter(
        "",
        "Policy configuration (YAML, or the JSON of a RoboVLMs training run) for a checkpoint that "
        "brings none, or for `checkpoint: random`. Empty: the checkpoint's own, else the "
        "backbone's preset.",
    )
    shadow_checkpoint: str = parameter(
        "",
        "Folder of a second policy that infers on the same observations and moves nothing: its "
        "chunks are on ~/shadow/chunk, and ~/switch_policy swaps both. Empty: none.",
    )
    robot: str = parameter(
        "panda", "Robot: a file of config/robots by name, or the path of a YAML."
    )
    device: str = parameter(
        "auto", "Device of the model: auto (cuda where there is one), cpu, cuda, cuda:1, ..."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = parameter(
        "auto", "Precision of the weights; auto: the one of the policy's configuration."
    )
    fast_path: Literal["auto", "max", "off", "fp8"] = parameter(
        "auto",
        "auto: all shortcuts that give the same answers; max: also compiled code, minutes at first "
        "start; off: none; fp8: also the text model's weights in fp8, for GPUs. Compared with the "
        "reference path at configure, and refused beyond the tolerance.",
        removed=REMOVED,
        remedy=REMEDY,
    )
    dry_run: bool = parameter(
        True, "True: chunks are published and nothing that moves.", inactive=True
    )
    confirm: Confirm = parameter(
        "off",
        "Chunks that wait for ~/confirm before they move the arm: off: none; first_chunk: the "
        "first one after every stop; each_chunk: every one, each is executed to its end.",
        inactive=True,
    )
    cameras: tuple[CameraParameters, ...] = parameter(
        CAMERAS, "Names of the cameras, as the policy's configuration has them.", fixed=True
    )
    camera_tolerance: float = parameter(
        0.02,
        "Largest difference of the stamps of images that belong together. At least half the "
        "slowest camera's period where cameras are not synchronised.",
        unit="s", low=0.0, high=1.0,
    )
    joint_states_topic: str = parameter(
        "joint_states", "sensor_msgs/JointState of the arm and its gripper.", topic=True
    )
    joint_states_tolerance: float = parameter(
        0.1,
        "Farthest joint state that may represent the arm at an image's stamp.",
        unit="s", low=0.0, high=1.0,
    )
    instruction_topic: str = parameter(
        "instruction",
        "std_msgs/String, reliable and latched (transient local): the task in words.",
        topic=True,
    )
    instruction: str = parameter(
        "", "The task until one arrives on instruction_topic. Empty: wait for one."
    )
    resume_instruction: bool = parameter(
        False,
        "true: activation goes on with the instruction that is in force. false: it waits for a new "
        "one; `instruction` serves the first activation after configure.",
        inactive=True,
    )
    goal_fault_time: float = parameter(
        3.0,
        "A goal of ~/execute that does not run for so long, because of a fault or a missing input, "
        "ends with `fault`.",
        unit="s", low=0.1, high=3600.0, inactive=True,
    )
    joy_mapping: str = parameter(
        "gamepad",
        "Mapping of ~/human/joy (sensor_msgs/Joy) to a tool velocity and the gripper: a file of "
        "config/joy by name (gamepad, spacemouse), or the path of a YAML.",
    )
    robot_may_move_topic: str = parameter(
        "",
        "std_msgs/Bool of a safety system: false is a smooth stop at once, and nothing moves "
        "before the first message. Empty: no permission is needed.",
    )
    robot_may_move_timeout: float = parameter(
        0.0,
        "Time after which a permission that is not renewed is void (best effort, volatile). 0: the "
        "last one counts (reliable, transient local).",
        unit="s", low=0.0, high=60.0,
    )
    resume_after_stop: bool = parameter(
        False,
        "true: a returned permission lets the arm go on. false: it also needs a new instruction; "
        "one that comes while the permission is withdrawn is dropped.",
    )
    max_instruction_length: int = parameter(
        500,
        "Length beyond which an instruction is refused and the arm held.",
        unit="characters", low=1, high=100000,
    )
    max_age: float = parameter(
        0.0,
        "Age beyond which images and joint states are refused and the arm held. 0: the robot's.",
        unit="s", low=0.0, high=60.0,
    )
    max_latency: float = parameter(
        0.0,
        "Longest time from an image to the command that answers it; later answers are refused and "
        "the arm held. 0: the robot's.",
        unit="s", low=0.0, high=60.0,
    )
    speed_scaling: float = parameter(
        0.0,
        "Part of the robot's speed limits that the arm may use, once the ramp after activation is "
        "over. 0: the robot's (gate.speed_scaling).",
        low=0.0, high=1.0, live=True,
    )
    speed_scaling_ramp: float = parameter(
        -1.0,
        "Time after activation until the arm may use that part. -1: the robot's "
        "(gate.speed_scaling_ramp).",
        unit="s", low=-1.0, high=600.0, live=True,
    )
    max_inference_rate: float = parameter(
        0.0, "Most inferences a second. 0: unlimited.", unit="Hz", low=0.0, high=1000.0
    )
    on_short_horizon: Literal["warn", "refuse"] = parameter(
        "warn",
        "Reaction of configure to a chunk that is too short for the measured latency, so that the "
        "arm would stop between chunks.",
    )
    on_slow_inference: Literal["warn", "refuse", "thin"] = parameter(
        "warn",
        "Reaction of configure to an inference that takes longer than the time between the frames "
        "of the training, so that the history cannot be kept up. thin: the policy receives one "
        "frame in as many steps as it needs, and each represents its neighbours in the history.",
    )
    added_latency: float = parameter(
        0.0,
        "For experiments: every chunk is held back for so long, on the node's clock.",
        unit="s", low=0.0, high=10.0,
    )
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    watchdog: SafetyMonitorConfig = dataclasses.field(default_factory=SafetyMonitorConfig)

    @property
    def permission(self) -> PermissionConfig | None:
        """The input robot_may_move; None where the arm needs no permission."""
        topic = self.robot_may_move_topic
        if not topic:
            return None
        check_ros_name("parameter robot_may_move_topic", topic)
        return PermissionConfig(topic, self.robot_may_move_timeout, self.resume_after_stop)

    def speed_scaling_of(self, gate: GateConfig) -> tuple[float, float]:
        """(part of the speed limits after the ramp, ramp in s): given here, else the robot's."""
        ramp = gate.speed_scaling_ramp if self.speed_scaling_ramp < 0 else self.speed_scaling_ramp
        return self.speed_scaling or gate.speed_scaling, ramp


FORMER = dict(FORMER_GATE_KEYS)
"""Names of the previous release -> present names. They are accepted with a warning."""

RETIRED = {
    "schedule.max_deviation": "a smooth stop always follows the commanded motion",
}
"""Parameters of earlier releases without effect, and the reason; accepted with a warning."""


@dataclass(frozen=True)
class Parameter:
    """One parameter as users read and set it; the facts are those of a field of NodeParameters.

    A name with `{camera}` declares one parameter per configured camera; so does `{camera}` in its
    default. kind: Python type of the value. choices: the allowed texts, empty for any.
    removed: former choices, refused with `remedy`.
    """

    name: str
    default: Value
    kind: type
    description: str
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    remedy: str = ""
    topic: bool = False
    fixed: bool = False
    live: bool = False
    inactive: bool = False

    def allowed(self) -> str:
        """The allowed values in a user's words, empty where every value of the type is."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.topic:
            return "a ROS name such as arm/joint_states"
        return f"from {self.low:g} to {self.high:g}" if math.isfinite(self.low) else ""

    def text(self) -> str:
        """Unit and description."""
        return f"{self.unit}: {self.description}" if self.unit else self.description

    def of_camera(self, camera: str) -> "Parameter":
        """This parameter, of one camera."""
        name = self.name.replace(CAMERA, camera)
        default = self.default
        if isinstance(default, str):
            default = default.replace(CAMERA, camera)
        return dataclasses.replace(self, name=name, default=default)

    def check(self, value: Any) -> Value:
        """`value` as this parameter's type. Raises ConfigError: name, value and what is allowed."""
        kind = self.kind
        if kind is float and type(value) is int:
            value = float(value)
        texts = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        if kind is list and texts:
            value = list(value)
        place = f"parameter {self.name} = {value!r}"
        if type(value) is not kind:
            quoted = f"{self.name}:=\"'off'\""
            hint = f" ROS reads off, yes, 12 and the like as other types; quote it: {quoted}."
            raise ConfigError(f"{place}: must be {KINDS[kind]}.{hint if kind is str else ''}")
        if value in self.removed:
            raise ConfigError(f"{place}: {self.remedy}")
        if self.choices and value not in self.choices:
            raise ConfigError(f"{place}: not allowed.{did_you_mean(value, self.choices)}")
        out_of_range = kind in (int, float) and not self.low <= value <= self.high
        if out_of_range or (self.topic and not ROS_NAME.match(value)):
            raise ConfigError(f"{place}: must be {self.allowed()}.")
        return value


def _declared(cls: type, prefix: str = "") -> Iterator[Parameter]:
    """The parameters that the fields of a dataclass declare, nested ones as `field.name`."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        facts = dict(field.metadata)
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _declared(hint, f"{field.name}.")
        elif facts:
            default = list(field.default) if field.name == "cameras" else field.default
            if typing.get_origin(hint) is Literal:
                facts["choices"] = typing.get_args(hint)
            yield Parameter(f"{prefix}{field.name}", default, type(default), **facts)
        if field.name == "cameras":
            yield from _declared(CameraParameters, f"camera.{CAMERA}.")


PARAMETERS = tuple(_declared(NodeParameters))


def expand(cameras: Iterable[str]) -> tuple[Parameter, ...]:
    """PARAMETERS with each `{camera}` written out for every camera."""
    names = tuple(cameras)
    expanded: list[Parameter] = []
    for entry in PARAMETERS:
        of_cameras = CAMERA in entry.name
        expanded += [entry.of_camera(name) for name in names] if of_cameras else [entry]
    return tuple(expanded)


def defaults(cameras: Iterable[str] = CAMERAS) -> dict[str, Value]:
    """Every parameter's default, by name, for the given cameras."""
    names = tuple(cameras)
    return {**{entry.name: entry.default for entry in expand(names)}, "cameras": list(names)}


def check_cameras(names: Iterable[str]) -> tuple[str, ...]:
    """The camera names. Raises ConfigError unless at least one, each a ROS token, none twice."""
    cameras = tuple(names)
    for name in cameras:
        if not ROS_NAME.match(name) or "/" in name:
            raise ConfigError(
                f"parameter cameras: '{name}' must be letters, digits and underscores, no digit "
                "first."
            )
    if not cameras or len(set(cameras)) != len(cameras):
        raise ConfigError(
            f"parameter cameras = {list(cameras)}: must be at least one name, none twice."
        )
    return cameras


def check_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError, with the nearest name, for a parameter that the node does not have.

    A parameter of a camera that `cameras` does not name is reported as that.
    """
    known = tuple(known)
    for name in names:
        if name in known:
            continue
        prefix, _, rest = name.partition(".")
        camera, _, fact = rest.partition(".")
        others = sorted({k.split(".")[1] for k in known if k.startswith("camera.")})
        if prefix == "camera" and fact and camera not in others:
            raise ConfigError(
                f"parameters camera.{camera}.*: `cameras` names {', '.join(others)} and not "
                f"'{camera}'. Add it there, or remove these lines."
            )
        raise ConfigError(f"unknown parameter '{name}'.{did_you_mean(name, known)}")


def of_this_release(given: Mapping[str, Any], warn: Callable[[str], None]) -> dict[str, Any]:
    """`given` without the names of earlier releases: former ones replaced, retired ones removed.

    warn: receives one line for each. Raises ConfigError where a value is given by both names.
    """
    values = current_names(given, FORMER, "parameter ", warn)
    for name in [name for name in values if name in RETIRED]:
        warn(f"parameter {name} has no effect any more: {RETIRED[name]}. Remove it.")
        del values[name]
    return values


def from_values(values: Mapping[str, Any]) -> NodeParameters:
    """The struct of a full set of values, each checked. Raises ConfigError."""
    names = check_cameras(values["cameras"])
    checked = {entry.name: entry.check(values[entry.name]) for entry in expand(names)}

    def under(prefix: str) -> dict[str, Any]:
        return {
            name.removeprefix(prefix): value
            for name, value in checked.items()
            if name.startswith(prefix)
        }

    cameras = []
    for name in names:
        camera = under(f"camera.{name}.")
        if camera["encoding"] == AS_SENT:
            camera["encoding"] = None
        cameras.append(CameraParameters(name, **camera))
    fields: dict[str, Any] = {name: value for name, value in checked.items() if "." not in name}
    fields["cameras"] = tuple(cameras)
    fields["schedule"] = ScheduleConfig(**under("schedule."))
    fields["watchdog"] = SafetyMonitorConfig(**under("watchdog."))
    return NodeParameters(**fields)
