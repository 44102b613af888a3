"""Ranges of recorded joint targets against a robot's limits: a wrong unit, sign or calibration
shows there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robovlms_ros.checkpoints.preflight import JOINT_SLACK
from robovlms_ros.config.action import ActionConfig
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.text_table import aligned
from robovlms_ros.core.types import Array
from robovlms_ros.training.data.episodes import Flaw

HEADINGS = ("joint, rad", "from", "to", "limit from", "limit to", "")


@dataclass(frozen=True)
class JointRange:
    """Range of one joint's targets in the data, and the robot's planning limits, rad."""

    joint: str
    low: float
    high: float
    lower: float
    upper: float

    @property
    def excess(self) -> float:
        """Distance by which the data leave the limits, 0 within."""
        return max(self.lower - self.low, self.high - self.upper, 0.0)

    def row(self) -> list[str]:
        """Cells of HEADINGS."""
        numbers = (self.low, self.high, self.lower, self.upper)
        beyond = f"beyond its limits by {self.excess:.3f}" if self.excess else ""
        return [self.joint, *(f"{number:.3f}" for number in numbers), beyond]


def joint_ranges(
    action: ActionConfig, low: Array | None, high: Array | None, robot: RobotSpec | None
) -> tuple[JointRange, ...]:
    """Ranges by joint; none for other spaces than joint_position, without a robot, without data and
    for a robot with other joints.

    low, high: (D,) of the actions, SI.
    """
    joints = action.names[:-1]
    if (
        action.space != "joint_position"
        or robot is None
        or low is None
        or high is None
        or joints != robot.joints
    ):
        return ()
    return tuple(
        JointRange(
            joint, float(low[i]), float(high[i]), float(robot.lower()[i]), float(robot.upper()[i])
        )
        for i, joint in enumerate(joints)
    )


def range_flaws(ranges: Sequence[JointRange], robot: str) -> Iterator[Flaw]:
    """A flaw for each joint beyond its limits; beyond the slack of the preflight it forbids
    training."""
    for found in ranges:
        if found.excess:
            yield Flaw(
                "limits",
                "all episodes",
                f"'{found.joint}' goes from {found.low:.3f} to {found.high:.3f} rad, the limits of "
                f"robot '{robot}' are {found.lower:.3f} to {found.upper:.3f}",
                "check unit, sign and calibration (docs/so101.md); if the arm does go there, widen "
                "limits in the robot's YAML",
                refuse=found.excess > JOINT_SLACK,
            )


def range_lines(ranges: Sequence[JointRange]) -> list[str]:
    """The table as text."""
    return aligned(HEADINGS, [found.row() for found in ranges]).splitlines() if ranges else []
