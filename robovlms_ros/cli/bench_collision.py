"""The gate's collision check: driven chunks judged by the simulator, false alarms, and time.

300 chunks are driven through the table, a post and the arm itself, with the check and without it;
the simulator's contact list is the judge. The tabletop's expert shows how often the check stops a
motion that is free. Times are of this thread's processor. Exit code 1: a contact, or more than 1 %
of the expert's chunks stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from robovlms_ros.core.schema import require

FALSE_ALARMS = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--chunks, --expert, --timed, --seed, --json."""
    parser.add_argument("--chunks", type=int, default=300, help="driven chunks (default 300)")
    parser.add_argument(
        "--expert",
        type=int,
        default=20,
        help="scenes per tabletop task for the expert (default 20)",
    )
    parser.add_argument(
        "--timed", type=int, default=300, help="chunks that are timed (default 300)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")


def run(args: argparse.Namespace) -> int:
    """Print the tables; 1 when a threshold is missed."""
    from robovlms_ros.bench import collision as bench

    for name in ("chunks", "timed"):
        require(getattr(args, name) >= 6, f"--{name}", getattr(args, name), "6 or more")
    rows: dict[str, Any] = {"time": [], "driven": [], "expert": {}}
    print("time of the gate on chunks of 30 steps and 7 joints (ms, p50 / p99)")
    for row in bench.measure_time(args.timed, args.seed):
        rows["time"].append(vars(row))
        ratio = row.whole[0] / row.without[0]
        print(
            f"  {row.scene}: without {row.without[0]:.2f} / {row.without[1]:.2f}, sweep "
            f"{row.sweep[0]:.2f} / {row.sweep[1]:.2f}, with {row.whole[0]:.2f} / "
            f"{row.whole[1]:.2f}, {ratio:.1f} times",
            flush=True,
        )
    print("driven chunks: contacts in the simulator with the check, and without")
    for result in bench.drive_all(args.chunks // len(bench.KINDS), args.seed):
        rows["driven"].append(result)
        print(f"  {result}", flush=True)
    counts: dict[str, int] = {}
    if args.expert:
        verdicts, succeeded, episodes = bench.count_expert(args.expert)
        counts = {**verdicts, "succeeded": succeeded, "episodes": episodes}
        rows["expert"] = counts
        print(f"expert: {counts}")
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    chunks = sum(counts.get(kind, 0) for kind in ("pass", "clamp", "refuse"))
    alarms = counts.get("collision", 0) > FALSE_ALARMS * chunks
    return int(alarms or any(row["contacts"] for row in rows["driven"]))
