"""Closed-loop success in the simulated arm, in simulated time and without ROS.

The same executor and trajectory controllers as behind the live node; inference takes a simulated
latency, drawn per chunk. Scenes come from the evaluation range of seeds. Exit code 1 when a
threshold is missed (see `robovlms demo`).

--task runs the tabletop tasks (lift, stack, put, push, or all): the sentence is drawn by the seed,
a fifth of them are sentences that training never used. --every-goal runs each scene once for each
goal of its task that fits it, and counts the scenes in which all of it was followed. --condition
changes light, camera, distractors, latency or drops frames; `all` runs every condition, which is
the robustness table. Without --task: the easy demo's two cubes. --training-scenes takes scenes as
training draws them, of all tasks: a policy that does better in those it saw than in others lacks
scenes.

With --json NAME.json every scene is kept in NAME.episodes.jsonl as soon as it is done: a run that
was stopped goes on when the command is repeated, also with more --seeds, tasks or conditions.
--jobs changes nothing but the time.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robovlms_ros.core.schema import require
from robovlms_ros.core.structured_text import write_json

if TYPE_CHECKING:
    from robovlms_ros.sim.scenes import BenchSettings, Scene
    from robovlms_ros.sim.tasks.evaluate import TaskEpisode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms rollout`."""
    parser.add_argument("--checkpoint", help="the policy; without one the scripted expert drives")
    parser.add_argument(
        "--task", default="cubes", help="cubes (the default), a tabletop task, or all of them"
    )
    parser.add_argument("--every-goal", nargs="?", const="own", default="", choices=("own", "all"),
                        help="ask each scene for every goal that fits it: of its own task (the default), or of all")
    parser.add_argument("--condition", default="as trained", help="of the tabletop tasks: a condition's name, or all")
    parser.add_argument("--seeds", type=int, default=10, help="scenes per instruction, or per task (default 10)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first scene (default 0)")
    parser.add_argument("--training-scenes", action="store_true",
                        help="scenes of the range that training uses, to compare those it saw with those it did not")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one torch thread each (default 1)")
    parser.add_argument("--latency", type=float, nargs=2, metavar=("LOW", "HIGH"),
                        help="seconds from an image to its chunk (default 0.04 0.12, or the condition's)")
    parser.add_argument("--time-limit", type=float, help="simulated seconds per episode (default 10; with --task 14)")
    parser.add_argument("--blank", action="store_true", help="black images: how much is done without looking")
    parser.add_argument("--robot", default="panda", help="robot: a YAML file, or a name in config/robots")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, the episodes beside it")
    parser.add_argument(
        "--preview", type=Path, metavar="FILE",
        help="draw the tool's predicted path in the first scene of the two cubes, and run no other",
    )


def run(args: argparse.Namespace) -> int:
    """Run the episodes and print the tables; returns 0 when every threshold holds."""
    from robovlms_ros.sim.tasks.base import CUBES, EVALUATION_SEEDS, TRAINING_SEEDS

    allowed = TRAINING_SEEDS if args.training_scenes else EVALUATION_SEEDS
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    require(args.seeds >= 1, "--seeds", args.seeds, "at least 1")
    require(args.jobs >= 1, "--jobs", args.jobs, "at least 1")
    tabletop = args.task not in ("", CUBES)
    require(
        tabletop or not args.every_goal,
        "--every-goal",
        args.every_goal,
        "given with --task of the tabletop",
    )
    require(seeds[0] in allowed and seeds[-1] in allowed, "--first-seed", args.first_seed,
            f"such that the scenes lie within {allowed.start} to {allowed.stop - 1}")
    if args.preview is not None:
        return _draw(args, tabletop)
    alone = not args.training_scenes or (args.task == "all" and not args.every_goal)
    require(alone, "--training-scenes", True, "given with --task all and without --every-goal")
    result = _tabletop(args, seeds) if tabletop else _cubes(args, seeds)
    write_json(args.json, result)
    return 0 if result["pass"] else 1


def _draw(args: argparse.Namespace, tabletop: bool) -> int:
    from robovlms_ros.sim.preview_picture import draw_episode

    require(not tabletop, "--preview", args.preview, "given without --task")
    given = args.checkpoint
    allowed = "given with --checkpoint (demo: the shipped one)"
    require(bool(given), "--preview", args.preview, allowed)
    success = draw_episode(args.preview, given, args.first_seed)
    outcome = "success" if success else "failure"
    print(f"written: {args.preview} (scene {args.first_seed}, {outcome})")
    return 0


def _cubes(args: argparse.Namespace, seeds: range) -> dict[str, Any]:
    from robovlms_ros.sim.closed_loop import failure_table, failures, report, summarise, table
    from robovlms_ros.sim.scenes import EASY_TIME_LIMIT, Scene
    from robovlms_ros.sim.tasks.base import CUBES
    from robovlms_ros.sim.tasks.evaluate import AS_TRAINED

    settings = _settings(args, [AS_TRAINED], args.time_limit or EASY_TIME_LIMIT)
    episodes = [e.result for e in _run(args, settings, [Scene(CUBES, seed) for seed in seeds])]
    rows = summarise(episodes)
    failed = failures(episodes)
    print(table(rows))
    if failed:
        print(f"\n{failure_table(failed)}")
    return report(rows, {"latency_s": list(settings.conditions[AS_TRAINED].latency), "checkpoint": args.checkpoint,
                         "failures": failed})


def _tabletop(args: argparse.Namespace, seeds: range) -> dict[str, Any]:
    """Every requested condition, each with its tables; the report holds the first one's rows and
    all of them."""
    from robovlms_ros.sim.scenes import Scene
    from robovlms_ros.sim.tasks import evaluate as tasks
    from robovlms_ros.sim.tasks.base import find_task
    from robovlms_ros.sim.tasks.language import TASKS

    names = TASKS if args.task == "all" else (find_task(args.task).name,)
    if args.training_scenes:
        names = ("all",)  # training lets the seed draw the task
    conditions = list(tasks.CONDITIONS) if args.condition == "all" else [args.condition]
    settings = _settings(args, conditions, args.time_limit or tasks.TIME_LIMIT)
    reports = []
    for name in conditions:
        scenes = [Scene(task, seed, name) for task in names for seed in seeds]
        reports.append(_report(args, settings, name, _run(args, settings, scenes)))
    return {**reports[0], "conditions": reports} if len(reports) > 1 else reports[0]


def _report(
    args: argparse.Namespace, settings: "BenchSettings", condition: str, episodes: list["TaskEpisode"]
) -> dict[str, Any]:
    """Print one condition's tables; returns its part of the JSON report."""
    from robovlms_ros.sim.closed_loop import failure_table, failures, report, table
    from robovlms_ros.sim.tasks import evaluate as tasks
    from robovlms_ros.sim.tasks.evaluate import obedience, obedience_table
    from robovlms_ros.sim.tasks.language import TASKS

    aims = {name: tasks.EXPERT_AIM for name in TASKS} if args.checkpoint is None else tasks.AIMS
    rows = tasks.rows(episodes, aims)
    spoken = tasks.paraphrases(episodes)
    failed = failures(tasks.named_by_task(episodes))
    taken = tasks.taken_instead(episodes)
    obeyed = obedience(episodes) if args.every_goal else []
    print(f"{condition}\n{table(rows)}\n")
    for line in spoken:
        low, high = line["ci95"]
        print(f"  {line['task']}, {line['sentences']} sentences: {line['success']}/{line['n']} "
              f"({low:.0%} to {high:.0%})")
    if obeyed:
        print(f"\n{obedience_table(obeyed)}")
    if failed:
        print(f"\n{failure_table(failed)}")
    if taken:
        print(f"\n{failure_table(taken, 'taken instead')}")
    print()
    return report(rows, {
        "condition": condition, "latency_s": list(settings.conditions[condition].latency),
        "checkpoint": args.checkpoint, "every_goal": args.every_goal, "paraphrases": spoken, "failures": failed,
        "taken_instead": taken,
        "obedience": [row.as_json() for row in obeyed], "episodes": [e.as_json() for e in episodes],
    })


def _settings(args: argparse.Namespace, conditions: Sequence[str], limit: float) -> "BenchSettings":
    from dataclasses import replace

    from robovlms_ros.sim.scenes import BenchSettings
    from robovlms_ros.sim.tasks.evaluate import find_condition

    chosen = {name: find_condition(name) for name in conditions}
    if args.latency:
        chosen = {name: replace(each, latency=tuple(args.latency)) for name, each in chosen.items()}
    return BenchSettings(args.checkpoint or "", args.robot, limit, args.blank, args.every_goal, chosen)


def _run(args: argparse.Namespace, settings: "BenchSettings", scenes: Sequence["Scene"]) -> list["TaskEpisode"]:
    """The episodes of all scenes, in order; those that the log already holds are not run again."""
    from robovlms_ros.sim.scenes import EpisodeLog, identity_of, log_beside, run_scenes

    identity = identity_of(settings, args.latency)
    with ExitStack() as stack:
        log = stack.enter_context(closing(EpisodeLog(log_beside(args.json), identity))) if args.json else None
        done = {scene: log.done[scene] for scene in scenes if scene in log.done} if log else {}
        if log and done:
            _say(f"{len(done)} of {len(scenes)} scenes are in {log.path}; running the others")
        missing = [scene for scene in scenes if scene not in done]
        for scene, episodes in stack.enter_context(closing(run_scenes(settings, missing, args.jobs))):
            done[scene] = episodes
            if log:
                log.add(scene, episodes)
            _say(f"[{len(done)}/{len(scenes)}] {_line(scene, episodes)}")
    return [episode for scene in scenes for episode in done[scene]]


def _line(scene: "Scene", episodes: Sequence["TaskEpisode"]) -> str:
    results = [episode.result for episode in episodes]
    why = ", ".join(dict.fromkeys(result.why for result in results if result.why))
    done = sum(result.success for result in results)
    return f"{scene.task}, scene {scene.seed}: {done} of {len(results)} done" + (
        f" ({why})" if why else ""
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
