"""Drive a simulated Panda through the real ROS graph and report whether it followed the
instructions.

Two processes on DDS: a simulated arm with two cameras, and the policy node. Scenes come from seeds
that training never saw. Written to --output: demo.gif, timeline.png, bag/ (MCAP) and, with --json,
the numbers. Exit code 1 when a threshold is missed: named object lifted in at least 90 %, another
one in at most 5 %, with blanked cameras at most 20 % (rows of fewer than 20 episodes count as
missed only when their 95 % interval excludes the threshold).

--task runs the tabletop tasks instead (lift, stack, put, push, or all): scene and sentence come
from the seed, and the thresholds are those of `robovlms rollout --task`. With --json NAME.json
every episode of theirs is kept in NAME.episodes.jsonl as soon as it is over: a run that was stopped
goes on when the command is repeated; bag, pictures and times are then those of its last part.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robovlms_ros.core.schema import require
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.sim.tasks.base import CUBES, EVALUATION_SEEDS
from robovlms_ros.sim.tasks.language import INSTRUCTIONS

if TYPE_CHECKING:
    from robovlms_ros.sim.closed_loop import ClosedLoopRow, EpisodeResult
    from robovlms_ros.sim.nodes.demo_run import DemoOutcome, Trial
    from robovlms_ros.sim.tasks.evaluate import TaskEpisode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms demo`."""
    parser.add_argument(
        "--task", default=CUBES, help="cubes (the default), a tabletop task, or all of them"
    )
    parser.add_argument("--seeds", type=int, default=2, help="scenes per instruction and condition (default 2)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first scene (default 0)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the pictures and the bag")
    parser.add_argument("--checkpoint", default="", help="in the place of the shipped one (demo; --task: tasks)")
    parser.add_argument("--backbone", help="the shipped policy of this preset of config/backbones")
    parser.add_argument("--real-time-factor", type=float, default=1.0, help="simulated seconds per second (default 1)")
    parser.add_argument("--added-latency", type=float, default=0.0, help="seconds by which chunks are withheld")
    parser.add_argument("--controller-blends", action="store_true",
                        help="the arm's controller blends trajectories, as the newest does")
    parser.add_argument("--no-bag", action="store_true", help="record no bag: a hundred episodes make a gigabyte")
    parser.add_argument("--no-controls", action="store_true", help="leave out the swapped and the blanked episodes")
    parser.add_argument("--time-limit", type=float, help="simulated seconds per episode (default 10; --task: 14)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns 0 when every threshold holds."""
    from robovlms_ros.sim.closed_loop import failure_table, report, table
    from robovlms_ros.sim.demo_report import write_gif, write_timeline

    require(args.seeds >= 1, "--seeds", args.seeds, "at least 1")
    tabletop = args.task not in ("", CUBES)
    if args.backbone is not None:
        alone = not tabletop and not args.checkpoint
        require(alone, "--backbone", args.backbone, "given without --task and --checkpoint")
        args.checkpoint = _policy_of(args.backbone)
    trials = tuple(
        _table_trials(args)
        if tabletop
        else _trials(args.seeds, args.first_seed, not args.no_controls)
    )
    last = args.first_seed + (1 if tabletop else 2) * args.seeds
    require(args.first_seed in EVALUATION_SEEDS and last - 1 in EVALUATION_SEEDS, "--first-seed", args.first_seed,
            f"such that the scenes up to {last - 1} lie within 0 to {EVALUATION_SEEDS[-1]}; training uses others")
    require(0.5 <= args.real_time_factor <= 1.0, "--real-time-factor", args.real_time_factor, "between 0.5 and 1")
    args.output.mkdir(parents=True, exist_ok=True)
    outcome, episodes = _examine(args, trials, tabletop)
    rows, more = _rows(episodes, tabletop)
    result = report(rows, {**_measured(outcome, args.json), "added_latency_ms": 1000.0 * args.added_latency, **more})
    write_json(args.json, result)
    if outcome.recordings:
        write_gif(args.output / "demo.gif", outcome.recordings)
        write_timeline(args.output / "timeline.png", outcome.recordings)
    print(f"\n{table(rows)}\n")
    if result["failures"]:
        print(f"{failure_table(result['failures'])}\n")
    if result.get("taken_instead"):
        print(f"{failure_table(result['taken_instead'], 'taken instead')}\n")
    if outcome.episodes:
        _print_measured(result)
    written = [f"{args.output}/demo.gif, timeline.png"] if outcome.recordings else []
    written += [f"{outcome.bag}/ ({outcome.bag_messages} messages)"] if outcome.bag else []
    print(f"written: {', '.join([*written, *([str(args.json)] if args.json else [])]) or 'nothing'}")
    for row in rows:
        for reason in row.missed:
            print(f"MISSED: {row.instruction} ({row.condition}): {reason}")
    return 0 if result["pass"] else 1


def _policy_of(backbone: str) -> str:
    """The shipped policy of a backbone. Raises ConfigError where it has none of its own."""
    from robovlms_ros.core.registry import names
    from robovlms_ros.core.resources import shipped_policy

    own = [name for name in names("backbone") if shipped_policy(name) == name]
    require(backbone in own, "--backbone", backbone, f"one with a policy: {', '.join(own)}")
    return backbone


def _examine(
    args: argparse.Namespace, trials: Sequence["Trial"], tabletop: bool
) -> tuple["DemoOutcome", list["TaskEpisode"]]:
    """Run the trials that the log beside --json does not hold yet; returns what this run
    measured, and every trial's episode in order."""
    from robovlms_ros.core.resources import share_directory
    from robovlms_ros.sim.nodes.demo_run import DemoOptions, DemoOutcome, run_demo
    from robovlms_ros.sim.scenes import EpisodeLog, Scene, checkpoint_digest, log_beside
    from robovlms_ros.sim.tasks.evaluate import TaskEpisode
    from robovlms_ros.sim.tasks.language import is_unseen

    config = share_directory() / "config"
    limit = args.time_limit or (14.0 if tabletop else 10.0)
    checkpoint = args.checkpoint or ("tasks" if tabletop else "demo")
    identity = {"checkpoint_sha256": checkpoint_digest(checkpoint), "time_limit": limit, "ros": True,
                "real_time_factor": args.real_time_factor, "added_latency": args.added_latency}
    if args.controller_blends:
        identity["controller_blends"] = True
    found: dict[Scene, TaskEpisode] = {}
    with ExitStack() as stack:
        kept = args.json and tabletop  # the two cubes are short, and are run to be seen
        log = stack.enter_context(closing(EpisodeLog(log_beside(args.json), identity))) if kept else None

        def scene(trial: "Trial") -> Scene:
            return Scene(trial.task, trial.seed, trial.condition)

        def keep(trial: "Trial", result: "EpisodeResult") -> None:
            found[scene(trial)] = TaskEpisode(
                trial.task, result, is_unseen(result.instruction), trial.task
            )
            if log:
                log.add(scene(trial), [found[scene(trial)]])

        if log:
            found = {place: rows[0] for place, rows in log.done.items()}
        missing = tuple(trial for trial in trials if scene(trial) not in found)
        if log and len(missing) < len(trials):
            _say(f"{len(trials) - len(missing)} of {len(trials)} episodes are in {log.path}; running the others")
        outcome = DemoOutcome()
        if missing:
            shutil.rmtree(args.output / "bag", ignore_errors=True)
            outcome = run_demo(DemoOptions(
                missing, args.output, config / "sim_arm.yaml", config / "demo.yaml", checkpoint, limit,
                args.real_time_factor, args.added_latency, not args.no_bag,
                args.controller_blends), _say, keep)
    return outcome, [found[scene(trial)] for trial in trials]


MEASURED = ("reaction_ms", "real_time_factor", "worst_joint_step_mrad_per_10ms")


def _measured(outcome: "DemoOutcome", report: Path | None) -> dict[str, Any]:
    """Times and steps of this run for the JSON report; where nothing was run, those
    of the report so far."""
    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    if not outcome.episodes and report is not None and report.exists():
        earlier = json.loads(report.read_text(encoding="utf-8"))
        return {name: earlier.get(name) for name in MEASURED}
    reaction = dict(zip(("p50", "p99"), (number(1000.0 * value) for value in outcome.reaction_s), strict=True))
    values = (reaction, number(outcome.real_time_factor), number(1000.0 * outcome.worst_step))
    return dict(zip(MEASURED, values, strict=True))


def _print_measured(result: dict[str, Any]) -> None:
    reaction = result["reaction_ms"]
    if reaction["p50"] is not None:
        print(f"reaction time, image to first commanded point: p50 {reaction['p50']:.0f} ms, "
              f"p99 {reaction['p99']:.0f} ms (simulated time at {result['real_time_factor']:.2f} of real time)")
    print(f"worst measured joint step: {result['worst_joint_step_mrad_per_10ms']:.1f} mrad in 10 ms")


def _rows(episodes: Sequence["TaskEpisode"], tabletop: bool) -> tuple[list["ClosedLoopRow"], dict[str, Any]]:
    """The table's rows, why episodes failed, and for tabletop tasks what the paraphrases came
    to."""
    from robovlms_ros.sim.closed_loop import failures, summarise
    from robovlms_ros.sim.tasks import evaluate

    if not tabletop:
        results = [episode.result for episode in episodes]
        return summarise(results), {"failures": failures(results)}
    return evaluate.rows(episodes), {"paraphrases": evaluate.paraphrases(episodes),
                                     "failures": failures(evaluate.named_by_task(episodes)),
                                     "taken_instead": evaluate.taken_instead(episodes),
                                     "episodes": [episode.as_json() for episode in episodes]}


def _say(line: str) -> None:
    print(line, flush=True)


def _table_trials(args: argparse.Namespace) -> Iterator["Trial"]:
    from robovlms_ros.sim.nodes.demo_run import Trial
    from robovlms_ros.sim.tasks.base import find_task
    from robovlms_ros.sim.tasks.language import TASKS

    for task in TASKS if args.task == "all" else (find_task(args.task).name,):
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            yield Trial("", seed, "named", keep=seed == args.first_seed, task=task)
            if not args.no_controls and seed == args.first_seed:
                yield Trial("", seed, "blanked", task=task)


def _trials(seeds: int, first: int, controls: bool):  # type: ignore[no-untyped-def]
    """Each instruction in its own scenes; then the same scenes with the other instruction; then
    without cameras."""
    from robovlms_ros.sim.nodes.demo_run import Trial

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
