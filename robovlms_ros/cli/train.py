"""Train a policy: record demonstrations in the simulated arm, clone them, let the policy drive and correct it.

Everything goes into --output and is resumable: run the same command again after an interruption. The result is
OUTPUT/checkpoint, a folder that the node loads.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms train`."""
    parser.add_argument("--config", default="demo", help="training plan: a YAML file, or a name in config/train")
    parser.add_argument("--output", type=Path, default=Path("outputs/train"), help="folder of the run")


def run(args: argparse.Namespace) -> int:
    """Run or resume the plan; returns 0."""
    from robovlms_ros.resources import find
    from robovlms_ros.training.pipeline import load_plan, train

    plan = load_plan(find(args.config, "config/train"))
    print(f"checkpoint: {train(plan, args.output)}")
    return 0
