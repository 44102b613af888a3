"""Record demonstrations in the simulated arm: the scripted expert drives, or a policy whose frames
the expert labels.

Shards go into --output; those that exist are kept. Scenes come from the training range of seeds.
--task chooses the scenes: the two cubes (the default), or a tabletop task (lift, stack, put, push,
or all). --expert-only records nothing: it runs the expert of the tabletop tasks (or of --task) over
--episodes evaluation scenes each and reports (exit code 1 below 95 %).

--recordings writes what a person with a real arm would have: one plain bag for each scene of the
two cubes, with an episode for each sentence, the commands as they were sent by an operator who
overshoots, hesitates and grasps again, and no ground truth. `robovlms train --data` takes them.
With --checkpoint the policy drives first, and the operator takes over after 4 s: corrections, as
`robovlms improve` and `training.corrections` take them.
"""

import argparse
from pathlib import Path

from robovlms_ros.core.schema import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms demo-data`."""
    parser.add_argument("--output", type=Path, help="folder of the shards")
    parser.add_argument("--episodes", type=int, default=10, help="episodes to record (default 10)")
    parser.add_argument("--first", type=int, default=0, help="skip this many scenes of the training range (default 0)")
    parser.add_argument("--task", help="cubes (the default), a tabletop task, or all of them")
    parser.add_argument("--expert-only", action="store_true", help="measure the expert of --task; record nothing")
    parser.add_argument(
        "--recordings",
        action="store_true",
        help="plain bags of an operator instead of shards: one a scene of the two cubes",
    )
    parser.add_argument(
        "--unpaired",
        action="store_true",
        help="with --recordings: each scene for one of the two sentences, not for both",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="a policy that drives in the expert's place; with --recordings, until it is relieved",
    )
    parser.add_argument("--robot", default="panda", help="robot: a YAML file, or a name in config/robots")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")


def run(args: argparse.Namespace) -> int:
    """Record the shards; returns 0."""
    from robovlms_ros.sim.tasks.base import CUBES, TRAINING_SEEDS, find_task
    from robovlms_ros.sim.training.recording import record, shard_jobs

    require(args.workers >= 1, "--workers", args.workers, "at least 1")
    require(args.episodes >= 1, "--episodes", args.episodes, "at least 1")
    if args.task not in (None, "all"):
        find_task(args.task)
    if args.expert_only:
        return _measure_expert(args.task or "all", args.episodes, args.robot)
    require(args.recordings or not args.unpaired, "--unpaired", True, "given with --recordings")
    if args.recordings:
        return _record_bags(args)
    require(args.output is not None, "--output", args.output, "a folder for the shards")
    seeds = TRAINING_SEEDS[args.first : args.first + args.episodes]
    require(len(seeds) == args.episodes, "--first", args.first, f"such that {args.episodes} training scenes are left")
    record(
        shard_jobs(args.output, seeds, 10, args.robot, args.task or CUBES, args.checkpoint),
        args.workers,
    )
    return 0


def _record_bags(args: argparse.Namespace) -> int:
    from robovlms_ros.sim.tasks.base import CUBES, TRAINING_SEEDS
    from robovlms_ros.sim.training.operator import record_recordings

    allowed = "left out with --recordings: an operator moves two cubes"
    require(args.task in (None, CUBES), "--task", args.task, allowed)
    require(args.output is not None, "--output", args.output, "a folder for the bags")
    of_scene = 1 if args.unpaired else 2
    even = "even: each scene has two, or give --unpaired"
    require(args.episodes % of_scene == 0, "--episodes", args.episodes, even)
    scenes = args.episodes // of_scene
    seeds = TRAINING_SEEDS[args.first : args.first + scenes]
    left = f"such that {scenes} training scenes are left"
    require(len(seeds) == scenes, "--first", args.first, left)
    outcomes = record_recordings(
        args.output, seeds, of_scene == 2, args.robot, args.workers, args.checkpoint
    )
    done = sum(outcome.success for outcome in outcomes)
    print(f"{args.output}: {len(outcomes)} episodes recorded, {done} of them done")
    return 0


def _measure_expert(task: str, scenes: int, robot: str) -> int:
    from robovlms_ros.sim.closed_loop import failure_table, failures, report, table
    from robovlms_ros.sim.scenes import evaluate_task
    from robovlms_ros.sim.tasks.evaluate import EXPERT_AIM, named_by_task, rows
    from robovlms_ros.sim.tasks.language import TASKS

    names = TASKS if task == "all" else (task,)
    episodes = [e for name in names for e in evaluate_task(name, None, range(scenes), robot=robot)]
    result = rows(episodes, dict.fromkeys(names, EXPERT_AIM))
    print(table(result))
    failed = failures(named_by_task(episodes))
    if failed:
        print(f"\n{failure_table(failed)}")
    return 0 if report(result, {})["pass"] else 1
