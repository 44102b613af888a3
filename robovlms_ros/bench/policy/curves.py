"""Curves of cost out of a benchmark's rows, each a complete picture."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from robovlms_ros.bench.policy.results import PolicyRow, Results
from robovlms_ros.evaluation.report.drawing import PALETTE, Line, chart

AXES: dict[str, tuple[str, Callable[[PolicyRow], int]]] = {
    "history": ("frames of history", lambda row: row.case.history),
    "cameras": ("cameras", lambda row: row.case.cameras),
    "chunk": ("steps of a chunk", lambda row: row.case.chunk),
    "robots": ("robots on one model", lambda row: row.sessions),
}


def group_over(axis: str, rows: Sequence[PolicyRow]) -> list[PolicyRow]:
    """The rows that differ in the axis and the path alone: of all such groups the one with the most
    values."""
    read = AXES[axis][1]
    groups: dict[object, list[PolicyRow]] = {}
    for row in rows:
        groups.setdefault(_rest(axis, row), []).append(row)
    return max(groups.values(), key=lambda group: len({read(row) for row in group}), default=[])


def curves_over(axis: str, rows: Sequence[PolicyRow]) -> list[Line]:
    """ms of a step (of all robots) over an axis, a curve per path that has two points; empty where
    none has."""
    read = AXES[axis][1]
    paths: dict[str, dict[int, float]] = {}
    for row in group_over(axis, rows):
        paths.setdefault(row.path, {})[read(row)] = row.p50 * 1e3
    drawn = {path: points for path, points in paths.items() if len(points) > 1}
    return [Line(sorted(points.items()), PALETTE[i % len(PALETTE)], path, 2.0)
            for i, (path, points) in enumerate(drawn.items())]


def _rest(axis: str, row: PolicyRow) -> object:
    """Everything but the axis."""
    others = tuple(read(row) for name, (_, read) in AXES.items() if name != axis)
    return (*others, row.case.backbone, row.case.size, row.case.head, row.case.dtype)


def draw(results: Results, folder: Path, prefix: str = "cost_over") -> list[Path]:
    """`cost_over_history.svg` and so on, of every axis along which the file has two rows; returns
    what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for axis, (label, _) in AXES.items():
        curves = curves_over(axis, results.rows)
        if curves:
            path = folder / f"{prefix}_{axis}.svg"
            title = _title(results, axis)
            text = chart(
                curves,
                label,
                "ms a step",
                460,
                280,
                zero=True,
                marks=True,
                title=title,
                paper="white",
            )
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def _title(results: Results, axis: str) -> str:
    case = group_over(axis, results.rows)[0].case
    threads = f", {results.machine['threads']} threads" if results.machine["device"] == "cpu" else ""
    return f"{case.backbone} {case.size}, {case.dtype}, {results.machine['name']}{threads}"


def run(args: argparse.Namespace) -> int:
    """Draw the file's curves; returns 1 where it has none."""
    written = draw(Results.read(args.file), args.out, args.prefix)
    for path in written:
        print(path)
    return 0 if written else 1
