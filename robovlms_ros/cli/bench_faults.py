"""Faults injected through the real graph at working speed: command steps, speeds, accelerations and time to rest."""

import argparse
import datetime
import json
import os
import platform
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms bench faults`."""
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="faults whose name contains one of the texts")
    parser.add_argument("--markdown", type=Path, help="write the page to this file")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")


def run(args: argparse.Namespace) -> int:
    """Measure; returns 1 when a fault is beyond its bounds."""
    from robovlms_ros.bench.faults import measure as faults
    from robovlms_ros.bench.faults import rows as fault_rows

    chosen = [f for f in faults.faults() if not args.only or any(text in f.name for text in args.only)]
    if not chosen:
        names = ", ".join(fault.name for fault in faults.faults())
        print(f"no fault contains {args.only}. There are: {names}")
        return 2
    rows = faults.run(chosen, lambda row: print(fault_rows.markdown([row]).splitlines()[-1], flush=True))
    beyond = [row.fault for row in rows if not row.within]
    if args.json:
        args.json.write_text(json.dumps(fault_rows.as_json(rows), indent=2) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(_page(fault_rows.markdown(rows), len(rows), beyond), encoding="utf-8")
    print(f"{len(rows)} faults, beyond their bounds: {', '.join(beyond) or 'none'}")
    return 1 if beyond else 0


def _page(table: str, count: int, beyond: list[str]) -> str:
    cores = os.cpu_count()
    today = datetime.date.today().isoformat()
    return f"""# Faults at working speed

`./scripts/run robovlms bench faults --markdown docs/results/faults.md`, {today}, {platform.machine()}, {cores}
shared cores. {count} faults, {len(beyond)} beyond their bounds{": " + ", ".join(beyond) if beyond else ""}.

The policy node runs as a process of its own over Fast DDS. The arm is a model of
joint_trajectory_controller with a first-order lag of 20 ms. A scripted policy moves it at 0.6 rad/s
or more when the fault is injected. Columns are parts of the planning limits of
`config/robots/panda.yaml`. Bounds: command step 1.01, measured speed 1.05, acceleration 1.2. The
recovery after each fault is judged, too. A restarted controller takes up the measured pose by
itself; that one step is the controller's and is not counted.

{table}
"""
