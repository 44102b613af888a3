"""Ablations of a simulated arm's policy: one thing changed at a time, in the simulator without ROS.

Everything goes into --output and is resumable: run the same command again after an interruption.
All variants but hindsight_paired share one set of demonstrations. The work left is listed first.
The table has RoboVLMs' own findings beside ours and lists what was not run as not run; --report
prints it and runs nothing. `--config demo --steps 4000` takes the easy demo's two cubes: some 20
minutes a variant, not hours. Once the demonstrations are there, commands with other --only may run
side by side.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from robovlms_ros.core.schema import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms ablate`."""
    parser.add_argument("--config", default="tasks", help="training plan: a YAML file, or a name in config/train")
    parser.add_argument("--output", type=Path, default=Path("outputs/ablations"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="these variants (default: all, in order)")
    parser.add_argument("--steps", type=int, default=5500, help="training steps of each variant (default 5500)")
    parser.add_argument("--seeds", type=int, default=40, help="scenes per task (default 40)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that measure (default 1)")
    parser.add_argument("--device", help="where they train: cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that record, in the place of the plan's")
    parser.add_argument("--report", action="store_true", help="print the table of what is there")


def run(args: argparse.Namespace) -> int:
    """Run what is missing and print the table; returns 0."""
    from robovlms_ros.core.resources import find
    from robovlms_ros.sim.training import ablations
    from robovlms_ros.sim.training.pipeline import default_device
    from robovlms_ros.sim.training.plans import load_plan

    require(args.steps >= 1, "--steps", args.steps, "at least 1")
    require(args.seeds >= 1, "--seeds", args.seeds, "at least 1")
    plan = load_plan(find(args.config, "config/train"))
    if args.workers is not None:
        require(args.workers >= 0, "--workers", args.workers, "0 or more")
        plan = replace(plan, workers=args.workers)
    require(args.jobs >= 1, "--jobs", args.jobs, "at least 1")
    names = args.only or ablations.variants_of(plan)
    left = ablations.work(names, plan, args.output, args.steps, range(args.seeds))
    if not args.report:
        print(ablations.table(left, ablations.rates(args.output / name for name in ablations.VARIANTS)), flush=True)
        device = default_device(args.device)
        for name in names:
            ablations.run(name, plan, args.output, args.steps, range(args.seeds), device=device, jobs=args.jobs)
    table = ablations.report(args.output, plan)
    print(table)
    if args.output.is_dir():
        (args.output / "ablations.md").write_text(f"{table}\n", encoding="utf-8")
    return 0
