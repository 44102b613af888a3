"""Poses out of TF: the newest transforms along the chain between two frames, multiplied."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.rotations import matrix_from_quaternion
from robovlms_ros.observations.joint_states import stamp_of

Array = NDArray[np.float64]


class TransformTree:
    """The newest transform of every frame, static or not."""

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, Array, int]] = {}

    def add(self, message: Any) -> None:
        """Take a tf2_msgs/TFMessage."""
        for item in message.transforms:
            move = item.transform.translation
            turn = item.transform.rotation
            pose = np.eye(4)
            pose[:3, :3] = matrix_from_quaternion([turn.w, turn.x, turn.y, turn.z])
            pose[:3, 3] = move.x, move.y, move.z
            parent, child = (name.lstrip("/") for name in (item.header.frame_id, item.child_frame_id))
            self._parents[child] = (parent, pose, stamp_of(item))

    def pose(self, base: str, frame: str) -> tuple[int, Array] | None:
        """(newest stamp along the chain, ns; base_T_frame, (4, 4)); None while the chain is not
        complete."""
        base_root, root_base, base_ns = self._to_root(base)
        frame_root, root_frame, frame_ns = self._to_root(frame)
        if base_root != frame_root:
            return None
        return max(base_ns, frame_ns), np.linalg.inv(root_base) @ root_frame

    def _to_root(self, frame: str) -> tuple[str, Array, int]:
        """(root, root_T_frame, newest stamp on the way)."""
        total = np.eye(4)
        newest = 0
        hops = 0
        while frame in self._parents and hops < len(self._parents):
            frame, pose, stamp = self._parents[frame]
            total = pose @ total
            newest = max(newest, stamp)
            hops = hops + 1
        return frame, total, newest
