"""Distance of an executed motion from a recorded one, whatever the time that it took."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robovlms_ros.core.text_table import aligned
from robovlms_ros.core.types import Array

PATH_BOUND = 0.1
"""rad, largest distance of a joint from the recorded path, and of the recorded path from it."""
END_BOUND = 0.05
JAW_BOUND = 0.15


@dataclass(frozen=True)
class Tracking:
    """Distances are the largest of the joints', rad.

    from_path, mean_from_path: of the executed points to the nearest of the recorded path, largest
        and mean. left_out: the largest of the recorded points to the executed path. end: between
        the last points. jaw: at the gripper's commands, of the arm to where it was commanded alike
        in the recording; infinite where the commands are others. beyond_limits: of the measured
        arm. rejected: commands that the controller refused. seconds: of the executed motion.
    """

    from_path: float
    mean_from_path: float
    left_out: float
    end: float
    jaw: float
    beyond_limits: float
    rejected: int
    seconds: float

    @property
    def within(self) -> bool:
        """True where every bound is kept."""
        return (
            self.from_path <= PATH_BOUND
            and self.left_out <= PATH_BOUND
            and self.end <= END_BOUND
            and self.jaw <= JAW_BOUND
            and self.beyond_limits <= 0
            and self.rejected == 0
        )

    def as_json(self) -> dict[str, Any]:
        """The numbers, and whether they are within their bounds."""
        return {**asdict(self), "within": self.within}

    def table(self) -> str:
        """The numbers beside their bounds, mrad."""
        rows = [
            ("executed motion to the recorded path, largest", self.from_path, PATH_BOUND),
            ("the same, mean", self.mean_from_path, None),
            ("recorded path to the executed motion, largest", self.left_out, PATH_BOUND),
            ("at the end", self.end, END_BOUND),
            ("at the gripper's commands", self.jaw, JAW_BOUND),
        ]
        lines = [
            (name, f"{1000 * value:.0f}", "" if bound is None else f"{1000 * bound:.0f}")
            for name, value, bound in rows
        ]
        return aligned(("mrad", "measured", "bound"), lines, numbers=True)


def distances(points: Array, path: Array) -> Array:
    """(N,) the distance of each of points (N, J) to the nearest of path (M, J), largest joint."""
    return np.array([np.abs(path - point).max(axis=1).min() for point in points])


def jaw_distance(executed: list[tuple[Array, bool]], recorded: list[tuple[Array, bool]]) -> float:
    """The largest distance of the arm between commands of the gripper, (J,) and whether it opens,
    in their order."""
    if [opens for _, opens in executed] != [opens for _, opens in recorded]:
        return float("inf")
    pairs = zip(executed, recorded, strict=True)
    return max((float(np.abs(here - there).max()) for (here, _), (there, _) in pairs), default=0.0)
