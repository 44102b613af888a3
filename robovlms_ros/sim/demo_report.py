"""The pictures of a closed-loop run: a GIF of what the cameras saw, and a timeline of the
instructions and the motion."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from robovlms_ros.core.types import NANOSECONDS, TrajectoryCommand

SCALE = 3
CAPTION_HEIGHT = 28
FRAME_PERIOD = 0.1


@dataclass
class EpisodeRecording:
    """Recorded data of one episode. Times are ns on the run's clock; images (H, W, 3) uint8 RGB;
    joints in rad."""

    caption: str
    joints: tuple[str, ...]
    frames: dict[str, list[tuple[int, NDArray[np.uint8]]]] = field(default_factory=dict)
    measured: list[tuple[int, NDArray[np.float64]]] = field(default_factory=list)
    commands: list[tuple[int, TrajectoryCommand]] = field(default_factory=list)
    chunk_stamps: list[int] = field(default_factory=list)


def write_gif(path: Path, recordings: Sequence[EpisodeRecording]) -> None:
    """Both cameras side by side with the instruction as caption, one frame each FRAME_PERIOD s of
    the run."""
    pictures = [picture for recording in recordings for picture in _pictures(recording)]
    if not pictures:
        raise ValueError(f"{path}: no frame was recorded, there is nothing to show.")
    # Median cut alone spends the palette on the table and leaves little for the cubes, which are a
    # few pixels each.
    palette = [picture.quantize(256, kmeans=3, dither=Image.Dither.NONE) for picture in pictures]
    palette[0].save(path, save_all=True, append_images=palette[1:], duration=round(FRAME_PERIOD * 1000), loop=0)


def _pictures(recording: EpisodeRecording) -> list[Image.Image]:
    cameras = [frames for frames in recording.frames.values() if frames]
    if not cameras:
        return []
    stamps = [np.array([stamp for stamp, _ in frames]) for frames in cameras]
    begin = max(s[0] for s in stamps)
    end = min(s[-1] for s in stamps)
    pictures = []
    for time in np.arange(begin, end + 1, int(FRAME_PERIOD * NANOSECONDS)):
        nearest = [frames[int(np.abs(s - time).argmin())][1] for frames, s in zip(cameras, stamps, strict=True)]
        pictures.append(_side_by_side(nearest, recording.caption))
    return pictures


def _side_by_side(images: Sequence[NDArray[np.uint8]], caption: str) -> Image.Image:
    height = max(image.shape[0] for image in images) * SCALE
    width = sum(image.shape[1] for image in images) * SCALE
    canvas = Image.new("RGB", (width, height + CAPTION_HEIGHT), "white")
    left = 0
    for image in images:
        size = (image.shape[1] * SCALE, image.shape[0] * SCALE)
        large = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        canvas.paste(large, (left, 0))
        left += large.width
    ImageDraw.Draw(canvas).text((8, height + 5), caption, fill="black", font=ImageFont.load_default(size=15))
    return canvas


def write_timeline(path: Path, recordings: Sequence[EpisodeRecording]) -> None:
    """Commanded and measured position of every joint over time, a line of dots at each chunk's
    observation."""
    from matplotlib.figure import Figure

    joints = recordings[0].joints
    figure = Figure(figsize=(7 * len(recordings), 1.4 * len(joints) + 1), layout="tight")
    axes = figure.subplots(len(joints), len(recordings), squeeze=False, sharex="col")
    for column, recording in enumerate(recordings):
        origin = recording.measured[0][0] if recording.measured else 0
        measured = _series(recording.measured, origin)
        commanded = _commanded(recording, origin)
        chunks = (np.array(recording.chunk_stamps, dtype=np.int64) - origin) / NANOSECONDS
        axes[0, column].set_title(recording.caption)
        for row, name in enumerate(joints):
            axis = axes[row, column]
            axis.plot(*_column(commanded, row), color="tab:orange", linewidth=1.2, label="commanded")
            axis.plot(*_column(measured, row), color="tab:blue", linewidth=1.0, label="measured")
            axis.vlines(chunks, 0.0, 0.06, transform=axis.get_xaxis_transform(), color="0.4", linewidth=0.8,
                        label="chunk (image stamp)")
            if column == 0:
                axis.set_ylabel(f"{name}\n[rad]", fontsize=7)
        axes[-1, column].set_xlabel("time since the instruction [s]")
    axes[0, 0].legend(loc="best", fontsize=7)
    figure.savefig(path, dpi=110)


def _series(samples: Sequence[tuple[int, NDArray[np.float64]]], origin: int) -> NDArray[np.float64]:
    """(N, 1 + J): seconds since `origin`, then the joints."""
    return np.array([[(stamp - origin) / NANOSECONDS, *values] for stamp, values in samples])


def _column(series: NDArray[np.float64], joint: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (series[:, 0], series[:, 1 + joint]) if len(series) else (np.empty(0), np.empty(0))


def _commanded(recording: EpisodeRecording, origin: int) -> NDArray[np.float64]:
    """Trajectories of the controller: each message from its arrival until the next one's,
    at 50 Hz."""
    samples = []
    end = recording.measured[-1][0] if recording.measured else 0
    arrivals = [*(arrival for arrival, _ in recording.commands), end]
    for index, (arrival, command) in enumerate(recording.commands):
        start = command.stamp_ns or arrival
        for time in range(arrival, arrivals[index + 1], NANOSECONDS // 50):
            elapsed = (time - start) / NANOSECONDS
            joints = [np.interp(elapsed, command.times, command.positions[:, j]) for j in range(len(command.joints))]
            samples.append((time, np.array(joints)))
    return _series(samples, origin)
