"""A run's report: what was trained, how the losses went, what it comes to, as one HTML page and as JSON."""

import json
from html import escape
from pathlib import Path
from typing import Any

from robovlms_ros.config.policy import PolicyConfig, config_to_mapping
from robovlms_ros.evaluation.report.svg import PALETTE, Line, chart
from robovlms_ros.training.engine.curves import EPOCHS, STEPS, read_rows

POINTS = 400
UNITS = {"translation": "m", "rotation": "rad", "joints": "rad", "gripper_wrong": "share", "arm": "head's scale"}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2328}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #d0d7de;text-align:right}"
    "td:first-child,th:first-child{text-align:left}svg{width:100%;max-width:640px}.grid{stroke:#e5e7eb}"
    "svg text{font-size:11px;fill:#57606a}.key{width:22px}.legend span{margin-right:1rem}"
    "pre{background:#f6f8fa;padding:1rem;overflow:auto}"
)


def training_record(config: PolicyConfig, step: int, epoch: int, values: dict[str, float]) -> str:
    """`training.json` of a checkpoint: where in the run it was written, and its validation."""
    training = config_to_mapping(config)["training"]
    return json.dumps({"step": step, "epoch": epoch + 1, "validation": values, "training": training}, indent=1)


def write_report(folder: Path, config: PolicyConfig, windows: int, parameters: tuple[int, int]) -> Path:
    """`report.html` and `report.json` from the run's CSV files; returns the page's path."""
    steps, epochs = read_rows(folder / STEPS), read_rows(folder / EPOCHS)
    best = min(epochs, key=lambda row: float(row["loss"]), default=None)
    summary: dict[str, Any] = {
        "steps": len(steps),
        "windows": windows,
        "parameters": parameters[0],
        "trained_parameters": parameters[1],
        "first_loss": float(steps[0]["loss"]) if steps else None,
        "last_loss": float(steps[-1]["loss"]) if steps else None,
        "best": {k: float(v) for k, v in best.items()} if best else None,
        "configuration": config_to_mapping(config),
    }
    (folder / "report.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(_page(steps, epochs, summary), encoding="utf-8")
    return page


def _page(steps: list[dict[str, str]], epochs: list[dict[str, str]], summary: dict[str, Any]) -> str:
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Training</title><style>{_STYLE}</style>',
        f"<h1>Training</h1><p>{summary['steps']} steps on {summary['windows']} windows; "
        f"{summary['trained_parameters']:,} of {summary['parameters']:,} parameters trained.</p>",
        "<h2>Loss</h2>", _losses(steps, epochs), "<h2>Learning rate</h2>",
        chart([Line(_points(steps, "learning_rate"), PALETTE[0])], "step", "learning rate", zero=True),
    ]
    if epochs:
        parts.append("<h2>Held-out episodes, open loop</h2>" + _table(epochs, summary["best"]))
        for name in UNITS:
            if name in epochs[0] and (name != "arm" or "translation" not in epochs[0]):
                line = Line(_points(epochs, name), PALETTE[1])
                parts.append(chart([line], "step", f"{name} ({UNITS[name]})", zero=True))
    text = escape(json.dumps(summary["configuration"], indent=1))
    return "".join([*parts, f"<h2>Configuration</h2><pre>{text}</pre></html>"])


def _losses(steps: list[dict[str, str]], epochs: list[dict[str, str]]) -> str:
    lines = [Line(_points(steps, "loss"), PALETTE[0], "training", opacity=0.8)]
    if epochs:
        lines.append(Line(_points(epochs, "loss"), PALETTE[1], "validation", width=2.4))
    return chart(lines, "step", "loss", width=640, height=280, zero=True)


def _table(epochs: list[dict[str, str]], best: dict[str, float] | None) -> str:
    """One row per epoch, the checkpoint's in bold."""
    names = list(epochs[0])
    head = "".join(f"<th>{escape(n)}{f' ({UNITS[n]})' if n in UNITS else ''}</th>" for n in names)
    rows = []
    for row in epochs:
        cells = "".join(f"<td>{float(row[n]):.4g}</td>" for n in names)
        chosen = best is not None and float(row["step"]) == best["step"]
        rows.append(f"<tr{' style=font-weight:bold' if chosen else ''}>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _points(rows: list[dict[str, str]], name: str) -> list[tuple[float, float]]:
    """(step, value), thinned by means to at most POINTS."""
    width = max(1, len(rows) // POINTS)
    groups = [rows[i : i + width] for i in range(0, len(rows), width)]
    return [(float(g[-1]["step"]), sum(float(r[name]) for r in g) / len(g)) for g in groups]
