"""Plots by matplotlib as SVG text: nothing to load, equal data give equal bytes."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

PALETTE = ("#1f6feb", "#d1642a", "#2c8a4b", "#8957c9", "#b3325b", "#5b6b7a")
RECORDED = "#6b7280"
"""Colour of recorded motions, axes and text: legible on light and dark pages."""
UNITS = 72
"""Units of the viewBox in an inch, matplotlib's own; sizes below are in these units."""
LEFT = 64
RIGHT = 12
TOP = 12
BOTTOM = 40
LEGEND_ROW = 17
STYLE = style.context(
    {
        "svg.hashsalt": "robovlms_ros",  # matplotlib names elements at random without a salt
        "svg.fonttype": "none",  # text stays text: searchable, coloured by the page
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
        "text.color": RECORDED,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": RECORDED,
        "axes.labelcolor": RECORDED,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": RECORDED,
        "grid.alpha": 0.25,
        "lines.scale_dashes": False,
        "xtick.color": RECORDED,
        "ytick.color": RECORDED,
        "xtick.bottom": False,
        "ytick.left": False,
        "legend.borderaxespad": 0.2,
        "legend.columnspacing": 1.2,
        "legend.frameon": False,
    },
    after_reset=True,  # a machine's own matplotlibrc changes no report
)

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Line:
    """One curve; None as y breaks it.

    dash: lengths drawn and left out. label: "" stays out of the legend.
    """

    points: Points
    colour: str
    label: str = ""
    width: float = 1.6
    dash: tuple[float, ...] = ()
    opacity: float = 1.0


@STYLE
def chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    width: int = 420,
    height: int = 220,
    zero: bool = False,
    marks: bool = False,
    title: str = "",
    paper: str = "none",
) -> Markup:
    """Curves on common axes with a legend above them; a sentence where there is no point.

    zero: the y axis includes 0. marks: a dot at every point, and the x axis has its ticks there.
    paper: the background's colour, where the picture is a file of its own.
    """
    xs = [x for line in lines for x, y in line.points if y is not None]
    ys = [y for line in lines for _, y in line.points if y is not None]
    if not xs:
        return Markup('<p class="quiet">nothing to plot</p>')
    labels = {line.label for line in lines if line.label}
    columns = max(1, (width - LEFT) // (40 + 6 * max(map(len, labels), default=0)))
    rows = math.ceil(len(labels) / columns) if len(labels) > 1 else 0
    head = TOP + LEGEND_ROW * (rows + bool(title))
    figure, axes = _axes(width, height + head - TOP, head)
    figure.set_facecolor(paper)
    for line in lines:
        values = [math.nan if y is None else y for _, y in line.points]
        axes.plot(
            [x for x, _ in line.points],
            values,
            color=line.colour,
            linewidth=line.width,
            alpha=line.opacity,
            linestyle=(0, line.dash) if line.dash else "-",
            marker="o" if marks else "",
            markersize=5,
            label=line.label or None,
        )
    if zero:
        axes.set_ylim(bottom=min(0.0, *ys))
    if marks:
        axes.set_xticks(sorted(set(xs)))
        axes.set_xlim(left=0.0)
    if rows:
        handles, names = axes.get_legend_handles_labels()
        named = dict(zip(names, handles, strict=True))
        corner = (LEFT / width, 1 - LEGEND_ROW * bool(title) / (height + head - TOP))
        figure.legend(
            named.values(), named.keys(), ncols=columns, loc="upper left", bbox_to_anchor=corner
        )
    axes.set(xlabel=x_label, ylabel=y_label)
    figure.suptitle(title, x=LEFT / width, y=0.98, ha="left", va="top", fontsize=11)
    return _svg(figure, f"{title}: {y_label} over {x_label}".removeprefix(": "))


@STYLE
def bars(edges: Sequence[float], counts: Sequence[float], x_label: str) -> Markup:
    """A histogram; each bar has its range and count as a tooltip."""
    figure, axes = _axes(420, 180, TOP)
    shown = axes.bar(edges[:-1], counts, width=0.9 * np.diff(edges), align="edge", color=PALETTE[0])
    for bar, low, high, count in zip(shown, edges, edges[1:], counts, strict=False):
        bar.set_gid(f"title:{low:.1f} to {high:.1f}: {count:.0f}")
    axes.set_xlabel(x_label)
    return _svg(figure, f"histogram of {x_label}")


@STYLE
def motion_views(motions: Sequence[tuple[str, Sequence[Sequence[float]], str]]) -> Markup:
    """Motions from the origin, seen from above and from the side.

    motions: (name, points (N, 3) m, colour).
    """
    figure = Figure(figsize=(320 / UNITS, 170 / UNITS))
    for i, (label, vertical) in enumerate((("from above", 1), ("from the side", 2))):
        axes = figure.add_axes((0.5 * i + 0.02, 0.12, 0.46, 0.86))
        paths = [1000 * np.array([(0.0, 0.0), *((point[0], point[vertical]) for point in points)])
                 for _, points, _ in motions]
        span = 1.1 * max(5.0, *(float(abs(path).max()) for path in paths))
        axes.set(xlim=(-span, span), ylim=(-span, span), aspect="equal")
        axes.set(xticks=[0.0], yticks=[0.0], xticklabels=[], yticklabels=[])
        axes.set_xlabel(f"{label} ±{span:.0f} mm")
        axes.grid(True, axis="both")
        axes.spines["bottom"].set_visible(False)
        for (name, _, colour), path in zip(motions, paths, strict=True):
            axes.plot(path[:, 0], path[:, 1], color=colour, linewidth=2, gid=f"title:{name}")
            axes.add_patch(Circle(path[-1], span / 30, color=colour))
    return _svg(figure, "motions from above and from the side")


def _axes(width: int, height: int, top: int) -> tuple[Figure, Axes]:
    """Axes with margins that do not depend on the labels: neighbouring charts are aligned."""
    figure = Figure(figsize=(width / UNITS, height / UNITS))
    size = ((width - LEFT - RIGHT) / width, (height - top - BOTTOM) / height)
    return figure, figure.add_axes((LEFT / width, BOTTOM / height, *size))


def _svg(figure: Figure, label: str) -> Markup:
    """The SVG element without date, metadata and names that recur in a page's other plots."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.DOTALL)
    text = re.sub(r'<g id="title:([^"]*)">', r"<g><title>\1</title>", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))
