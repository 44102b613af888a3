"""How smoothly each way of sending chunks moves an arm under inference latency, on a model of the stock controller.

The exit code is 1 when the default strategy misses a threshold (150 ms, chunk of 30 at 30 Hz, default controller).
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robovlms_ros.bench.streaming import StreamCondition

COLUMNS = ("step mean", "median", "p95", "RMS", "max acc", "max jerk", "starved")
HEADER = f"{'strategy':20} " + " ".join(f"{name:>9}" for name in COLUMNS)


def _title(condition: "StreamCondition") -> str:
    jitter = f" +- {condition.jitter * 1e3:.0f}" if condition.jitter else ""
    desired = ", interpolate_from_desired_state" if condition.interpolate_from_desired_state else ""
    return f"{condition.latency * 1e3:.0f}{jitter} ms, chunk of {condition.horizon} at {condition.rate} Hz{desired}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--seeds, --json, --reference-only."""
    parser.add_argument("--seeds", type=int, default=50, help="seeds per cell (default 50)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--reference-only", action="store_true", help="only the condition that has thresholds")


def run(args: argparse.Namespace) -> int:
    """Print the table; 1 when a threshold is missed."""
    from robovlms_ros.bench.stream_senders import SENDERS
    from robovlms_ros.bench.streaming import REFERENCE, as_json, conditions, measure, missed

    print(f"Commands in mrad per 2 ms tick, RMS in mrad, rad/s^2, rad/s^3; {args.seeds} seeds a cell.")
    rows = []
    for condition in [REFERENCE] if args.reference_only else conditions():
        print(f"\n{_title(condition)}\n{HEADER}")
        for strategy in SENDERS:
            row = measure(strategy, condition, args.seeds)
            rows.append(row)
            steps = f"{row.worst_step_mean:9.2f} {row.worst_step[0]:9.2f} {row.worst_step[1]:9.2f}"
            rest = f"{row.rms:9.2f} {row.max_acc:9.1f} {row.max_jerk:9.0f} {row.starved:9.1%}"
            print(f"{strategy + (' *' if row.default else ''):20} {steps} {rest}", flush=True)
    failures = missed(rows)
    print("\n* the default.", "Every threshold is kept." if not failures else "Missed: " + "; ".join(failures))
    if args.json is not None:
        content = {"rows": [as_json(row) for row in rows], "pass": not failures}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if failures else 0
