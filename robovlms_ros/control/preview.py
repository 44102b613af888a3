"""The tool's predicted path of one chunk, and its drawing into a camera's image."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from robovlms_ros.control.executor import Decision
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.trajectory import curve_of
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import ActionChunk, Array, TrajectoryCommand
from robovlms_ros.observations.camera_model import CameraModel

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "pass": (40, 200, 80),
    "clamp": (255, 190, 0),
    "refuse": (230, 40, 40),
}
"""Verdict -> RGB, 0 to 255."""
SAMPLE_NS = 25_000_000
"""Largest time between two points of a path."""
OUTLINE: Colour = (0, 0, 0)
CAPTION = 70  # characters
SMALLEST_CAPTIONED = 100  # pixels


@dataclass(frozen=True)
class ToolPreview:
    """The path of a chunk as it was decided on.

    points: (N, 3) m, in base_frame, along the commanded motion; of a refused chunk its plan, and
    none (0, 3) where it could not be planned.
    """

    stamp_ns: int
    verdict: Literal["pass", "clamp", "refuse"]
    reason: str
    points: Array

    @property
    def colour(self) -> Colour:
        """RGB, 0 to 255, of the verdict."""
        return COLOURS[self.verdict]


def tool_path(command: TrajectoryCommand, kinematics: Kinematics) -> Array:
    """(N, 3) m: the tool's origin along a command, both ends included."""
    curve = curve_of(command, command.stamp_ns)
    length_ns = int(curve.end_ns - curve.times_ns[0])
    count = max(1, -(-length_ns // SAMPLE_NS))
    times_ns = np.linspace(curve.times_ns[0], curve.end_ns, count + 1).astype(np.int64)
    return kinematics.tool_positions(curve(times_ns)[0])


def preview_of(chunk: ActionChunk, decision: Decision, kinematics: Kinematics) -> ToolPreview:
    """The preview of a chunk and the decision on it."""
    if decision.command is not None:
        points = tool_path(decision.command, kinematics)
    elif decision.plan is not None:
        points = kinematics.tool_positions(decision.plan.positions)
    else:
        points = np.empty((0, 3))
    return ToolPreview(chunk.stamp_ns, decision.verdict.kind, decision.verdict.reason, points)


def draw_preview(
    image: NDArray[np.uint8], preview: ToolPreview, camera: CameraModel, base_t_camera: Array
) -> NDArray[np.uint8]:
    """A copy of an image (H, W, 3) uint8 RGB with the path drawn in, its end as a circle, and the
    verdict.

    base_t_camera: (4, 4) pose of the optical frame. Raises ConfigError where the image does not
    have the camera's aspect ratio.
    """
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    unit = max(1, round(min(height, width) / 160))
    if len(preview.points):
        local = (preview.points - base_t_camera[:3, 3]) @ base_t_camera[:3, :3]  # (N, 3)
        pixels, seen = camera.scaled(width, height).project(local)
        segments = [
            [*map(float, pixels[i]), *map(float, pixels[i + 1])]
            for i in range(len(pixels) - 1)
            if seen[i] and seen[i + 1]
        ]
        for colour, thickness in ((OUTLINE, 3 * unit), (preview.colour, max(1, 3 * unit - 2))):
            for segment in segments:
                draw.line(segment, fill=colour, width=thickness)
        if seen[-1]:
            x, y = map(float, pixels[-1])
            reach = 3 * unit
            box = [x - reach, y - reach, x + reach, y + reach]
            draw.ellipse(box, fill=preview.colour, outline=OUTLINE)
    if min(height, width) < SMALLEST_CAPTIONED:
        return np.asarray(picture)
    text = printable(f"{preview.verdict}: {preview.reason}", CAPTION)
    text = text if preview.reason else preview.verdict
    font = ImageFont.load_default(size=max(9, 8 * unit))
    outline = max(1, unit // 2)
    draw.text(
        (2 * unit, unit), text, fill=preview.colour, font=font, stroke_width=outline,
        stroke_fill=OUTLINE,
    )
    return np.asarray(picture)
