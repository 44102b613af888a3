"""Faults, the arm's reactions to them, and the bounds beyond which something is a fault."""

from dataclasses import dataclass
from typing import Literal, get_args

from robovlms_ros.core.schema import check_ranges, parameter, require

Action = Literal["none", "wait", "smooth_stop", "cease_commands"]
"""Reactions of the arm, the weaker first. `wait`: nothing new is sent, the running plan ends at
rest by itself. `smooth_stop`: a smooth stop is sent, then nothing until the fault is gone.
`cease_commands`: nothing is sent and the plan is forgotten, because no controller receives it or
its times have no meaning any more."""

SEVERITY: tuple[Action, ...] = get_args(Action)

FAULTS = (
    "robot_may_not_move", "image_stale", "image_frozen", "camera_clock", "joint_states_stale",
    "joint_states_implausible", "no_instruction", "instruction_refused", "inference_late",
    "inference_died", "controller_absent", "controller_shared", "controller_reference",
    "controller_not_following", "arm_not_following", "clock_jumped",
)
"""Names of all faults; one of a camera is followed by the camera's name."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: its name (`image_stale wrist`), the status text, and the arm's
    reaction."""

    name: str
    text: str
    action: Action = "smooth_stop"


@dataclass(frozen=True)
class SafetyMonitorConfig:
    """Bounds beyond which something is a fault; part of the node's parameters, but for max_age.

    max_age: s, an image or a joint state is stale without a newer one for so long; the robot's.
    """

    max_age: float = 0.5
    clock_tolerance: float = parameter(
        0.1, "Farthest that an image's stamp may be ahead of the node's clock.",
        unit="s", low=0.001, high=60.0,
    )
    frozen_time: float = parameter(
        1.0,
        "A camera that sends the same bytes for so long, while a joint moves by frozen_motion, is "
        "frozen.",
        unit="s", low=0.01, high=3600.0,
    )
    frozen_motion: float = parameter(
        0.05, "See watchdog.frozen_time.", unit="rad", low=0.001, high=10.0
    )
    inference_timeout: float = parameter(
        1.0,
        "An inference that takes longer is reported as late; the running plan ends at rest.",
        unit="s", low=0.01, high=3600.0,
    )
    following_error: float = parameter(
        0.3,
        "A joint further than this from its command for following_time is not following; the arm "
        "is held.",
        unit="rad", low=0.001, high=10.0,
    )
    following_time: float = parameter(
        0.5, "See watchdog.following_error.", unit="s", low=0.01, high=60.0
    )
    standstill_time: float = parameter(
        0.5,
        "An arm of which no joint moves for so long, while one is commanded to move by "
        "standstill_motion, does not follow (protective stop, inactive controller); the arm is "
        "held and its set point brought back to it.",
        unit="s", low=0.1, high=60.0,
    )
    standstill_motion: float = parameter(
        0.05,
        "See watchdog.standstill_time; a fifth of it counts as standing still. 0: not checked.",
        unit="rad", low=0.0, high=10.0,
    )
    reference_error: float = parameter(
        0.05,
        "A controller whose published reference is further than this from the commanded motion for "
        "reference_time executes another one; nothing is sent until it rests. 0: not checked.",
        unit="rad", low=0.0, high=10.0,
    )
    reference_time: float = parameter(
        0.2, "See watchdog.reference_error.", unit="s", low=0.01, high=60.0
    )
    clock_jump: float = parameter(
        2.0, "A step forward of the node's clock that is a jump; a step back always is.",
        unit="s", low=0.1, high=3600.0,
    )

    def __post_init__(self) -> None:
        age = self.max_age
        require(0.0 < age < 1e6, "watchdog.max_age", age, "a number above 0")
        check_ranges(self, "watchdog")


@dataclass(frozen=True)
class PermissionConfig:
    """The input robot_may_move: a safety system's permission to move.

    topic: named in texts. timeout: s after which a permission that is not renewed is void; 0: the
    last one counts. resume: False where a stop by it also ends the instruction.
    """

    topic: str
    timeout: float = 0.0
    resume: bool = False
