"""The tool's pose out of TF, for bags without joint states: the newest transforms along the chain, multiplied."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.conversions.joint_states import stamp_of
from robovlms_ros.processing.rotations import matrix_from_quaternion


class TransformTree:
    """Newest transform of every frame; `pose` is base_T_tool, None until the chain is complete."""

    def __init__(self, base: str, tool: str) -> None:
        self._base, self._tool = base, tool
        self._parents: dict[str, tuple[str, NDArray[np.float64]]] = {}
        self.stamp_ns = 0

    def add(self, message: Any) -> None:
        """Take a tf2_msgs/TFMessage, static or not."""
        for item in message.transforms:
            move, turn = item.transform.translation, item.transform.rotation
            pose = np.eye(4)
            pose[:3, :3] = matrix_from_quaternion([turn.w, turn.x, turn.y, turn.z])
            pose[:3, 3] = move.x, move.y, move.z
            self._parents[item.child_frame_id.lstrip("/")] = (item.header.frame_id.lstrip("/"), pose)
            self.stamp_ns = max(self.stamp_ns, stamp_of(item))

    def pose(self) -> NDArray[np.float64] | None:
        """(4, 4) base_T_tool."""
        to_base, to_tool = self._to_root(self._base), self._to_root(self._tool)
        if to_base[-1][0] != to_tool[-1][0]:
            return None
        return np.linalg.inv(to_base[-1][1]) @ to_tool[-1][1]

    def _to_root(self, frame: str) -> list[tuple[str, NDArray[np.float64]]]:
        """(ancestor, ancestor_T_frame), from the frame itself to its root."""
        chain = [(frame, np.eye(4))]
        while frame in self._parents and len(chain) < 64:
            parent, pose = self._parents[frame]
            chain.append((parent, pose @ chain[-1][1]))
            frame = parent
        return chain
