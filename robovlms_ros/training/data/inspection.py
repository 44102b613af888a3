"""`robovlms train --inspect`: a data set at a glance, as one HTML page: is this what should be learned?"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.evaluation.report.html import STYLE, table
from robovlms_ros.evaluation.report.svg import bars
from robovlms_ros.training.data.checks import Summary, check_data, in_order
from robovlms_ros.training.data.episodes import DataError, EpisodeSource, Flaw

SHEET_EPISODES, SHEET_FRAMES, PICTURE = 12, 5, 112
SAMPLED = 24
DARK = 8
PAGE = "inspection.html"


@dataclass(frozen=True)
class Findings:
    """What the inspection came to. ok: nothing forbids training. page: the HTML file."""

    flaws: tuple[Flaw, ...]
    summary: Summary
    page: Path

    @property
    def ok(self) -> bool:
        return not any(flaw.refuse for flaw in self.flaws)

    def lines(self) -> list[str]:
        """The answer in words, one line for each flaw."""
        return [facts(self.summary), *(f"{'REFUSED' if f.refuse else 'note'}: {f.where}: {f.text} ({f.remedy})"
                                       for f in self.flaws)]


def inspect_data(
    source: EpisodeSource, config: PolicyConfig, folder: Path, accept: Sequence[str] = ()
) -> Findings:
    """Check the numbers, look at images of some episodes, and write `inspection.html` into `folder`."""
    accept = (*source.accept, *accept)
    flaws, summary = check_data(source, config, accept=accept)
    chosen = np.unique(np.linspace(0, len(source) - 1, min(SAMPLED, len(source))).round().astype(int))
    sheet, more = _look(source, [int(i) for i in chosen])
    flaws = in_order((*flaws, *more), accept)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / PAGE
    page.write_text(_page(source, summary, flaws, sheet), encoding="utf-8")
    return Findings(flaws, summary, page)


def facts(summary: Summary) -> str:
    """One sentence."""
    seconds = summary.steps / summary.rate_hz if summary.rate_hz else 0.0
    return (f"{summary.episodes} episodes, {summary.steps} steps at {summary.rate_hz:.3g} Hz ({seconds / 60:.1f} min), "
            f"{len(summary.instructions)} instructions; the gripper moves in {summary.gripper_moves} episodes")


def _look(source: EpisodeSource, episodes: Sequence[int]) -> tuple[str, list[Flaw]]:
    """The contact sheet, and what is wrong with the images that were looked at."""
    parts: list[str] = []
    flaws: list[Flaw] = []
    shown = set(episodes[:: max(len(episodes) // SHEET_EPISODES, 1)][:SHEET_EPISODES])
    for i in episodes:
        steps = np.unique(np.linspace(0, source.length(i) - 1, SHEET_FRAMES).round().astype(np.int64))
        try:
            images = source.images(i, steps)
        except DataError as error:
            flaws.append(Flaw("images", source.origin(i), str(error), "repair or exclude it", refuse=True))
            continue
        for camera, frames in images.items():
            flaws += _image_flaws(frames, camera, source.origin(i))
        if i in shown:
            title = f"{source.origin(i)}: {source.arrays(i).instruction}"
            parts.append(f"<h3>{escape(title)}</h3><div class=scroll><table>"
                         + "".join(_row(camera, frames) for camera, frames in images.items()) + "</table></div>")
    return "".join(parts), flaws


def _row(camera: str, frames: NDArray[np.uint8]) -> str:
    cells = "".join(f"<td>{_picture(frame)}</td>" for frame in frames)
    return f"<tr><td>{escape(camera)}</td>{cells}</tr>"


def _image_flaws(frames: NDArray[np.uint8], camera: str, where: str) -> list[Flaw]:
    if len(frames) > 1 and (frames == frames[0]).all():
        return [Flaw("frozen", where, f"camera '{camera}' shows one and the same image throughout",
                     "check the camera, or exclude it", refuse=True)]
    if frames.max() < DARK:
        return [Flaw("dark", where, f"camera '{camera}' is black", "check the camera, or exclude it", refuse=True)]
    return []


def _picture(image: NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    size = (PICTURE, max(1, round(PICTURE * image.shape[0] / image.shape[1])))
    Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=80)
    text = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img alt="" width="{PICTURE}" src="data:image/jpeg;base64,{text}">'


def _page(source: EpisodeSource, summary: Summary, flaws: Sequence[Flaw], sheet: str) -> str:
    refused = sum(flaw.refuse for flaw in flaws)
    answer = "This would train badly: see the reasons." if refused else "Nothing here forbids training on it."
    rows = [["refused" if f.refuse else "note", f.kind, f.where, f.text, f.remedy] for f in flaws]
    notes = "".join(f"<li>{escape(note)}</li>" for note in source.notes)
    told = [[text, str(count)] for text, count in summary.instructions.most_common(50)]
    parts = [
        "<h1>Training data</h1>",
        f'<div class="answer {"bad" if refused else "good"}"><p>{answer}</p><p>{escape(facts(summary))}.</p></div>',
        "<h2>What was found</h2>",
        table(["", "kind", "where", "what", "remedy"], rows) if rows else "<p>nothing</p>",
        "<h2>Contact sheet</h2>" + (sheet or '<p class="quiet">no image could be read</p>'),
        "<h2>Actions</h2><p class=quiet>As the policy is to execute them: what one step is told, before normalisation. "
        "Millimetres, milliradians; the gripper's opening in percent.</p>" + _histograms(source, summary),
        "<h2>Episodes</h2><div class=grid2><div>" + _lengths(summary) + "</div><div>"
        + table(["instruction", "episodes"], told) + "</div></div>",
        f"<h2>How it was read</h2><ul>{notes}</ul>",
    ]
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Training data</title>'
            f"<style>{STYLE} td {{ white-space: normal; }}</style></head><body><main>{''.join(parts)}</main></body>"
            "</html>\n")


def _histograms(source: EpisodeSource, summary: Summary) -> str:
    if not len(summary.rows) or summary.low is None or summary.high is None:
        return '<p class="quiet">no finite action</p>'
    parts, rows = [], []
    for d, name in enumerate(summary.names):
        scale = 100.0 if d == len(summary.names) - 1 else 1000.0
        values = summary.rows[:, d] * scale
        counts, edges = np.histogram(values, bins=40)
        parts.append(f"<div>{bars(edges.tolist(), counts.tolist(), name)}</div>")
        assert summary.mean is not None and summary.std is not None
        q01, q99 = np.quantile(summary.rows[:, d], (0.01, 0.99))
        numbers = (summary.low[d], q01, summary.mean[d], q99, summary.high[d], summary.std[d])
        rows.append([name, *(f"{number:.4g}" for number in numbers)])
    header = ["m, rad, opening", "min", "q01", "mean", "q99", "max", "std"]
    return f'<div class="grid2">{"".join(parts)}</div>' + table(header, rows)


def _lengths(summary: Summary) -> str:
    seconds = np.array(summary.lengths) / (summary.rate_hz or 1.0)
    counts, edges = np.histogram(seconds, bins=min(20, max(len(seconds), 1)))
    return bars(edges.tolist(), counts.tolist(), "length of an episode [s]")
