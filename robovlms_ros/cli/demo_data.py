"""Record demonstrations in the simulated arm: the scripted expert drives, or a policy whose frames the expert labels.

Shards go into --output; those that exist are kept. Scenes come from the training range of seeds.
"""

import argparse
from pathlib import Path

from robovlms_ros.schema import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms demo-data`."""
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--episodes", type=int, default=10, help="episodes to record (default 10)")
    parser.add_argument("--first", type=int, default=0, help="skip this many scenes of the training range (default 0)")
    parser.add_argument("--checkpoint", type=Path, help="a policy that drives in the expert's place")
    parser.add_argument("--robot", default="panda", help="robot: a YAML file, or a name in config/robots")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")


def run(args: argparse.Namespace) -> int:
    """Record the shards; returns 0."""
    from robovlms_ros.sim.task import TRAINING_SEEDS
    from robovlms_ros.training.pipeline import record, shard_jobs

    require(args.workers >= 1, "--workers", args.workers, "at least 1")
    require(args.episodes >= 1, "--episodes", args.episodes, "at least 1")
    seeds = TRAINING_SEEDS[args.first : args.first + args.episodes]
    require(len(seeds) == args.episodes, "--first", args.first, f"such that {args.episodes} training scenes are left")
    record(shard_jobs(args.output, seeds, 10, args.robot, args.checkpoint), args.workers)
    return 0
