"""A camera's view of an arm without meshes: its links as lines, projected obliquely."""

import dataclasses
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from robovlms_ros.control.description.model import load_tree
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.types import Array

SIZE = 96
REACH = 0.5  # m, the picture's width
COLORS = (
    (230, 70, 60),
    (240, 160, 40),
    (230, 220, 60),
    (90, 200, 90),
    (80, 160, 240),
    (190, 110, 230),
)
BACKGROUND = (30, 34, 40)
WIDTH = 4  # pixels
JAW = 5


class ArmPicture:
    """Draws the arm of a robot with a description file."""

    def __init__(self, robot: RobotSpec) -> None:
        assert robot.description_path is not None
        tree = load_tree(robot.description_path)
        frames = [*filter(None, map(tree.child_of, robot.joints)), robot.eef_frame]
        self._links = [
            Kinematics.for_robot(dataclasses.replace(robot, eef_frame=frame)) for frame in frames
        ]

    def draw(self, positions: Array, opening: float) -> NDArray[np.uint8]:
        """(SIZE, SIZE, 3) of joint positions (J,) rad and the gripper's opening, which the jaw's
        color and width show."""
        picture = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
        canvas = ImageDraw.Draw(picture)
        points = [np.zeros(3), *(link.forward(positions)[:3, 3] for link in self._links)]
        pixels = [_project(point) for point in points]
        for k, (begin, end) in enumerate(pairwise(pixels)):
            canvas.line([begin, end], fill=COLORS[k % len(COLORS)], width=WIDTH)
        x, y = pixels[-1]
        half = 2 + JAW * opening
        shade = round(80 + 175 * opening)
        canvas.ellipse(
            [x - half, y - half, x + half, y + half], outline=(255, shade, shade), width=2
        )
        return np.asarray(picture, dtype=np.uint8)


def _project(point: Array) -> tuple[float, float]:
    """Pixels of a point (m): seen from the front left and above."""
    x, y, z = point
    across = 0.55 * x - 0.85 * y
    up = 0.35 * x + 0.2 * y + 0.9 * z
    return (SIZE * (0.3 + across / REACH), SIZE * (0.85 - up / REACH))
