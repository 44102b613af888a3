"""The report as one HTML file. Opens with the answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from robovlms_ros.evaluation.report import drawing
from robovlms_ros.evaluation.report.build import left_out_lines
from robovlms_ros.evaluation.report.drawing import PALETTE, RECORDED, Line, Points, chart
from robovlms_ros.evaluation.report.pages import page

POSES = ("x [m]", "y [m]", "z [m]", "turned about x [rad]", "about y [rad]", "about z [rad]")
DASHES = {"hold still": (6.0, 3.0), "repeat the last action": (2.0, 3.0)}
MOST_DIFFERENCES = 24


def render(report: Mapping[str, Any], title: str = "Bag evaluation") -> str:
    """The HTML text of a report made by `build_report`."""
    policies = [
        _drawn(name, policy, PALETTE[i % len(PALETTE)])
        for i, (name, policy) in enumerate(report["policies"].items())
    ]
    bounds = {name: value for name, value in report["thresholds"].items() if value is not None}
    # Policies of one kind have the same trivial policies beside them.
    kinds: dict[tuple[Any, ...], Any] = {}
    for policy in policies:
        kind = (policy["space"], policy["horizon"], policy["step"], *policy["names"])
        kinds.setdefault(kind, policy)
    differences = [
        (pair, episode, interval)
        for pair in report["comparisons"]
        for episode, interval in [("all", pair["difference"]), *pair["episodes"].items()]
        if interval is not None
    ]
    horizon, direction = _horizon(policies) if policies else ("", "")
    return page(
        "evaluation.html",
        title=title,
        report=report,
        policies=policies,
        left_out=[left_out_lines(bag) for bag in report["bags"]],
        kinds=list(kinds.values()),
        mood="bad" if report["missed"] else "good" if bounds else "",
        misses=[f"{name}: {text}" for name, texts in report["missed"].items() for text in texts],
        horizon=horizon,
        direction=direction,
        differences=differences[:MOST_DIFFERENCES],
        bounds=", ".join(f"{name} = {value:g}" for name, value in bounds.items()),
    )


def _drawn(name: str, policy: Mapping[str, Any], colour: str) -> dict[str, Any]:
    """The policy's part of the report with its name, its colour and its plots."""
    spent = policy["inference_ms"]
    worst = [{**moment, "views": _views(moment, policy, colour)} for moment in policy["worst"]]
    return {
        **policy,
        "name": name,
        "colour": colour,
        "worst": worst,
        "fan_charts": _fans(policy, colour),
        "inference_chart": spent and drawing.bars(**spent["histogram"], x_label="ms per chunk"),
    }


def _horizon(policies: Sequence[Mapping[str, Any]]) -> tuple[Markup, Markup]:
    """Distance and direction over the time after the image."""
    first = policies[0]
    lines = []
    cosine = []
    for policy in policies:
        errors = policy["errors"]
        direction = _by_step(errors["cosine_by_step"], policy["step"])
        cosine.append(Line(direction, policy["colour"], policy["name"], 2.0))
        if policy["unit"] == first["unit"]:
            distance = _by_step(errors["distance_by_step"], policy["step"], 1000)
            lines.append(Line(distance, policy["colour"], policy["name"], 2.2))
    for name, errors in first["baselines"].items():
        distance = _by_step(errors["distance_by_step"], first["step"], 1000)
        lines.append(Line(distance, RECORDED, name, 1.4, DASHES.get(name, (1.0, 4.0))))
    unit = "mm" if first["unit"] == "m" else "mrad"
    return (
        chart(lines, "time after the image [s]", f"distance [{unit}]", zero=True),
        chart(cosine, "time after the image [s]", "cosine of the direction"),
    )


def _by_step(values: Sequence[float | None], step: float, scale: float = 1.0) -> Points:
    return [((k + 1) * step, None if v is None else v * scale) for k, v in enumerate(values)]


def _fans(policy: Mapping[str, Any], colour: str) -> list[Markup]:
    """A chart for each dimension: the recorded track, and every predicted chunk."""
    names = POSES if policy["unit"] == "m" else policy["names"][:-1]
    charts = []
    for d, label in enumerate([*names, "gripper opening"] if policy["track"] else []):
        recorded = [(row[0], row[d + 1]) for row in policy["track"] if len(row) > d + 1]
        lines = [Line(recorded, RECORDED, "", 2.4)]
        for fan in policy["fans"]:
            points = _by_step([row[d] for row in fan["values"]], policy["step"])
            moved = [(fan["t"] + time, value) for time, value in points]
            lines.append(Line(moved, colour, "", 1.0, opacity=0.45))
        charts.append(chart(lines, "time [s]", label, height=180))
    return charts


def _views(moment: Mapping[str, Any], policy: Mapping[str, Any], colour: str) -> Markup:
    """Both motions of a moment: in space, or joint by joint."""
    motions = [("recorded", moment["recorded"], RECORDED)]
    motions.append(("predicted", moment["predicted"], colour))
    if policy["unit"] == "m":
        return drawing.motion_views(motions)
    lines = [
        Line([(k + 1, row[j]) for k, row in enumerate(rows)], shade, name)
        for name, rows, shade in motions
        for j in range(len(policy["names"]) - 1)
    ]
    return chart(lines, "step", "joints from the start [rad]", 320, 170)
