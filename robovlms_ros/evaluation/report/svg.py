"""Plots as SVG text: no library, no script, readable offline."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

PALETTE = ("#1f6feb", "#d1642a", "#2c8a4b", "#8957c9", "#b3325b", "#5b6b7a")
RECORDED = "#6b7280"

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve; None as y breaks it. dash: an SVG dash pattern. label: "" stays out of the legend."""

    points: Sequence[tuple[float, float | None]]
    colour: str
    label: str = ""
    width: float = 1.6
    dash: str = ""
    opacity: float = 1.0


def chart(lines: Sequence[Line], x_label: str, y_label: str, width: int = 420, height: int = 220,
          zero: bool = False) -> str:
    """Curves on common axes with ticks and a legend. zero: the y axis includes 0."""
    xs = [x for line in lines for x, y in line.points if y is not None]
    ys = [y for line in lines for _, y in line.points if y is not None]
    if not xs:
        return '<p class="quiet">nothing to plot</p>'
    left, right, top, bottom = 58, 12, 12, 40
    x0, x1 = min(xs), max(xs)
    y0, y1 = (min(0.0, min(ys)), max(ys)) if zero else (min(ys), max(ys))
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + (abs(y0) or 1) * 0.1)
    pad = 0.05 * (y1 - y0)
    y0, y1 = (y0 if zero and y0 == 0 else y0 - pad), y1 + pad

    def place(x: float, y: float) -> tuple[float, float]:
        return (left + (x - x0) / (x1 - x0) * (width - left - right),
                height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom))

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}">']
    for y in ticks(y0, y1, 4):
        _, v = place(x0, y)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{v:.1f}" y2="{v:.1f}"/>'
                     f'<text x="{left - 6}" y="{v + 3.5:.1f}" text-anchor="end">{number_text(y)}</text>')
    for x in ticks(x0, x1, 5):
        u, _ = place(x, y0)
        parts.append(f'<text x="{u:.1f}" y="{height - bottom + 15}" text-anchor="middle">{number_text(x)}</text>')
    for line in lines:
        for piece in _pieces(line.points):
            coordinates = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in piece)
            dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
            parts.append(f'<polyline fill="none" stroke="{line.colour}" stroke-width="{line.width}" '
                         f'opacity="{line.opacity}"{dash} points="{coordinates}"/>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>'
                 f'<text transform="translate(12 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">'
                 f"{escape(y_label)}</text></svg>")
    return "".join(parts) + legend(lines)


def legend(lines: Sequence[Line]) -> str:
    """The labelled curves' colours and names."""
    seen = {line.label: line for line in lines if line.label}
    items = "".join(
        f'<span><svg viewBox="0 0 22 8" class="key"><line x1="1" x2="21" y1="4" y2="4" stroke="{line.colour}" '
        f'stroke-width="3"{f""" stroke-dasharray="{line.dash}" """ if line.dash else ""}/></svg>{escape(label)}</span>'
        for label, line in seen.items())
    return f'<div class="legend">{items}</div>' if len(seen) > 1 else ""


def _pieces(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((x, y))
    return [piece for piece in pieces if len(piece) > 1]


def bars(edges: Sequence[float], counts: Sequence[float], x_label: str, width: int = 420, height: int = 180) -> str:
    """A histogram."""
    left, bottom, top = 42, 38, 10
    highest = max(counts, default=0) or 1
    step = (width - left - 10) / max(len(counts), 1)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="histogram of {escape(x_label)}">']
    for i, count in enumerate(counts):
        tall = (height - bottom - top) * count / highest
        parts.append(f'<rect x="{left + i * step:.1f}" y="{height - bottom - tall:.1f}" width="{step - 1:.1f}" '
                     f'height="{tall:.1f}" fill="{PALETTE[0]}"><title>{edges[i]:.1f} to {edges[i + 1]:.1f}: {count:.0f}'
                     "</title></rect>")
    for i in range(0, len(edges), max(1, len(edges) // 5)):
        parts.append(f'<text x="{left + i * step:.1f}" y="{height - bottom + 15}" text-anchor="middle">'
                     f"{number_text(edges[i])}</text>")
    parts.append(f'<text x="{left - 6}" y="{top + 8}" text-anchor="end">{highest:.0f}</text>'
                 f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text></svg>')
    return "".join(parts)


def path_view(motions: Sequence[tuple[str, Sequence[Sequence[float]], str]], axes: tuple[int, int], label: str) -> str:
    """Motions from the origin seen along one axis, mm, both axes to one scale. motions: (name, points in m, colour)."""
    size, margin = 150, 18
    shown = [(name, [(0.0, 0.0), *[(1000 * p[axes[0]], 1000 * p[axes[1]]) for p in points]], colour)
             for name, points, colour in motions]
    span = max([abs(v) for _, points, _ in shown for point in points for v in point] + [5.0]) * 1.1
    scale = (size / 2 - margin) / span
    middle = size / 2
    parts = [f'<svg viewBox="0 0 {size} {size}" class="small" role="img" aria-label="{escape(label)}">'
             f'<line class="grid" x1="{margin}" x2="{size - margin}" y1="{middle}" y2="{middle}"/>'
             f'<line class="grid" y1="{margin}" y2="{size - margin}" x1="{middle}" x2="{middle}"/>']
    for name, points, colour in shown:
        places = [(middle + x * scale, middle - y * scale) for x, y in points]
        coordinates = " ".join(f"{u:.1f},{v:.1f}" for u, v in places)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{coordinates}">'
                     f"<title>{escape(name)}</title></polyline>"
                     f'<circle cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="2.6" fill="{colour}"/>')
    parts.append(f'<text x="{middle}" y="{size - 4}" text-anchor="middle">{escape(label)} ±{span:.0f} mm</text></svg>')
    return "".join(parts)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between low and high, about `count` of them."""
    import math

    raw = (high - low) / max(count, 1)
    base = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= raw)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def number_text(value: float) -> str:
    """A tick's text."""
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-9 else "0"
