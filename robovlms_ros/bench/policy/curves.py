"""Curves of cost out of a benchmark's rows, each a picture that stands alone."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from robovlms_ros.bench.policy.results import PolicyRow, Results
from robovlms_ros.evaluation.report.svg import PALETTE, number_text, ticks

AXES: dict[str, tuple[str, Callable[[PolicyRow], int]]] = {
    "history": ("frames of history", lambda row: row.case.history),
    "cameras": ("cameras", lambda row: row.case.cameras),
    "chunk": ("steps of a chunk", lambda row: row.case.chunk),
    "robots": ("robots on one model", lambda row: row.sessions),
}
WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 46, 46


@dataclass(frozen=True)
class Curve:
    """name: in the legend. points: (x, y)."""

    name: str
    points: tuple[tuple[float, float], ...]


def group_over(axis: str, rows: Sequence[PolicyRow]) -> list[PolicyRow]:
    """The rows that differ in the axis and the path alone: of all such groups the one with the most values."""
    read = AXES[axis][1]
    groups: dict[object, list[PolicyRow]] = {}
    for row in rows:
        groups.setdefault(_rest(axis, row), []).append(row)
    return max(groups.values(), key=lambda group: len({read(row) for row in group}), default=[])


def curves_over(axis: str, rows: Sequence[PolicyRow]) -> list[Curve]:
    """ms of a step (of all robots) over an axis, a curve per path that has two points; empty where none has."""
    read = AXES[axis][1]
    paths: dict[str, dict[int, float]] = {}
    for row in group_over(axis, rows):
        paths.setdefault(row.path, {})[read(row)] = row.p50 * 1e3
    return [Curve(path, tuple(sorted(points.items()))) for path, points in paths.items() if len(points) > 1]


def _rest(axis: str, row: PolicyRow) -> object:
    """Everything but the axis."""
    others = tuple(read(row) for name, (_, read) in AXES.items() if name != axis)
    return (*others, row.case.backbone, row.case.size, row.case.head, row.case.dtype)


def draw(results: Results, folder: Path, prefix: str = "cost_over") -> list[Path]:
    """`cost_over_history.svg` and so on, of every axis along which the file has two rows; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for axis, (label, _) in AXES.items():
        curves = curves_over(axis, results.rows)
        if curves:
            path = folder / f"{prefix}_{axis}.svg"
            path.write_text(picture(curves, label, _title(results, axis)), encoding="utf-8")
            written.append(path)
    return written


def _title(results: Results, axis: str) -> str:
    case = group_over(axis, results.rows)[0].case
    threads = f", {results.machine['threads']} threads" if results.machine["device"] == "cpu" else ""
    return f"{case.backbone} {case.size}, {case.dtype}, {results.machine['name']}{threads}"


def picture(curves: Sequence[Curve], x_label: str, title: str) -> str:
    """An SVG file with axes from zero, points, ticks and a legend."""
    xs = [x for curve in curves for x, _ in curve.points]
    x1, y1 = max(xs), 1.08 * max(y for curve in curves for _, y in curve.points)

    def place(x: float, y: float) -> tuple[float, float]:
        return (LEFT + x / x1 * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / y1 * (HEIGHT - TOP - BOTTOM))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11" role="img"><title>{escape(title)}: ms a step over {escape(x_label)}</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/><text x="{LEFT}" y="16">{escape(title)}</text>'
    ]
    for y in ticks(0.0, y1, 5):
        v = place(0, y)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{v:.1f}" y2="{v:.1f}" stroke="#dddddd"/>'
                     f'<text x="{LEFT - 6}" y="{v + 4:.1f}" text-anchor="end">{number_text(y)}</text>')
    for x in sorted(set(xs)):
        u = place(x, 0)[0]
        parts.append(f'<text x="{u:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{number_text(x)}</text>')
    for i, curve in enumerate(curves):
        colour = PALETTE[i % len(PALETTE)]
        points = [place(x, y) for x, y in curve.points]
        line = " ".join(f"{u:.1f},{v:.1f}" for u, v in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>')
        parts += [f'<circle cx="{u:.1f}" cy="{v:.1f}" r="3" fill="{colour}"/>' for u, v in points]
        parts.append(f'<text x="{LEFT + 90 * i}" y="34" fill="{colour}">{escape(curve.name)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_label)}'
                 f'</text><text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
                 'text-anchor="middle">ms a step</text></svg>')
    return "".join(parts) + "\n"


def run(args: argparse.Namespace) -> int:
    """Draw the file's curves; returns 1 where it has none."""
    written = draw(Results.read(args.file), args.out, args.prefix)
    for path in written:
        print(path)
    return 0 if written else 1
