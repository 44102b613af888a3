"""The `lerobot` block of a robot's YAML, and LeRobot's calibration file of an arm with bus servos.

A calibration file holds for each motor `id`, `drive_mode`, `homing_offset`, `range_min` and
`range_max`, in ticks, 4096 a turn. LeRobot writes one for each arm, by its id, below
~/.cache/huggingface/lerobot/calibration/robots (https://huggingface.co/docs/lerobot/so101).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robovlms_ros.core.schema import ConfigError, did_you_mean, read_mapping, require

TICKS = 4096
"""A turn."""
AGAIN = "Calibrate the arm again (lerobot-calibrate), or give the calibration of this arm."


@dataclass(frozen=True)
class LeRobotBlock:
    """Relation of LeRobot's numbers of this arm to the radians of its ROS driver.

    motors: LeRobot's names of `joints` and then of the gripper; empty: the joints' own names.
    calibration: LeRobot's file of this arm, relative to the YAML; None: not known.
    zero: the tick at which the driver reports 0 rad, one for all motors or one each. `middle`: the
        middle of each motor's calibrated range; the gripper's is where 0 percent is
        `gripper.closed_position`.
    sign: -1 where the driver's radians fall as the ticks rise; one for all motors or one each.
    """

    motors: tuple[str, ...] = ()
    calibration: str | None = None
    zero: Literal["middle"] | tuple[float, ...] = "middle"
    sign: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        require(
            len(set(self.motors)) == len(self.motors),
            "lerobot.motors",
            self.motors,
            "named once each",
        )
        allowed = all(sign in (-1, 1) for sign in self.sign)
        require(
            allowed and len(self.sign) > 0,
            "lerobot.sign",
            self.sign,
            "1 or -1, for all motors or for each",
        )
        if self.zero != "middle":
            within = len(self.zero) > 0 and all(0 <= tick < TICKS for tick in self.zero)
            require(
                within,
                "lerobot.zero",
                self.zero,
                f"`middle`, or ticks from 0 to {TICKS - 1}, for all motors or for each",
            )
            require(
                self.calibration is not None,
                "lerobot.zero",
                self.zero,
                "`middle` without `calibration`: a tick "
                "is related to LeRobot's numbers by the calibration file alone",
            )

    def check_count(self, count: int) -> None:
        """Raise ConfigError unless every list fits `count` motors."""
        for name in ("motors", "zero", "sign"):
            values = getattr(self, name)
            allowed = (0, count) if name == "motors" else (1, count)
            if values != "middle" and len(values) not in allowed:
                raise ConfigError(
                    f"lerobot.{name} has {len(values)} values: must have {allowed[0]} or {count}, "
                    "one for each of `joints` and the gripper."
                )


@dataclass(frozen=True)
class MotorRange:
    """Calibrated range of one motor, ticks. inverted: LeRobot's percent fall as the ticks rise."""

    low: int
    high: int
    inverted: bool

    @property
    def middle(self) -> float:
        """The tick that LeRobot's degrees count from."""
        return (self.low + self.high) / 2


def read_calibration(path: Path, motors: Sequence[str]) -> tuple[MotorRange, ...]:
    """The ranges of `motors` in LeRobot's calibration file. Raises ConfigError: a missing motor, an
    empty range, ticks that are none."""
    table = read_mapping(path)
    return tuple(_range_of(path, table, motor) for motor in motors)


def _range_of(path: Path, table: Mapping[str, Any], motor: str) -> MotorRange:
    entry = table.get(motor)
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{path}: motor '{motor}' is missing; the file has "
            f"{', '.join(map(str, table)) or 'none'}: must hold every motor of the "
            f"robot.{did_you_mean(motor, map(str, table))} {AGAIN} Where its motors have other "
            "names than the robot's joints, name them in the robot's YAML, `lerobot.motors`."
        )
    ends = []
    for name in ("range_min", "range_max"):
        tick = entry.get(name)
        good = isinstance(tick, int) and not isinstance(tick, bool) and 0 <= tick < TICKS
        require(
            good,
            f"{path}: {name} of '{motor}'",
            tick,
            f"a whole number from 0 to {TICKS - 1} (ticks). {AGAIN}",
        )
        ends.append(int(tick))  # type: ignore[arg-type]
    low, high = ends
    if low >= high:
        raise ConfigError(
            f"{path}: '{motor}' has range_min = {low} and range_max = {high}: range_min must be "
            f"below range_max. {AGAIN}"
        )
    mode = entry.get("drive_mode", 0)
    require(mode in (0, 1), f"{path}: drive_mode of '{motor}'", mode, "0 or 1")
    return MotorRange(low, high, mode == 1)
