"""LeRobot's numbers of an arm with bus servos in the radians of its ROS driver.

LeRobot records a motor's ticks relative to its calibrated range: degrees from the middle of the
range, or percent of it, -100 to 100; a gripper always 0 to 100. The driver reports radians from a
zero of its own, which the robot's YAML names (`lerobot`).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from robovlms_ros.control.lerobot_block import TICKS, MotorRange, read_calibration
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import Array

Units = Literal["degrees", "percent"]

RADIANS_PER_TICK = 2 * np.pi / TICKS
TICKS_PER_DEGREE = (TICKS - 1) / 360
"""LeRobot counts 4095 ticks a turn; the driver's radians count 4096."""
WHOLE_PERCENT = 100.0


@dataclass(frozen=True)
class RecordedUnits:
    """Joint value in rad = scale * recorded number + offset, (J,) each, in the order of `joints`.

    motors: LeRobot's names of `joints`, then of the gripper.
    gripper_closed, gripper_open: recorded numbers of the robot's closed and open position; the
        whole range where no calibration is known.
    """

    motors: tuple[str, ...]
    scale: Array
    offset: Array
    gripper_closed: float = 0.0
    gripper_open: float = WHOLE_PERCENT


def motor_names(robot: RobotSpec) -> tuple[str, ...]:
    """LeRobot's names of the robot's joints, then of its gripper."""
    return robot.lerobot.motors or robot.motor_joints


def calibrated_ranges(robot: RobotSpec) -> tuple[MotorRange, ...] | None:
    """Ranges of `motor_names`, or None for a robot without a calibration. Raises ConfigError."""
    name = robot.lerobot.calibration
    return None if name is None else read_calibration(robot.folder / name, motor_names(robot))


def recorded_units(robot: RobotSpec, units: Units) -> RecordedUnits:
    """The conversion of recordings in `units`. Raises ConfigError for percent without a
    calibration."""
    count = len(robot.joints)
    motors = motor_names(robot)
    ranges = calibrated_ranges(robot)
    sign = _each(robot.lerobot.sign, len(motors))
    if ranges is None:
        if units == "percent":
            raise ConfigError(
                f"robot '{robot.name}': lerobot.calibration is missing: percent of a joint's range "
                "are radians only with the range. Copy LeRobot's file of this arm beside the robot's YAML and name "
                "it there (`lerobot: {calibration: my_arm.json}`); LeRobot keeps it in "
                "~/.cache/huggingface/lerobot/calibration/robots/so101_follower."
            )
        return RecordedUnits(
            motors, sign[:count] * TICKS_PER_DEGREE * RADIANS_PER_TICK, np.zeros(count)
        )
    zero = _zeros(robot, ranges, sign)
    ticks_per_number = np.array([_ticks_per_number(motor, units) for motor in ranges[:count]])
    middle = np.array([motor.middle for motor in ranges[:count]])
    to_radians = sign[:count] * RADIANS_PER_TICK
    scale = to_radians * ticks_per_number
    offset = to_radians * (middle - zero[:count])
    if robot.gripper is None:
        return RecordedUnits(motors, scale, offset)
    jaw = ranges[count]
    ticks = [
        zero[count] + sign[count] * position / RADIANS_PER_TICK
        for position in (robot.gripper.closed_position, robot.gripper.open_position)
    ]
    percent = [WHOLE_PERCENT * (tick - jaw.low) / (jaw.high - jaw.low) for tick in ticks]
    if jaw.inverted:
        percent = [WHOLE_PERCENT - value for value in percent]
    return RecordedUnits(motors, scale, offset, float(percent[0]), float(percent[1]))


def _ticks_per_number(motor: MotorRange, units: Units) -> float:
    """LeRobot's degrees take no notice of an inverted motor."""
    if units == "degrees":
        return TICKS_PER_DEGREE
    per_percent = (motor.high - motor.low) / (2 * WHOLE_PERCENT)
    return -per_percent if motor.inverted else per_percent


def calibrated_limits(robot: RobotSpec) -> tuple[Array, Array] | None:
    """The ends of the arm's calibrated ranges in rad, (J,) lower and upper, beyond which its servos
    do not go; None without a calibration."""
    ranges = calibrated_ranges(robot)
    if ranges is None:
        return None
    count = len(robot.joints)
    sign = _each(robot.lerobot.sign, len(ranges))
    zero = _zeros(robot, ranges, sign)[:count]
    ends = np.array([(motor.low, motor.high) for motor in ranges[:count]])
    radians = np.sort((sign[:count] * RADIANS_PER_TICK)[:, None] * (ends - zero[:, None]), axis=1)
    return radians[:, 0], radians[:, 1]


def zero_ticks(robot: RobotSpec) -> dict[str, float] | None:
    """Motor -> the tick at which the driver has to report 0 rad; None without a calibration."""
    ranges = calibrated_ranges(robot)
    if ranges is None:
        return None
    zero = _zeros(robot, ranges, _each(robot.lerobot.sign, len(ranges)))
    return dict(zip(motor_names(robot), zero.tolist(), strict=True))


def _zeros(robot: RobotSpec, ranges: tuple[MotorRange, ...], sign: Array) -> Array:
    """(M,) ticks at 0 rad."""
    given = robot.lerobot.zero
    if given != "middle":
        return _each(given, len(ranges))
    zero = np.array([motor.middle for motor in ranges])
    if robot.gripper is not None:
        jaw = ranges[-1]
        closed = jaw.high if jaw.inverted else jaw.low
        zero[-1] = closed - sign[-1] * robot.gripper.closed_position / RADIANS_PER_TICK
    return zero


def _each(values: tuple[float, ...] | tuple[int, ...], count: int) -> Array:
    """One number for each motor."""
    return np.broadcast_to(np.array(values, dtype=np.float64), (count,)).copy()
