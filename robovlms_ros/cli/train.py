"""Train a policy, on recordings or in the simulated arm.

    robovlms train --config FILE --data PATHS...             rosbags, LeRobot or CALVIN folders
    robovlms train --config FILE --data PATHS... --inspect   look at the data, train nothing
    robovlms train --config FILE --dry-run                   memory, without weights and data
    robovlms train --config demo                             plan: record in the simulated arm,
                                                             clone, let the policy drive, correct
    robovlms train --config tasks --no-ground-truth          the same without the simulator's
                                                             knowledge, as a real robot records

Everything goes into --output and is resumable: run the same command again after an interruption.
The result is OUTPUT/checkpoint, a folder that the node loads. Several GPUs: `accelerate launch -m
robovlms_ros.cli train ...`. A plan records on the processors (MUJOCO_GL=egl renders on a GPU) and
trains on one device.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from robovlms_ros.core.schema import ConfigError, require

if TYPE_CHECKING:
    from robovlms_ros.training.runs import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms train`."""
    parser.add_argument("--config", default="demo", help="a YAML file, or a name in config/train")
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="PATH", help="recordings to train on")
    parser.add_argument("--from", dest="start", metavar="CHECKPOINT",
                        help="weights to begin with: a checkpoint; `random` leaves vlm.model_name's weights out")
    parser.add_argument("--output", type=Path, default=Path("outputs/train"), help="folder of the run")
    parser.add_argument("--inspect", action="store_true", help="only look at --data: a page, and what is wrong with it")
    parser.add_argument("--no-ground-truth", action="store_true",
                        help="of a plan of the tabletop tasks: learn from what a real robot records alone")
    parser.add_argument("--device", help="of a plan: cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="of a plan: processes that record, in the place of the plan's; 0: one a processor but one")
    parser.add_argument("--dry-run", action="store_true", help="only estimate the memory of a training step")


def run(args: argparse.Namespace) -> int:
    """Run or resume; returns 0, or 1 when --inspect found data that would train badly."""
    from robovlms_ros.core.resources import find, find_checkpoint
    from robovlms_ros.training.runs import RANDOM, is_plan, read_run

    path = find(args.config, "config/train")
    if is_plan(path):
        return _run_plan(path, args)
    if args.no_ground_truth:
        raise ConfigError(
            f"--no-ground-truth is for a plan that records in the simulator: {path.name} is a policy's configuration, "
            "which is trained on recordings. They hold no ground truth: leave it out."
        )
    for option in ("device", "workers"):
        given = getattr(args, option)
        require(given is None, f"--{option}", given,
                f"left out: {path.name} is no plan. accelerate chooses the device, `training.workers` the processes")
    start = args.start if args.start in (None, RANDOM) else str(find_checkpoint(args.start))
    job = read_run(path, start)
    if args.dry_run:
        from robovlms_ros.training.engine.memory import compare, table

        print(table(compare(job.config, job.folder)))
        return 0
    if args.inspect:
        return _inspect(job, args)
    if not args.data:
        raise _missing_data()
    from robovlms_ros.training.runs import train_on

    print(f"checkpoint: {train_on(args.data, job, args.output, print)}\nreport: {args.output / 'report.html'}")
    return 0


def _run_plan(path: Path, args: argparse.Namespace) -> int:
    from robovlms_ros.sim.training.pipeline import default_device, train
    from robovlms_ros.sim.training.plans import load_plan, without_ground_truth

    if args.data or args.start or args.inspect or args.dry_run:
        raise ConfigError(
            f"{path.name} is a plan that records its own demonstrations: --data, --from, --inspect and --dry-run are "
            "for a policy's configuration. Name it with --config, as --config from_recordings (docs/training.md)."
        )
    plan = load_plan(path)
    if args.no_ground_truth:
        plan = without_ground_truth(plan)
    if args.workers is not None:
        require(args.workers >= 0, "--workers", args.workers, "0 or more")
        plan = replace(plan, workers=args.workers)
    print(f"checkpoint: {train(plan, args.output, device=default_device(args.device))}")
    return 0


def _inspect(job: "Run", args: argparse.Namespace) -> int:
    from robovlms_ros.training.data.inspection import inspect_data
    from robovlms_ros.training.runs import open_data, robot_of

    if not args.data:
        raise _missing_data()
    source, accept = open_data(args.data, job, print)
    findings = inspect_data(source, job.config, args.output, accept, robot_of(job))
    print("\n".join(findings.lines()), f"page: {findings.page}", sep="\n")
    return 0 if findings.ok else 1


def _missing_data() -> Exception:
    return ConfigError("--data is missing: name rosbags, LeRobot or CALVIN folders to train on.")
