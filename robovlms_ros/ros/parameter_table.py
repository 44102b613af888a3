"""Every parameter of `vla_node`, declared once: name, default, range, description."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from robovlms_ros.control.controller_types import ROS_NAME
from robovlms_ros.control.safety_monitor import SafetyMonitorConfig
from robovlms_ros.control.schedule import ScheduleConfig, Strategy
from robovlms_ros.core.schema import ConfigError, did_you_mean
from robovlms_ros.observations.images import AS_SENT, Encoding

Value = str | bool | int | float | list[str]
TRANSPORTS = ("raw", "compressed")
WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list of texts"}
CAMERA = "{camera}"
Confirm = Literal["off", "first_chunk", "each_chunk"]
"""The chunks that wait for a person: none, the first one after every stop, every one."""
SCHEDULE = ScheduleConfig()
WATCHDOG = SafetyMonitorConfig()


@dataclass(frozen=True)
class Parameter:
    """One parameter. `low`, `high` bound numbers, both inclusive; `choices` bound texts; `topic` marks a ROS name.

    A name with `{camera}` stands for one parameter per configured camera; so does `{camera}` in its default.
    fixed: can only be given when the node starts; live: can be changed at any time; inactive: while
    unconfigured or inactive, in force from the next activation; all others: while unconfigured.
    """

    name: str
    default: Value
    description: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
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

    def check(self, value: Any) -> Value:
        """`value` as this parameter's type. Raises ConfigError that names it, what it is and what is allowed."""
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is list and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            value = list(value)
        if type(value) is not kind:
            hint = f" ROS reads off, yes, 12 and the like as other types; quote it: {self.name}:=\"'off'\"."
            raise ConfigError(
                f"parameter {self.name} = {value!r}: must be {WORDS[kind]}.{hint if kind is str else ''}"
            )
        if self.choices and value not in self.choices:
            raise ConfigError(f"parameter {self.name} = {value!r}: not allowed.{did_you_mean(value, self.choices)}")
        out_of_range = kind in (int, float) and not self.low <= value <= self.high
        if out_of_range or (self.topic and not ROS_NAME.match(value)):
            raise ConfigError(f"parameter {self.name} = {value!r}: must be {self.allowed()}.")
        return value


PARAMETERS = (
    Parameter(
        "backbone", "",
        "The preset in config/backbones (kosmos, paligemma, llava, ...). With a checkpoint that names its backbone it "
        "may stay empty; if given, the two must agree."),
    Parameter(
        "checkpoint", "",
        "Folder with the policy's config.yaml and model.safetensors, or `random`: random weights, for wiring and "
        "benchmarks, never out of dry_run. Empty: configure fails and says so."),
    Parameter(
        "config", "",
        "Policy configuration (YAML, or the JSON of a RoboVLMs training run) for a checkpoint that brings none, or for "
        "`checkpoint: random`. Empty: the checkpoint's own, else the backbone's preset."),
    Parameter("robot", "panda", "Robot: a file of config/robots by name, or the path of a YAML."),
    Parameter("device", "auto", "Where the model runs: auto (cuda where there is one), cpu, cuda, cuda:1, ..."),
    Parameter(
        "dtype", "auto", "Precision of the weights; auto is what the policy's configuration names.",
        choices=("auto", "float32", "bfloat16", "float16")),
    Parameter(
        "fast_path", "auto",
        "auto: all shortcuts that give the same answers; max: also compiled code, minutes at first start; off: none; "
        "int8, int4, fp8: also the text model's weights in fewer bits, for small GPUs. Compared with the plain path at "
        "configure, and refused beyond the tolerance.", choices=("auto", "max", "off", "int8", "int4", "fp8")),
    Parameter(
        "dry_run", True, "True: chunks are published and nothing that moves.", inactive=True),
    Parameter(
        "cameras", ["static", "wrist"], "Names of the cameras, as the policy's configuration has them.", fixed=True),
    Parameter("camera.{camera}.topic", "{camera}/image_raw", "Base topic of the camera.", topic=True),
    Parameter(
        "camera.{camera}.transport", "raw",
        "raw: sensor_msgs/Image on the topic; compressed: sensor_msgs/CompressedImage (JPEG, PNG) on topic/compressed.",
        choices=TRANSPORTS),
    Parameter(
        "camera.{camera}.encoding", AS_SENT,
        "Encoding of the camera's raw images, in place of the one that the messages name: for a driver that sends "
        "8UC3, which leaves the order of the colours open, or a wrong name. auto: as the messages say.",
        choices=get_args(Encoding)),
    Parameter(
        "camera_tolerance", 0.02,
        "s: images of several cameras belong together when their stamps differ by at most this. At least half the "
        "slowest camera's period where cameras are not synchronised.", 0.0, 1.0),
    Parameter("joint_states_topic", "joint_states", "sensor_msgs/JointState of the arm and its gripper.", topic=True),
    Parameter(
        "joint_states_tolerance", 0.1,
        "s: farthest joint state that may stand for the arm at an image's stamp.", 0.0, 1.0),
    Parameter(
        "instruction_topic", "instruction",
        "std_msgs/String, reliable and latched (transient local): the task in words.", topic=True),
    Parameter("instruction", "", "The task until one comes on instruction_topic. Empty: wait for one."),
    Parameter(
        "resume_instruction", False,
        "true: activation goes on with the instruction that is in force. false: it waits for a new "
        "one; `instruction` serves the first activation after configure.", inactive=True),
    Parameter(
        "goal_fault_time", 3.0,
        "s: a goal of ~/execute that does not run for so long, because of a fault or a missing "
        "input, ends with `fault`.", 0.1, 3600.0, inactive=True),
    Parameter(
        "confirm", "off",
        "Chunks that wait for ~/confirm before they move the arm: off: none; first_chunk: the first "
        "one after every stop; each_chunk: every one, each is executed to its end.",
        choices=get_args(Confirm), inactive=True),
    Parameter(
        "max_instruction_length", 500,
        "Characters; a longer instruction is refused and the arm held.", 1, 100000),
    Parameter(
        "robot_may_move_topic", "",
        "std_msgs/Bool of a safety system: false is a smooth stop at once, and nothing moves before "
        "the first message. Empty: no permission is needed."),
    Parameter(
        "robot_may_move_timeout", 0.0,
        "s: a permission that is not renewed for so long is void (best effort, volatile). 0: the "
        "last one counts (reliable, transient local).", 0.0, 60.0),
    Parameter(
        "resume_after_stop", False,
        "true: a returned permission lets the arm go on. false: it also needs a new instruction; "
        "one that comes while the permission is withdrawn is dropped."),
    Parameter(
        "max_age", 0.0,
        "s: images and joint states older than this are refused and the arm held. 0: the robot's.", 0.0, 60.0),
    Parameter(
        "max_latency", 0.0,
        "s from an image to the command that answers it; later answers are refused and the arm held. 0: the robot's.",
        0.0, 60.0),
    Parameter(
        "authority", 0.0,
        "Part of the robot's speed limits that the arm may use, once the ramp after activation is over; at any time. "
        "0: the robot's (gate.authority).", 0.0, 1.0, live=True),
    Parameter(
        "authority_ramp", -1.0,
        "s after activation until the arm may use that part; at any time. -1: the robot's (gate.authority_ramp).",
        -1.0, 600.0, live=True),
    Parameter(
        "max_inference_rate", 0.0, "Hz: at most this many inferences a second. 0: as fast as they come.", 0.0, 1000.0),
    Parameter(
        "on_short_horizon", "warn",
        "What configure does when a chunk is too short for the measured latency, so that the arm would stop between "
        "chunks.", choices=("warn", "refuse")),
    Parameter(
        "on_slow_inference", "warn",
        "What configure does when one frame takes the policy longer than the time between the frames that it was "
        "trained on, so that its history cannot be kept up. thin: only one frame in so many steps is seen that the "
        "policy keeps up, and each stands for its neighbours in the history.", choices=("warn", "refuse", "thin")),
    Parameter(
        "added_latency", 0.0,
        "s: for experiments; every chunk is held back for so long, on the node's clock.", 0.0, 10.0),
    Parameter(
        "schedule.strategy", SCHEDULE.strategy,
        "How chunks become motion. blend: the mean of the recent chunks that agree, joined smoothly; fade: the newest "
        "chunk, joined smoothly; ensemble: temporal ensembling; receding: execute_steps steps, then replan; first: one "
        "step, then replan (RoboVLMs' own evaluation).", choices=get_args(Strategy)),
    Parameter("schedule.execute_steps", SCHEDULE.execute_steps, "Steps executed of each chunk (receding).", 1, 1000),
    Parameter(
        "schedule.lead", SCHEDULE.lead,
        "s ahead of now that the running plan is left as it is; longer than a message takes to arrive.", 0.001, 1.0),
    Parameter(
        "schedule.fade_time", SCHEDULE.fade_time, "s that joining the running plan takes (fade, blend).", 0.02, 5.0),
    Parameter("schedule.memory", SCHEDULE.memory, "s: age at which a chunk counts 1/e (blend).", 0.01, 100.0),
    Parameter(
        "schedule.ensemble_decay", SCHEDULE.ensemble_decay, "Decay of the weights by age (ensemble).", 0.0, 10.0),
    Parameter("schedule.stop_time", SCHEDULE.stop_time, "s: shortest time of a stop.", 0.02, 5.0),
    Parameter(
        "watchdog.clock_tolerance", WATCHDOG.clock_tolerance,
        "s: farthest that an image's stamp may be ahead of the node's clock.", 0.001, 60.0),
    Parameter(
        "watchdog.frozen_time", WATCHDOG.frozen_time,
        "s: a camera that sends the same bytes for so long, while a joint moves by frozen_motion, is frozen.",
        0.01, 3600.0),
    Parameter("watchdog.frozen_motion", WATCHDOG.frozen_motion, "rad: see watchdog.frozen_time.", 0.001, 10.0),
    Parameter(
        "watchdog.inference_timeout", WATCHDOG.inference_timeout,
        "s: an inference that takes longer is reported as late; the running plan ends at rest.", 0.01, 3600.0),
    Parameter(
        "watchdog.following_error", WATCHDOG.following_error,
        "rad: a joint further than this from its command for following_time is not following; the arm is held.",
        0.001, 10.0),
    Parameter("watchdog.following_time", WATCHDOG.following_time, "s: see watchdog.following_error.", 0.01, 60.0),
    Parameter(
        "watchdog.standstill_time", WATCHDOG.standstill_time,
        "s: an arm of which no joint moves for so long, while one is commanded to move by standstill_motion, does not "
        "follow (protective stop, inactive controller); the arm is held and its set point brought back to it.",
        0.1, 60.0),
    Parameter(
        "watchdog.standstill_motion", WATCHDOG.standstill_motion,
        "rad: see watchdog.standstill_time; a fifth of it counts as standing still. 0: not checked.", 0.0, 10.0),
    Parameter(
        "watchdog.clock_jump", WATCHDOG.clock_jump,
        "s: a step forward of the node's clock that is a jump; back always is.", 0.1, 3600.0),
)

RETIRED = {
    "schedule.max_deviation": "a smooth stop always follows the commanded motion",
}
"""Parameters of earlier releases that have no effect any more, and the reason. They are accepted with a warning."""
