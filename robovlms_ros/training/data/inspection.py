"""`robovlms train --inspect`: a data set at a glance, as one HTML page: is this what should be
learned?"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.evaluation.report.drawing import bars
from robovlms_ros.evaluation.report.pages import page
from robovlms_ros.training.data.checks import Summary, check_data, in_order
from robovlms_ros.training.data.episodes import DataError, EpisodeSource, Flaw
from robovlms_ros.training.data.joint_ranges import HEADINGS, range_lines

SHEET_EPISODES = 12
SHEET_FRAMES = 5
PICTURE = 112
SAMPLED = 24
DARK = 8
PAGE = "inspection.html"
MOST_INSTRUCTIONS = 50

Sheet = list[tuple[str, dict[str, list[str]]]]
"""(title, camera -> base64 JPEGs) of each episode that is shown."""


@dataclass(frozen=True)
class Findings:
    """Result of the inspection. ok: nothing forbids training. page: the HTML file."""

    flaws: tuple[Flaw, ...]
    summary: Summary
    page: Path

    @property
    def ok(self) -> bool:
        return not any(flaw.refuse for flaw in self.flaws)

    def lines(self) -> list[str]:
        """The answer in words, one line for each flaw."""
        return [
            facts(self.summary),
            *range_lines(self.summary.ranges),
            *(
                f"{'REFUSED' if f.refuse else 'note'}: {f.where}: {f.text} ({f.remedy})"
                for f in self.flaws
            ),
        ]


def inspect_data(
    source: EpisodeSource, config: PolicyConfig, folder: Path, accept: Sequence[str] = (),
    robot: RobotSpec | None = None,
) -> Findings:
    """Check the numbers, look at images of some episodes, and write `inspection.html` into
    `folder`. robot: see `check_data`."""
    accept = (*source.accept, *accept)
    flaws, summary = check_data(source, config, accept=accept, robot=robot)
    chosen = np.unique(
        np.linspace(0, len(source) - 1, min(SAMPLED, len(source))).round().astype(int)
    )
    sheet, more = _look(source, [int(i) for i in chosen])
    flaws = in_order((*flaws, *more), accept)
    folder.mkdir(parents=True, exist_ok=True)
    histograms, ranges = _histograms(summary)
    text = page(
        "inspection.html",
        title="Training data",
        refused=any(flaw.refuse for flaw in flaws),
        facts=facts(summary),
        flaws=[
            ["refused" if f.refuse else "note", f.kind, f.where, f.text, f.remedy] for f in flaws
        ],
        sheet=sheet,
        picture_width=PICTURE,
        histograms=histograms,
        ranges=ranges,
        joint_headings=HEADINGS,
        joint_ranges=[found.row() for found in summary.ranges],
        lengths=_lengths(summary),
        instructions=summary.instructions.most_common(MOST_INSTRUCTIONS),
        notes=source.notes,
    )
    path = folder / PAGE
    path.write_text(text, encoding="utf-8")
    return Findings(flaws, summary, path)


def facts(summary: Summary) -> str:
    """One sentence."""
    seconds = summary.steps / summary.rate_hz if summary.rate_hz else 0.0
    return (f"{summary.episodes} episodes, {summary.steps} steps at {summary.rate_hz:.3g} Hz ({seconds / 60:.1f} min), "
            f"{len(summary.instructions)} instructions; the gripper moves in {summary.gripper_moves} episodes")


def _look(source: EpisodeSource, episodes: Sequence[int]) -> tuple[Sheet, list[Flaw]]:
    """The contact sheet, and the flaws of the images that were looked at."""
    sheet: Sheet = []
    flaws: list[Flaw] = []
    shown = set(episodes[:: max(len(episodes) // SHEET_EPISODES, 1)][:SHEET_EPISODES])
    for i in episodes:
        steps = np.unique(
            np.linspace(0, source.length(i) - 1, SHEET_FRAMES).round().astype(np.int64)
        )
        try:
            images = source.images(i, steps)
        except DataError as error:
            flaws.append(Flaw("images", source.origin(i), str(error), "repair or exclude it", refuse=True))
            continue
        for camera, frames in images.items():
            flaws += _image_flaws(frames, camera, source.origin(i))
        if i in shown:
            pictures = {
                camera: [_jpeg(frame) for frame in frames] for camera, frames in images.items()
            }
            sheet.append((f"{source.origin(i)}: {source.arrays(i).instruction}", pictures))
    return sheet, flaws


def _image_flaws(frames: NDArray[np.uint8], camera: str, where: str) -> list[Flaw]:
    if len(frames) > 1 and (frames == frames[0]).all():
        return [Flaw("frozen", where, f"camera '{camera}' shows one and the same image throughout",
                     "check the camera, or exclude it", refuse=True)]
    if frames.max() < DARK:
        return [Flaw("dark", where, f"camera '{camera}' is black", "check the camera, or exclude it", refuse=True)]
    return []


def _jpeg(image: NDArray[np.uint8]) -> str:
    """A small JPEG of the image, base64."""
    stream = io.BytesIO()
    size = (PICTURE, max(1, round(PICTURE * image.shape[0] / image.shape[1])))
    Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _histograms(summary: Summary) -> tuple[list[Markup], list[list[str]]]:
    """A plot and a row of numbers per dimension of the actions; none without a finite action."""
    if not len(summary.rows) or summary.low is None or summary.high is None:
        return [], []
    assert summary.mean is not None and summary.std is not None
    plots = []
    rows = []
    for d, name in enumerate(summary.names):
        scale = 100.0 if d == len(summary.names) - 1 else 1000.0
        counts, edges = np.histogram(summary.rows[:, d] * scale, bins=40)
        plots.append(bars(edges.tolist(), counts.tolist(), name))
        q01, q99 = np.quantile(summary.rows[:, d], (0.01, 0.99))
        numbers = (summary.low[d], q01, summary.mean[d], q99, summary.high[d], summary.std[d])
        rows.append([name, *(f"{number:.4g}" for number in numbers)])
    return plots, rows


def _lengths(summary: Summary) -> Markup:
    seconds = np.array(summary.lengths) / (summary.rate_hz or 1.0)
    counts, edges = np.histogram(seconds, bins=min(20, max(len(seconds), 1)))
    return bars(edges.tolist(), counts.tolist(), "length of an episode [s]")
