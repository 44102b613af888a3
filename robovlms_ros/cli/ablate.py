"""Ablations of the tabletop tasks' policy: one thing changed at a time, in the simulator without ROS.

Everything goes into --output and is resumable: run the same command again after an interruption. All variants share one
set of demonstrations. What is left to do is said first. The table has RoboVLMs' own findings beside ours and lists what
was not run as not run; --report prints it and runs nothing.
"""

import argparse
from pathlib import Path

from robovlms_ros.schema import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms ablate`."""
    parser.add_argument("--config", default="tasks", help="training plan: a YAML file, or a name in config/train")
    parser.add_argument("--output", type=Path, default=Path("outputs/ablations"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="these variants (default: all, in order)")
    parser.add_argument("--steps", type=int, default=5500, help="training steps of each variant (default 5500)")
    parser.add_argument("--seeds", type=int, default=40, help="scenes per task (default 40)")
    parser.add_argument("--report", action="store_true", help="print the table of what is there")


def run(args: argparse.Namespace) -> int:
    """Run what is missing and print the table; returns 0."""
    from robovlms_ros.resources import find
    from robovlms_ros.training.simulated import ablations, costs
    from robovlms_ros.training.simulated.pipeline import load_plan

    require(args.steps >= 1, "--steps", args.steps, "at least 1")
    require(args.seeds >= 1, "--seeds", args.seeds, "at least 1")
    plan = load_plan(find(args.config, "config/train"))
    require(plan.task is not None, "--config", args.config, "a plan of the tabletop tasks")
    names = args.only or list(ablations.VARIANTS)
    left = ablations.work(names, plan, args.output, args.steps, range(args.seeds))
    if not args.report:
        print(costs.table(left, costs.rates(args.output / name for name in ablations.VARIANTS)), flush=True)
        for name in names:
            ablations.run(name, plan, args.output, args.steps, range(args.seeds))
    table = ablations.report(args.output)
    print(table)
    if args.output.is_dir():
        (args.output / "ablations.md").write_text(f"{table}\n", encoding="utf-8")
    return 0
