"""What the ROS node adds to a step, for two 640x480 cameras at 30 Hz over the real middleware.

In: from an image's callback to the model's input ready. Out: from a chunk that is ready to its publication; the arm's
command, which waits for inverse kinematics, scheduling and the gate, is a column of its own. Decoding, resizing and
normalising are not counted as added: they are compared with the same calls alone in the same run. The cameras are a
process of their own. Aims: at most 3 ms added (p99, in + out), ratio at most 1.2; exit code 1 when one is missed.
"""

import argparse
import json
from pathlib import Path

ADDED_MS, RATIO = 3.0, 1.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms bench node`."""
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure each transport (default 20)")
    parser.add_argument("--encoding", default="bgr8", help="of the raw images (default bgr8, which needs conversion)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")


def run(args: argparse.Namespace) -> int:
    """Measure raw and compressed images; returns 0 when both aims are met."""
    from robovlms_ros.bench.node import measure

    rows = [measure(transport, args.encoding, args.seconds) for transport in ("raw", "compressed")]
    print("ms, two 640x480 cameras at 30 Hz; p50 / p99\n")
    print(f"{'transport':<12}{'added in':>15}{'added out':>15}{'command':>15}{'library':>15}{'ratio':>7}{'sets':>7}")
    for row in rows:
        stages = (row[name] for name in ("in_ms", "out_ms", "command_ms", "library_ms"))
        columns = "".join(f"{stage['p50']:>7.2f} /{stage['p99']:>6.2f}" for stage in stages)
        print(f"{row['transport']:<12}{columns}{row['ratio']:>7.2f}{row['sets']:>7}")
    added = max(row["in_ms"]["p99"] + row["out_ms"]["p99"] for row in rows)
    ratio = max(row["ratio"] for row in rows)
    result = {"rows": rows, "added_p99_ms": added, "ratio": ratio, "pass": added <= ADDED_MS and ratio <= RATIO}
    print(f"\nadded, p99: {added:.2f} ms (aim: at most {ADDED_MS:g}); ratio {ratio:.2f} (aim: at most {RATIO:g}): "
          f"{'met' if result['pass'] else 'MISSED'}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["pass"] else 1
