"""The worst moments of a bag: the image, and both motions drawn into it or beside it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from robovlms_ros.evaluation.report.svg import RECORDED, Line, chart, path_view


def worst_moments(policy: Mapping[str, Any], colour: str) -> str:
    """A strip of cards, the largest error first."""
    if not policy["worst"]:
        return '<p class="quiet">none: nothing was scored</p>'
    return f'<div class="moments">{"".join(_card(moment, policy, colour) for moment in policy["worst"])}</div>'


def _card(moment: Mapping[str, Any], policy: Mapping[str, Any], colour: str) -> str:
    unit = policy["unit"]
    error = f"{1000 * moment['error']:.1f} {'mm' if unit == 'm' else 'mrad'}"
    title = f"{error} at {moment['t']:.1f} s, {moment['episode']}: “{moment['instruction']}”"
    motions = [("recorded", moment["recorded"], RECORDED), ("predicted", moment["predicted"], colour)]
    if unit == "m":
        views = (f'<div class="views">{path_view(motions, (0, 1), "from above")}'
                 f'{path_view(motions, (0, 2), "from the side")}</div>')
    else:
        lines = [Line([(k + 1, row[j]) for k, row in enumerate(rows)], shade, name if j == 0 else "")
                 for name, rows, shade in motions for j in range(len(policy["names"]) - 1)]
        views = chart(lines, "step", "joints from the start [rad]", 320, 170)
    return f'<div class="moment">{_picture(moment, colour)}<p>{escape(title)}</p>{views}{_gripper(moment)}</div>'


def _picture(moment: Mapping[str, Any], colour: str) -> str:
    if not moment.get("image"):
        return ""
    image = f'<img alt="what the camera saw" src="data:image/jpeg;base64,{moment["image"]}">'
    overlay = ""
    if moment.get("pixels") and moment.get("size"):
        width, height = moment["size"]
        pixels = moment["pixels"]
        paths = [_path(pixels["recorded"], "#ffffff", width / 60), _path(pixels["predicted"], colour, width / 130)]
        overlay = f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(paths)}</svg>'
    return f'<div class="picture">{image}{overlay}</div>'


def _path(points: Sequence[Sequence[float]], colour: str, thick: float) -> str:
    """A line on a dark edge, so that it shows on anything, and a dot where it begins."""
    if not points:
        return ""
    coordinates = " ".join(f"{u},{v}" for u, v in points)
    lines = "".join(f'<polyline fill="none" stroke="{shade}" stroke-width="{size:.2f}" points="{coordinates}"/>'
                    for shade, size in (("#000000", 1.5 * thick), (colour, thick)))
    return f'{lines}<circle cx="{points[0][0]}" cy="{points[0][1]}" r="{1.3 * thick:.2f}" fill="{colour}"/>'


def _gripper(moment: Mapping[str, Any]) -> str:
    def words(openings: Sequence[float | None]) -> str:
        return "".join("·" if value is None else "o" if value > 0.5 else "x" for value in openings)

    predicted, recorded = moment["gripper"]["predicted"], moment["gripper"]["recorded"]
    return f'<p class="quiet">gripper (o open, x closed): predicted <code>{words(predicted)}</code>, recorded <code>' \
           f"{words(recorded)}</code></p>"
