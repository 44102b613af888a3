"""Closed-loop success in the simulated arm, in simulated time and without ROS.

The same executor and trajectory controllers as behind the live node; inference takes a simulated latency, drawn per
chunk. Scenes come from the evaluation range of seeds. Exit code 1 when a threshold is missed (see `robovlms demo`).

--task runs the tabletop tasks (lift, stack, put, push, or all): the sentence is drawn by the seed, a third of them are
sentences that training never used. --condition changes light, camera, distractors, latency or drops frames; `all` runs
every condition, which is the robustness table. Without --task: the easy demo's two cubes.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robovlms_ros.schema import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms rollout`."""
    parser.add_argument("--checkpoint", help="the policy; without one the scripted expert drives")
    parser.add_argument("--task", help="a tabletop task, or all of them; without it the two cubes of the easy demo")
    parser.add_argument("--condition", default="as trained", help="of the tabletop tasks: a condition's name, or all")
    parser.add_argument("--seeds", type=int, default=10, help="scenes per instruction, or per task (default 10)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first scene (default 0)")
    parser.add_argument("--latency", type=float, nargs=2, metavar=("LOW", "HIGH"),
                        help="seconds from an image to its chunk (default 0.04 0.12, or the condition's)")
    parser.add_argument("--time-limit", type=float, help="simulated seconds per episode (default 10; with --task 14)")
    parser.add_argument("--blank", action="store_true", help="black images: how much is done without looking")
    parser.add_argument("--robot", default="panda", help="robot: a YAML file, or a name in config/robots")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")


def run(args: argparse.Namespace) -> int:
    """Run the episodes and print the table; returns 0 when every threshold holds."""
    from robovlms_ros.sim.task import EVALUATION_SEEDS

    seeds = range(args.first_seed, args.first_seed + args.seeds)
    require(args.seeds >= 1, "--seeds", args.seeds, "at least 1")
    require(seeds[0] in EVALUATION_SEEDS and seeds[-1] in EVALUATION_SEEDS, "--first-seed", args.first_seed,
            f"such that the scenes lie within {EVALUATION_SEEDS.start} to {EVALUATION_SEEDS.stop - 1}")
    result = _tabletop(args, seeds) if args.task else _cubes(args, seeds)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["pass"] else 1


def _cubes(args: argparse.Namespace, seeds: range) -> dict[str, Any]:
    from robovlms_ros.evaluation.closed_loop import report, summarise, table
    from robovlms_ros.sim.evaluate import evaluate
    from robovlms_ros.sim.rollout import EpisodeSettings

    latency = tuple(args.latency or (0.04, 0.12))
    settings = EpisodeSettings(latency=latency, limit=args.time_limit or 10.0)
    rows = summarise(evaluate(args.checkpoint, seeds, args.robot, settings, args.blank))
    print(table(rows))
    return report(rows, {"latency_s": list(latency), "checkpoint": args.checkpoint})


def _tabletop(args: argparse.Namespace, seeds: range) -> dict[str, Any]:
    """Every condition asked for, each with its table; the report holds the first one's rows and all of them."""
    from dataclasses import replace

    from robovlms_ros.evaluation.closed_loop import report, table
    from robovlms_ros.sim.tasks import evaluate as tasks
    from robovlms_ros.sim.tasks.base import find_task
    from robovlms_ros.sim.tasks.language import TASKS

    names = TASKS if args.task == "all" else (find_task(args.task).name,)
    conditions = list(tasks.CONDITIONS) if args.condition == "all" else [args.condition]
    aims = {name: tasks.EXPERT_AIM for name in TASKS} if args.checkpoint is None else tasks.AIMS
    agent = None if args.checkpoint is None else tasks.load_agent(args.checkpoint)
    limit, reports = args.time_limit or tasks.TIME_LIMIT, []
    for name in conditions:
        condition = tasks.find_condition(name)
        if args.latency:
            condition = replace(condition, latency=tuple(args.latency))
        episodes = [episode for task in names
                    for episode in tasks.evaluate_task(task, agent, seeds, condition, args.robot, limit, args.blank)]
        rows, spoken = tasks.rows(episodes, aims), tasks.paraphrases(episodes)
        print(f"{name}\n{table(rows)}\n")
        for line in spoken:
            low, high = line["ci95"]
            print(f"  {line['task']}, {line['sentences']} sentences: {line['success']}/{line['n']} "
                  f"({low:.0%} to {high:.0%})")
        reports.append(report(rows, {
            "condition": name, "latency_s": list(condition.latency), "checkpoint": args.checkpoint,
            "paraphrases": spoken, "episodes": [asdict(e) for e in episodes],
        }))
    return {**reports[0], "conditions": reports} if len(reports) > 1 else reports[0]
