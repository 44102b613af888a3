"""Drive a simulated Panda through the real ROS graph and report whether it did as it was told.

Two processes on DDS: a simulated arm with two cameras, and the policy node. Scenes come from seeds that training never
saw. Written to --output: demo.gif, timeline.png, bag/ (MCAP) and, with --json, the numbers. Exit code 1 when a
threshold is missed: named object lifted in at least 90 %, another one in at most 5 %, with blanked cameras at most
20 % (rows of fewer than 20 episodes count as missed only when their 95 % interval excludes the threshold).

--task runs the tabletop tasks instead (lift, stack, put, push, or all): scene and sentence come from the seed, and the
thresholds are those of `robovlms rollout --task`.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robovlms_ros.schema import require
from robovlms_ros.sim.task import EVALUATION_SEEDS, INSTRUCTIONS

if TYPE_CHECKING:
    from robovlms_ros.evaluation.closed_loop import EpisodeResult, Row
    from robovlms_ros.ros.demo.runner import Trial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms demo`."""
    parser.add_argument("--task", default="", help="a tabletop task, or all of them; default: the two cubes")
    parser.add_argument("--seeds", type=int, default=2, help="scenes per instruction and condition (default 2)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first scene (default 0)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the pictures and the bag")
    parser.add_argument("--checkpoint", default="", help="another checkpoint than the shipped one")
    parser.add_argument("--real-time-factor", type=float, default=1.0, help="simulated seconds per second (default 1)")
    parser.add_argument("--added-latency", type=float, default=0.0, help="seconds by which chunks are withheld")
    parser.add_argument("--no-controls", action="store_true", help="leave out the swapped and the blanked episodes")
    parser.add_argument("--time-limit", type=float, help="simulated seconds per episode (default 10; --task: 14)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns 0 when every threshold holds."""
    from robovlms_ros.evaluation.closed_loop import failure_table, report, table
    from robovlms_ros.evaluation.demo_report import write_gif, write_timeline
    from robovlms_ros.resources import share_directory
    from robovlms_ros.ros.demo.runner import DemoOptions, run_demo

    require(args.seeds >= 1, "--seeds", args.seeds, "at least 1")
    trials = tuple(_table_trials(args) if args.task else _trials(args.seeds, args.first_seed, not args.no_controls))
    last = args.first_seed + (1 if args.task else 2) * args.seeds
    require(args.first_seed in EVALUATION_SEEDS and last - 1 in EVALUATION_SEEDS, "--first-seed", args.first_seed,
            f"such that the scenes up to {last - 1} lie within 0 to {EVALUATION_SEEDS[-1]}; training uses others")
    require(0.5 <= args.real_time_factor <= 1.0, "--real-time-factor", args.real_time_factor, "between 0.5 and 1")
    args.output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(args.output / "bag", ignore_errors=True)

    config = share_directory() / "config"
    outcome = run_demo(DemoOptions(
        trials=trials, output=args.output, sim_parameters=config / "sim_arm.yaml",
        policy_parameters=config / "demo.yaml", checkpoint=args.checkpoint or ("tasks" if args.task else ""),
        time_limit=args.time_limit or (14.0 if args.task else 10.0),
        real_time_factor=args.real_time_factor, added_latency=args.added_latency), _say)
    rows, more = _rows(trials, outcome.episodes)
    reaction = {name: 1000.0 * value for name, value in zip(("p50", "p99"), outcome.reaction_s, strict=True)}
    worst = 1000.0 * outcome.worst_step
    result = report(rows, {"reaction_ms": reaction, "real_time_factor": outcome.real_time_factor,
                           "added_latency_ms": 1000.0 * args.added_latency, "worst_joint_step_mrad_per_10ms": worst,
                           **more})
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_gif(args.output / "demo.gif", outcome.recordings)
    write_timeline(args.output / "timeline.png", outcome.recordings)
    print(f"\n{table(rows)}\n")
    if result["failures"]:
        print(f"{failure_table(result['failures'])}\n")
    print(f"reaction time, image to first commanded point: p50 {reaction['p50']:.0f} ms, p99 {reaction['p99']:.0f} ms "
          f"(simulated time at {outcome.real_time_factor:.2f} of real time)")
    print(f"worst measured joint step: {worst:.1f} mrad in 10 ms")
    print(f"written: {args.output}/demo.gif, timeline.png, bag/ ({outcome.bag_messages} messages)"
          + (f", {args.json}" if args.json else ""))
    for row in rows:
        for reason in row.missed:
            print(f"MISSED: {row.instruction} ({row.condition}): {reason}")
    return 0 if result["pass"] else 1


def _rows(trials: Sequence["Trial"], episodes: Sequence["EpisodeResult"]) -> tuple[list["Row"], dict[str, Any]]:
    """The table's rows, why episodes failed, and for tabletop tasks what the paraphrases came to."""
    from robovlms_ros.evaluation.closed_loop import failures, summarise

    if not trials[0].task:
        return summarise(episodes), {"failures": failures(episodes)}
    from robovlms_ros.sim.tasks import evaluate
    from robovlms_ros.sim.tasks.language import is_unseen

    judged = [evaluate.TaskEpisode(trial.task, episode, is_unseen(episode.instruction))
              for trial, episode in zip(trials, episodes, strict=True)]
    return evaluate.rows(judged), {"paraphrases": evaluate.paraphrases(judged),
                                   "failures": failures(evaluate.named_by_task(judged))}


def _say(line: str) -> None:
    print(line, flush=True)


def _table_trials(args: argparse.Namespace) -> Iterator["Trial"]:
    from robovlms_ros.ros.demo.runner import Trial
    from robovlms_ros.sim.tasks.base import find_task
    from robovlms_ros.sim.tasks.language import TASKS

    for task in TASKS if args.task == "all" else (find_task(args.task).name,):
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            yield Trial("", seed, "named", keep=seed == args.first_seed, task=task)
            if not args.no_controls and seed == args.first_seed:
                yield Trial("", seed, "blanked", task=task)


def _trials(seeds: int, first: int, controls: bool):  # type: ignore[no-untyped-def]
    """Each instruction in its own scenes; then the same scenes with the other instruction; then without cameras."""
    from robovlms_ros.ros.demo.runner import Trial

    scenes = {words: range(first + i * seeds, first + (i + 1) * seeds) for i, words in enumerate(INSTRUCTIONS)}
    other = dict(zip(INSTRUCTIONS, reversed(list(INSTRUCTIONS)), strict=True))
    for words in INSTRUCTIONS:
        for seed in scenes[words]:
            yield Trial(words, seed, "named", keep=seed == scenes[words][0])
    if not controls:
        return
    for words in INSTRUCTIONS:
        for seed in scenes[other[words]]:
            yield Trial(words, seed, "swapped")
    for words in INSTRUCTIONS:
        for seed in list(scenes[words])[: max(1, (seeds + 1) // 2)]:
            yield Trial(words, seed, "blanked")
