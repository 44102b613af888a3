"""Checks of the tool along a curve: its speed and its workspace."""

from dataclasses import dataclass

import numpy as np

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.trajectory import Spline, Violation
from robovlms_ros.core.types import NANOSECONDS, Array, RobotState

WORKSPACE_TOLERANCE = 1e-3  # m
EEF_SPEED_TOLERANCE = 0.05
SAMPLE_NS = 25_000_000  # between samples of the tool's path


@dataclass(frozen=True)
class ToolPath:
    """Tool positions along a curve: (N, 3), m, and the seconds between them."""

    places: Array
    seconds: float


class ToolChecks:
    """The tool's limits of one robot. Without kinematics both go unchecked."""

    def __init__(self, robot: RobotSpec, kinematics: Kinematics | None) -> None:
        self._limit = robot.limits.eef_speed
        self._box = robot.limits.workspace
        self._kinematics = kinematics

    def path(self, curve: Spline) -> ToolPath | None:
        """The tool's path along a curve; None without kinematics."""
        if self._kinematics is None:
            return None
        length_ns = int(curve.end_ns - curve.times_ns[0])
        count = max(1, -(-length_ns // SAMPLE_NS))
        times_ns = np.linspace(curve.times_ns[0], curve.end_ns, count + 1).astype(np.int64)
        places = self._kinematics.tool_positions(curve(times_ns)[0])
        return ToolPath(places, length_ns / NANOSECONDS / count)

    def speed_ratio(self, path: ToolPath | None) -> float:
        """The tool's greatest speed as a multiple of its limit; 0 without kinematics."""
        if path is None:
            return 0.0
        steps = np.linalg.norm(np.diff(path.places, axis=0), axis=1)
        return float(steps.max() / path.seconds / self._limit)

    def too_fast(self, path: ToolPath | None) -> list[Violation]:
        """The tool's speed above its limit."""
        ratio = self.speed_ratio(path)
        if ratio <= 1 + EEF_SPEED_TOLERANCE:
            return []
        speed = ratio * self._limit
        text = f"the tool would move at {speed:.2f} m/s, its limit is {self._limit} m/s"
        return [Violation("eef_speed", text, ratio)]

    def outside(self, path: ToolPath | None, measured: RobotState | None = None) -> str | None:
        """Violations of the tool's box; from outside (measured, or the path's start) it may
        only come nearer."""
        if self._box is None or self._kinematics is None or path is None:
            return None
        places = path.places
        if measured is not None:
            begin = self._kinematics.tool_positions(measured.positions[None])
            places = np.concatenate([begin, places])
        below = np.array(self._box.lower) - places
        above = places - np.array(self._box.upper)
        out = np.maximum(below, above).max(axis=1)
        worst = int(np.argmax(out))
        if out[worst] <= max(0.0, out[0]) + WORKSPACE_TOLERANCE:
            return None
        x, y, z = places[worst]
        box = f"{self._box.lower} to {self._box.upper}"
        return f"the tool would leave the workspace: ({x:.3f}, {y:.3f}, {z:.3f}) m, box {box}"
