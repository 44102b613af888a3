"""Projection of points into a camera's image, by its calibration and pose.

The lens models are those of sensor_msgs/CameraInfo: `plumb_bob` (Brown, "Close-range camera
calibration", 1971), `rational_polynomial` (its rational form in OpenCV) and `equidistant` (Kannala
and Brandt, "A generic camera model and calibration method for conventional, wide-angle, and
fish-eye lenses", 2006).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core import resources
from robovlms_ros.core.rotations import matrix_from_euler, pose_of
from robovlms_ros.core.schema import ConfigError, build, read_mapping, require
from robovlms_ros.core.types import Array

COEFFICIENTS = {"plumb_bob": (0, 4, 5), "rational_polynomial": (8,), "equidistant": (0, 4)}
"""Distortion model -> allowed numbers of coefficients."""
NEAREST = 0.01
"""m: points nearer to the camera, or behind it, are not drawn."""
OUTSIDE = 1.0
"""Image sizes beyond the border up to which the lens model is evaluated: further out its polynomial
folds back into the image."""


@dataclass(frozen=True)
class CameraModel:
    """A camera's calibration.

    width, height: pixels. matrix: (3, 3). model, coefficients: distortion, as in CameraInfo; no
    coefficients for rectified images.
    """

    width: int
    height: int
    matrix: Array
    model: str = "plumb_bob"
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        sized = self.width > 0 and self.height > 0
        require(sized, "image size", (self.width, self.height), "above 0 in both directions")
        matrix = self.matrix
        regular = matrix.shape == (3, 3) and np.isfinite(matrix).all()
        allowed = "3 x 3 finite numbers with focal lengths above 0: calibrate the camera"
        focal = regular and matrix[0, 0] > 0 and matrix[1, 1] > 0
        require(bool(focal), "camera matrix", matrix.tolist(), allowed)
        models = f"one of {', '.join(COEFFICIENTS)}"
        require(self.model in COEFFICIENTS, "distortion model", self.model, models)
        counts = COEFFICIENTS[self.model]
        finite = all(map(math.isfinite, self.coefficients))
        allowed = f"{' or '.join(map(str, counts))} finite numbers for {self.model}"
        fits = finite and len(self.coefficients) in (0, *counts)
        require(fits, "distortion coefficients", self.coefficients, allowed)

    def scaled(self, width: int, height: int) -> "CameraModel":
        """The model for images of another size. Raises ConfigError for another aspect ratio."""
        if (width, height) == (self.width, self.height):
            return self
        across = width / self.width
        down = height / self.height
        if abs(across - down) > 0.01 * max(across, down):
            raise ConfigError(
                f"the images have {width} x {height} pixels, the calibration {self.width} x "
                f"{self.height}: the aspect ratios must agree. Calibrate at the images' size."
            )
        # The centre of pixel 0 is at 0, its border at -0.5.
        scale = np.diag([across, down, 1.0])
        shift = np.array([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
        matrix = scale @ (self.matrix + shift) - shift
        return replace(self, width=width, height=height, matrix=matrix)

    def project(self, points: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels (N, 2) of points (N, 3), m, in the optical frame, and the points (N,) that the
        camera can see; the pixels of others mean nothing.

        Optical frame: z along the view, x to the right, y down.
        """
        points = np.asarray(points, dtype=np.float64)
        in_front = points[:, 2] > NEAREST
        depth = np.where(in_front, points[:, 2], 1.0)
        flat = points[:, :2] / depth[:, None]  # (N, 2)
        bent = self._distorted(flat)
        size = np.array([self.width, self.height])
        focal = np.array([self.matrix[0, 0], self.matrix[1, 1]])
        centre = self.matrix[:2, 2]
        skew = np.array([self.matrix[0, 1], 0.0])
        pixels = bent * focal + bent[:, 1:] * skew + centre
        # An equidistant lens sees up to the side, where the pinhole's pixels are far outside.
        judged = pixels if self.model == "equidistant" else flat * focal + centre
        near = np.all(np.abs(judged - size / 2) <= (0.5 + OUTSIDE) * size, axis=1)
        return pixels, in_front & near

    def _distorted(self, flat: Array) -> Array:
        """Normalised image coordinates (N, 2) behind the lens."""
        if not any(self.coefficients):
            return flat if self.model != "equidistant" else self._equidistant(flat, (0.0,) * 4)
        if self.model == "equidistant":
            return self._equidistant(flat, self.coefficients)
        k1, k2, p1, p2, k3, k4, k5, k6 = (*self.coefficients, *[0.0] * 8)[:8]
        x = flat[:, 0]
        y = flat[:, 1]
        square = x * x + y * y
        radial = 1 + square * (k1 + square * (k2 + square * k3))
        radial = radial / (1 + square * (k4 + square * (k5 + square * k6)))
        across = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x)
        down = y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y
        return np.stack([across, down], axis=1)

    @staticmethod
    def _equidistant(flat: Array, coefficients: tuple[float, ...]) -> Array:
        radius = np.linalg.norm(flat, axis=1)
        angle = np.arctan(radius)
        square = angle * angle
        k1, k2, k3, k4 = coefficients
        bent = angle * (1 + square * (k1 + square * (k2 + square * (k3 + square * k4))))
        scale = np.where(radius > 1e-9, bent / np.maximum(radius, 1e-9), 1.0)
        return np.asarray(flat * scale[:, None])


@dataclass(frozen=True)
class CameraPose:
    """Pose of a camera's optical frame in `frame`: position in m, rpy in rad about fixed axes.

    frame: a link of the robot's description; None is its base_frame.
    """

    position: tuple[float, ...]
    rpy: tuple[float, ...]
    frame: str | None = None

    def __post_init__(self) -> None:
        for name in ("position", "rpy"):
            values = getattr(self, name)
            finite = len(values) == 3 and all(map(math.isfinite, values))
            require(finite, f"pose.{name}", values, "3 finite numbers")

    def matrix(self) -> Array:
        """(4, 4) frame_T_camera."""
        return pose_of(matrix_from_euler(np.array(self.rpy)), np.array(self.position))


@dataclass(frozen=True)
class NumberTable:
    """A matrix in camera_calibration's YAML, by rows."""

    rows: int
    cols: int
    data: tuple[float, ...]

    def __post_init__(self) -> None:
        count = self.rows * self.cols
        require(len(self.data) == count, "data", len(self.data), f"rows x cols = {count} numbers")

    def array(self) -> Array:
        """(rows, cols)."""
        return np.array(self.data).reshape(self.rows, self.cols)


@dataclass(frozen=True)
class CalibrationFile:
    """A calibration YAML: the keys of camera_calibration, and two of this package.

    pose: of the optical frame. rectified: the images are rectified: projection_matrix counts, and
    no distortion. A file with `pose` alone fits a camera whose CameraInfo is subscribed to.
    """

    pose: CameraPose
    rectified: bool = False
    image_width: int | None = None
    image_height: int | None = None
    camera_name: str = ""
    camera_matrix: NumberTable | None = None
    distortion_model: str = "plumb_bob"
    distortion_coefficients: NumberTable | None = None
    rectification_matrix: NumberTable | None = None
    projection_matrix: NumberTable | None = None

    def model(self) -> CameraModel | None:
        """The camera; None for a file with the pose alone. Raises ConfigError for a half one."""
        table = self.projection_matrix if self.rectified else self.camera_matrix
        if self.image_width is None and self.image_height is None and table is None:
            return None
        if self.image_width is None or self.image_height is None or table is None:
            key = "projection_matrix" if self.rectified else "camera_matrix"
            raise ConfigError(f"image_width, image_height and {key}: give all three or none.")
        given = self.distortion_coefficients
        bent = () if self.rectified or given is None else given.data
        matrix = table.array()[:, :3]
        return CameraModel(
            self.image_width, self.image_height, matrix, self.distortion_model, bent
        )


def load_calibration(name_or_path: str | Path) -> CalibrationFile:
    """A calibration by the path of its YAML, or a shipped one by name (`panda_static`).

    Raises RoboVLMsError that names file, key and remedy.
    """
    path = resources.find(name_or_path, "config/cameras")
    try:
        calibration = build(CalibrationFile, read_mapping(path), str(path))
        calibration.model()
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    return calibration


def model_from_info(message: Any, rectified: bool) -> CameraModel:
    """The camera of a sensor_msgs/CameraInfo-like message. Raises ConfigError."""
    # A driver without calibration sends zeros, which CameraModel refuses.
    table = np.array(message.p).reshape(3, 4) if rectified else np.array(message.k).reshape(3, 3)
    model = message.distortion_model or "plumb_bob"
    bent = () if rectified else tuple(map(float, message.d))
    size = (int(message.width), int(message.height))
    return CameraModel(*size, table[:, :3].astype(np.float64), model, bent)
