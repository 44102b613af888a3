"""Pose of a camera, for drawing motions into its image: given in YAML, or the bag's own
camera_info and TF."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from robovlms_ros.core.rotations import matrix_from_quaternion, pose_of
from robovlms_ros.core.schema import require
from robovlms_ros.core.types import Array
from robovlms_ros.observations.joint_states import stamp_of


class TransformTree:
    """The newest transform of every frame, static or not."""

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, Array, int]] = {}

    def add(self, message: Any) -> None:
        """Take a tf2_msgs/TFMessage."""
        for item in message.transforms:
            move = item.transform.translation
            turn = item.transform.rotation
            rotation = matrix_from_quaternion([turn.w, turn.x, turn.y, turn.z])
            pose = pose_of(rotation, np.array([move.x, move.y, move.z]))
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


NEAREST = 0.01
"""m in front of the camera; what is nearer is not drawn."""


@dataclass(frozen=True)
class Calibration:
    """A pinhole camera; lens distortion is left out.

    focal, centre: (fx, fy) and (cx, cy), pixels of the recorded image. base_T_camera: 16 numbers,
    row-major, of the optical frame (z forward, x right, y down) in the robot's base.
    """

    focal: tuple[float, ...]
    centre: tuple[float, ...]
    base_T_camera: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, count in (("focal", 2), ("centre", 2), ("base_T_camera", 16)):
            value = getattr(self, name)
            require(len(value) == count, f"calibration.{name}", list(value), f"{count} numbers")

    def project(self, points: Array) -> list[list[float]]:
        """(n, 3) m in the base frame to pixels; points behind the camera are left out."""
        camera = np.linalg.inv(np.array(self.base_T_camera).reshape(4, 4))
        seen = points @ camera[:3, :3].T + camera[:3, 3]
        return [[round(self.focal[0] * x / z + self.centre[0], 1), round(self.focal[1] * y / z + self.centre[1], 1)]
                for x, y, z in seen if z > NEAREST]


class RecordedCamera:
    """A camera's own words in the bag. `calibration` is None until camera_info, an image's frame
    and TF are there."""

    def __init__(self, tree: TransformTree, base: str) -> None:
        self._tree = tree
        self._base = base
        self._info: Any = None
        self._frame = ""
        self._width = 0

    @property
    def missing(self) -> str:
        """Missing parts of a calibration for which the bag has camera_info; empty for none."""
        if self._info is None or not self._frame or self.calibration() is not None:
            return ""
        return f"TF does not connect {self._base} with the camera's frame '{self._frame}': motions are not drawn."

    def inform(self, message: Any) -> None:
        """Take a sensor_msgs/CameraInfo."""
        if message.width and message.k[0] > 0 and message.k[4] > 0:
            self._info = message

    def see(self, frame: str, width: int) -> None:
        """An image came, so many pixels wide."""
        self._frame = frame.lstrip("/")
        self._width = width

    def calibration(self) -> Calibration | None:
        """As of now."""
        if self._info is None or not self._frame:
            return None
        found = self._tree.pose(self._base, self._frame)
        if found is None:
            return None
        k = np.asarray(self._info.k, dtype=np.float64)
        scale = self._width / self._info.width
        return Calibration((k[0] * scale, k[4] * scale), (k[2] * scale, k[5] * scale), tuple(found[1].ravel()))
