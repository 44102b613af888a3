"""How smoothly each way of sending chunks moves an arm under inference latency, on a model of the stock controller.

A second table compares builds of the controller: a column a build, the naive senders beside the
default strategy.

The exit code is 1 when the default strategy misses a threshold (150 ms, chunk of 30 at 30 Hz,
default controller; with jitter on Jazzy's controller, the newest, and one that is switched between
the two).
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robovlms_ros.bench.streaming import StreamCondition, StreamRow

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
    parser.add_argument("--reference-only", action="store_true", help="only the first condition")
    parser.add_argument(
        "--controllers-only", action="store_true", help="only the table of controllers"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table; 1 when a threshold is missed."""
    from robovlms_ros.bench.streaming import as_json, missed

    print(f"Commands in mrad per 2 ms tick, RMS in mrad, rad/s^2, rad/s^3; {args.seeds} seeds a cell.")
    rows = []
    if not args.controllers_only:
        rows += _strategies(args.seeds, args.reference_only)
    if not args.reference_only:
        rows += _controllers(args.seeds)
    failures = missed(rows)
    print("\n* the default.", "Every threshold is kept." if not failures else "Missed: " + "; ".join(failures))
    if args.json is not None:
        content = {"rows": [as_json(row) for row in rows], "pass": not failures}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if failures else 0


def _strategies(seeds: int, reference_only: bool) -> list["StreamRow"]:
    """Print the table of strategies and conditions, and return its rows."""
    from robovlms_ros.bench.stream_senders import SENDERS
    from robovlms_ros.bench.streaming import REFERENCE, conditions, measure

    rows = []
    for condition in [REFERENCE] if reference_only else conditions():
        print(f"\n{_title(condition)}\n{HEADER}")
        for strategy in SENDERS:
            row = measure(strategy, condition, seeds)
            rows.append(row)
            steps = f"{row.worst_step_mean:9.2f} {row.worst_step[0]:9.2f} {row.worst_step[1]:9.2f}"
            rest = f"{row.rms:9.2f} {row.max_acc:9.1f} {row.max_jerk:9.0f} {row.starved:9.1%}"
            print(f"{strategy + (' *' if row.default else ''):20} {steps} {rest}", flush=True)
    return rows


def _controllers(seeds: int) -> list["StreamRow"]:
    """Print the table of senders and controllers, and return its rows."""
    from robovlms_ros.bench import streaming
    from robovlms_ros.bench.stream_senders import DEFAULT, NAIVE

    rows = []
    names = list(streaming.CONTROLLERS)
    jitter, transport = streaming.JITTER * 1e3, streaming.TRANSPORT * 1e3
    kinds = (
        "constant latency",
        f"+- {jitter:.0f} ms, messages up to {transport:.0f} ms on their way",
    )
    for index, kind in enumerate(kinds):
        print(f"\n150 ms, chunk of 30 at 30 Hz, {kind}: worst step, median / 95th percentile; RMS")
        print(f"{'sender':20} " + " ".join(f"{name:>22}" for name in names))
        for strategy in (*NAIVE, DEFAULT):
            cells = []
            for name in names:
                condition = streaming.controller_conditions(name)[index]
                rows.append(streaming.measure(strategy, condition, seeds))
                cells.append(f"{_cell(rows[-1]):>22}")
            mark = " *" if strategy == DEFAULT else ""
            print(f"{strategy + mark:20} {' '.join(cells)}", flush=True)
    print("\nThe default, while allow_trajectory_replacement changes about once a second:")
    for longest in (streaming.QUICK, streaming.TRANSPORT):
        rows.append(streaming.measure(DEFAULT, streaming.changing_condition(longest), seeds))
        way = f"{longest * 1e3:.0f} ms on their way"
        print(f"messages and news up to {way}: {_cell(rows[-1])}", flush=True)
    return rows


def _cell(row: "StreamRow") -> str:
    return f"{row.worst_step[0]:.2f} / {row.worst_step[1]:.2f}; {row.rms:.2f}"
