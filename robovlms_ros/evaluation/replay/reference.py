"""What the recorded robot did: as targets at any time, from joint states or TF. What it was told is in `commands`."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.core.rotations import matrix_from_vector, vector_from_matrix
from robovlms_ros.core.types import NANOSECONDS, RobotState

Array = NDArray[np.float64]
Times = NDArray[np.int64]

GAP_NS = NANOSECONDS // 2


@dataclass(frozen=True)
class Targets:
    """Known targets at n times. joints (n, J) or poses (n, 4, 4), whichever the source speaks; valid (n,) bool."""

    joints: Array | None
    poses: Array | None
    valid: NDArray[np.bool_]

    def as_poses(self, kinematics: Kinematics | None) -> Array | None:
        """(n, 4, 4), by forward kinematics where the source speaks joints; None without a way."""
        if self.poses is not None or self.joints is None or kinematics is None:
            return self.poses
        return np.stack([kinematics.forward(row) if good else np.full((4, 4), np.nan)
                         for row, good in zip(self.joints, self.valid, strict=True)])


class Held:
    """Values by time: kept in order of time, old ones forgotten."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.values: list[Any] = []

    def add(self, time_ns: int, value: Any) -> None:
        if not self.times or time_ns > self.times[-1]:
            self.times.append(time_ns)
            self.values.append(value)
            return
        place = bisect.bisect_right(self.times, time_ns)
        self.times.insert(place, time_ns)
        self.values.insert(place, value)

    def trim(self, before_ns: int) -> None:
        """Forget what no time from `before_ns` on needs; one older value stays."""
        keep = max(bisect.bisect_right(self.times, before_ns) - 1, 0)
        if keep > 64:
            del self.times[:keep], self.values[:keep]

    def clear(self) -> None:
        self.times.clear()
        self.values.clear()

    def before(self, time_ns: int) -> tuple[int, Any] | None:
        """The newest (time, value) not after `time_ns`."""
        place = bisect.bisect_right(self.times, time_ns) - 1
        return None if place < 0 else (self.times[place], self.values[place])

    def around(self, time_ns: int) -> tuple[int, Any, int, Any] | None:
        """The (time, value) pairs before and after, None outside what is kept."""
        place = bisect.bisect_left(self.times, time_ns)
        if place < len(self.times) and self.times[place] == time_ns:
            return (time_ns, self.values[place]) * 2  # type: ignore[return-value]
        if place == 0 or place == len(self.times):
            return None
        return self.times[place - 1], self.values[place - 1], self.times[place], self.values[place]


class MotionTrack:
    """The motion that followed: measured joint positions (or tool poses from TF) and gripper openings."""

    def __init__(self) -> None:
        self._joints, self._poses, self._openings = Held(), Held(), Held()

    def add(self, state: RobotState) -> None:
        if len(state.positions):
            self._joints.add(state.stamp_ns, state.positions)
        elif state.eef_pose is not None:
            self._poses.add(state.stamp_ns, state.eef_pose)
        if state.gripper is not None:
            self._openings.add(state.stamp_ns, state.gripper)

    def clear(self) -> None:
        for held in (self._joints, self._poses, self._openings):
            held.clear()

    def trim(self, before_ns: int) -> None:
        for held in (self._joints, self._poses, self._openings):
            held.trim(before_ns)

    def at(self, times: Times, start: RobotState) -> Targets:
        """The measured arm at each time, linear between messages; unknown across gaps of half a second."""
        if self._poses.times:
            found = [_between(self._poses, int(time), pose_between) for time in times]
            poses = np.stack([np.full((4, 4), np.nan) if pose is None else pose for pose in found])
            return Targets(None, poses, np.array([pose is not None for pose in found]))
        rows = [_between(self._joints, int(time)) for time in times]
        width = len(start.positions)
        joints = np.stack([np.full(width, np.nan) if row is None else row for row in rows])
        return Targets(joints, None, np.array([row is not None for row in rows]))

    def gripper(self, times: Times) -> Array:
        """(n,) measured opening, NaN where unknown."""
        rows = [_between(self._openings, int(time)) for time in times]
        return np.array([np.nan if row is None else float(row) for row in rows])


def _between(held: Held, time_ns: int, mix: Callable[[Any, Any, float], Any] | None = None) -> Any | None:
    pair = held.around(time_ns)
    if pair is None or pair[2] - pair[0] > GAP_NS:
        return None
    width = pair[2] - pair[0]
    share = (time_ns - pair[0]) / width if width else 0.0
    return mix(pair[1], pair[3], share) if mix else pair[1] + share * (pair[3] - pair[1])


def pose_between(a: Array, b: Array, share: float) -> Array:
    """The pose, (4, 4), that is `share` of the way from a to b: straight, and turning about one axis."""
    pose = a + share * (b - a)
    pose[:3, :3] = a[:3, :3] @ matrix_from_vector(share * vector_from_matrix(a[:3, :3].T @ b[:3, :3]))
    return pose
