"""A run's report: what was trained, how the losses went, what it comes to, as one HTML page and as
JSON."""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from robovlms_ros.config.policy import PolicyConfig, config_to_mapping
from robovlms_ros.evaluation.report.drawing import PALETTE, Line, chart
from robovlms_ros.evaluation.report.pages import page
from robovlms_ros.training.engine.curves import EPOCHS, STEPS, read_rows

POINTS = 400
UNITS = {
    "translation": "m",
    "rotation": "rad",
    "joints": "rad",
    "gripper_wrong": "share",
    "arm": "head's scale",
}


def write_report(folder: Path, config: PolicyConfig, windows: int, parameters: tuple[int, int]) -> Path:
    """`report.html` and `report.json` from the run's CSV files; returns the page's path."""
    steps = read_rows(folder / STEPS)
    epochs = read_rows(folder / EPOCHS)
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
    losses = [Line(_points(steps, "loss"), PALETTE[0], "training", opacity=0.8)]
    if epochs:
        losses.append(Line(_points(epochs, "loss"), PALETTE[1], "validation", width=2.4))
    text = page(
        "training.html",
        title="Training",
        summary=summary,
        epochs=epochs,
        units=UNITS,
        losses=chart(losses, "step", "loss", width=640, height=280, zero=True),
        rates=chart(
            [Line(_points(steps, "learning_rate"), PALETTE[0])], "step", "learning rate", zero=True
        ),
        errors=_errors(epochs),
        configuration=json.dumps(summary["configuration"], indent=1),
    )
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def _errors(epochs: list[dict[str, str]]) -> list[Markup]:
    """A chart of each open-loop error; the head's own scale only where there is no other."""
    shown = [name for name in UNITS if epochs and name in epochs[0]]
    return [
        chart([Line(_points(epochs, name), PALETTE[1])], "step", f"{name} ({UNITS[name]})", zero=True)
        for name in shown
        if name != "arm" or "translation" not in shown
    ]


def _points(rows: list[dict[str, str]], name: str) -> list[tuple[float, float]]:
    """(step, value), thinned by means to at most POINTS."""
    width = max(1, len(rows) // POINTS)
    groups = [rows[i : i + width] for i in range(0, len(rows), width)]
    return [(float(g[-1]["step"]), sum(float(r[name]) for r in g) / len(g)) for g in groups]
