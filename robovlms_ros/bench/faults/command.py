"""`robovlms bench faults`: chosen faults, their measurement, and the page of results."""

import argparse
import datetime
import os
import platform

from robovlms_ros.bench.faults import measure as faults
from robovlms_ros.bench.faults import rows as fault_rows
from robovlms_ros.core.structured_text import write_json


def run(args: argparse.Namespace) -> int:
    """Measure; returns 1 when a fault is beyond its bounds."""
    known = faults.faults()
    texts = args.only or [""]
    chosen = [fault for fault in known if any(text in fault.name for text in texts)]
    if not chosen:
        names = ", ".join(fault.name for fault in known)
        print(f"no fault contains {args.only}. There are: {names}")
        return 2
    rows = faults.run(chosen, _show)
    beyond = [row.fault for row in rows if not row.within]
    write_json(args.json, fault_rows.as_json(rows))
    if args.markdown:
        page = _page(fault_rows.markdown(rows), len(rows), beyond)
        args.markdown.write_text(page, encoding="utf-8")
    print(f"{len(rows)} faults, beyond their bounds: {', '.join(beyond) or 'none'}")
    return 1 if beyond else 0


def _show(row: fault_rows.FaultRow) -> None:
    print(fault_rows.markdown([row]).splitlines()[-1], flush=True)


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
