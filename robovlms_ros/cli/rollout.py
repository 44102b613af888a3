"""Closed-loop success in the simulated arm, in simulated time and without ROS.

The same executor and trajectory controllers as behind the live node; inference takes a simulated latency, drawn per
chunk. Scenes come from the evaluation range of seeds. Exit code 1 when a threshold is missed (see `robovlms demo`).
"""

import argparse
import json
from pathlib import Path

from robovlms_ros.schema import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms rollout`."""
    parser.add_argument("--checkpoint", help="the policy; without one the scripted expert drives")
    parser.add_argument("--seeds", type=int, default=10, help="scenes per instruction (default 10)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first scene (default 0)")
    parser.add_argument("--latency", type=float, nargs=2, default=(0.04, 0.12), metavar=("LOW", "HIGH"),
                        help="seconds from an image to its chunk (default 0.04 0.12)")
    parser.add_argument("--time-limit", type=float, default=10.0, help="simulated seconds per episode (default 10)")
    parser.add_argument("--blank", action="store_true", help="black images: how much is done without looking")
    parser.add_argument("--robot", default="panda", help="robot: a YAML file, or a name in config/robots")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")


def run(args: argparse.Namespace) -> int:
    """Run the episodes and print the table; returns 0 when every threshold holds."""
    from robovlms_ros.evaluation.closed_loop import report, summarise, table
    from robovlms_ros.sim.evaluate import evaluate
    from robovlms_ros.sim.rollout import EpisodeSettings
    from robovlms_ros.sim.task import EVALUATION_SEEDS

    seeds = range(args.first_seed, args.first_seed + args.seeds)
    require(args.seeds >= 1, "--seeds", args.seeds, "at least 1")
    require(seeds[0] in EVALUATION_SEEDS and seeds[-1] in EVALUATION_SEEDS, "--first-seed", args.first_seed,
            f"such that the scenes lie within {EVALUATION_SEEDS.start} to {EVALUATION_SEEDS.stop - 1}")
    settings = EpisodeSettings(latency=tuple(args.latency), limit=args.time_limit)
    rows = summarise(evaluate(args.checkpoint, seeds, args.robot, settings, args.blank))
    result = report(rows, {"latency_s": list(args.latency), "checkpoint": args.checkpoint})
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    return 0 if result["pass"] else 1
