"""Measurements of one fault: the arm's record after it, as parts of the joints' limits, and their
table."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.types import Array

REST = 1e-3  # rad/s
STEP_LIMIT = 1.01
SPEED_LIMIT = 1.05
ACCELERATION_LIMIT = 1.2
OUTSIDE_LIMIT = 1e-5  # rad
STANDSTILL_LIMIT = 0.2
"""s: a motion goes on that rests no longer than at a turning point."""

Motion = Literal["rests", "goes on", "resumes", "any"]
"""The motion that a fault must leave. `rests`: at rest within a time, until the fault is mended.
`goes on`: without a standstill. `resumes`: it may stop and moves again before the fault is mended.
`any`: not judged."""


@dataclass(frozen=True)
class FaultRow:
    """One fault's measurements. Ratios are parts of the joints' limits; times are seconds, NaN for
    never at rest.

    Everything but the time to rest includes the recovery. outside: rad beyond the position limits,
    commanded or measured. rest_allowed: the longest time to rest; NaN unless the motion must rest.
    standstill: the longest time at rest before the fault was mended. delayed: the longest time by
        which the machine delayed a command on its way.
    """

    fault: str
    speed: float
    gripper_closing: bool
    step: float
    measured_speed: float
    acceleration: float
    measured_acceleration: float
    outside: float
    rest: float
    rest_allowed: float
    motion: Motion
    standstill: float
    state: str
    detail: str
    delayed: float = 0.0

    @property
    def within(self) -> bool:
        """True where every measurement is within its bound."""
        return bool(
            self.step <= STEP_LIMIT
            and self.measured_speed <= SPEED_LIMIT
            and max(self.acceleration, self.measured_acceleration) <= ACCELERATION_LIMIT
            and self.outside <= OUTSIDE_LIMIT
            and self._moved_as_it_must
        )

    @property
    def _moved_as_it_must(self) -> bool:
        moves = math.isnan(self.rest)
        return {
            "rests": self.rest <= self.rest_allowed,
            "goes on": moves and self.standstill <= STANDSTILL_LIMIT,
            "resumes": moves,
            "any": True,
        }[self.motion]


def judge(
    times: Array, commands: Array, measured: Array, own: Sequence[int], robot: RobotSpec
) -> tuple[float, float, float, float, float]:
    """Worst command step, measured speed, commanded and measured acceleration (parts of the
    limits), rad outside.

    own: indices at which the restarted controller itself takes up the measured pose, or the joints
    freeze; no client can prevent that step.
    """
    limits = robot.limits
    ratios = []
    for values in (commands, measured):
        step = np.diff(times)[:, None]
        speeds = np.diff(values, axis=0) / step
        between = (times[2:] - times[:-2])[:, None] / 2
        accelerations = np.diff(speeds, axis=0) / between
        for index in own:
            speeds[max(0, index - 2) : index + 2] = 0.0
            # The joints follow the step with their lag.
            until = index + (40 if values is measured else 3)
            accelerations[max(0, index - 3) : until] = 0.0
        ratios.append(float(np.abs(speeds / limits.velocity).max()))
        ratios.append(float(np.abs(accelerations / limits.acceleration).max()))
    step_ratio, acceleration, speed_ratio, measured_acceleration = ratios
    both = np.concatenate([commands, measured])
    outside = max(0.0, float((robot.lower() - both).max()), float((both - robot.upper()).max()))
    return step_ratio, speed_ratio, acceleration, measured_acceleration, outside


def time_to_rest(times: Array, commands: Array) -> float:
    """Seconds until the commanded joints stay at rest; NaN where they move at the end."""
    speeds = np.abs(np.diff(commands, axis=0)).max(axis=1) / np.diff(times)
    moving = np.flatnonzero(speeds > REST)
    if not len(moving):
        return 0.0
    if moving[-1] >= len(speeds) - 20:
        return math.nan
    return float(times[moving[-1] + 1] - times[0])


def longest_standstill(times: Array, commands: Array) -> float:
    """Longest time in which no commanded joint moves, s."""
    speeds = np.abs(np.diff(commands, axis=0)).max(axis=1) / np.diff(times)
    moving = np.concatenate([[-1], np.flatnonzero(speeds > REST), [len(speeds)]])
    # The steps between two that move are at rest.
    return float(np.max(times[moving[1:]] - times[moving[:-1] + 1]))


def markdown(rows: Sequence[FaultRow]) -> str:
    """The table of the rows."""
    lines = [
        "| fault | speed at the fault (rad/s) | gripper closing | command step | measured speed | acceleration, "
        "commanded | acceleration, measured | outside (rad) | at rest after (s) | allowed (s) | "
        "longest standstill (s) | state: detail |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        allowed = f"{row.rest_allowed:.1f}" if row.motion == "rests" else row.motion
        rest = "moves" if math.isnan(row.rest) else f"{row.rest:.2f}"
        detail = row.detail.replace("|", "/").replace("`", "'")[:140]
        quoted = f"`{row.state}: {detail}`"
        lines.append(
            f"| {row.fault}{'' if row.within else ' **BEYOND**'} | {row.speed:.2f} | "
            f"{'yes' if row.gripper_closing else 'no'} | {row.step:.2f} | {row.measured_speed:.2f} | "
            f"{row.acceleration:.2f} | {row.measured_acceleration:.2f} | {row.outside:.3f} | {rest} | "
            f"{allowed} | {row.standstill:.2f} | {quoted} |"
        )
    return "\n".join(lines)


def as_json(rows: Sequence[FaultRow]) -> list[dict[str, Any]]:
    """The rows as plain values."""
    return [{**asdict(row), "within": row.within} for row in rows]
