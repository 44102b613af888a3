"""Train a checkpoint on corrections, and keep the result only where it is better.

    robovlms improve --checkpoint A --data BAGS... --gate BAGS... scenes:20 --output B

1. Mines --data with A: take-overs of a person, chunks that the gate refuses, and the worst moments.
   They weigh more in training, the seconds before a take-over less (`training.corrections`).
2. Trains from A's weights.
3. Evaluates A and the result on the --gate: held-back bags, and with scenes:N that many evaluation
   scenes of the simulated arm.
4. Writes B where no number is worse and the leading one is better, which is the success where there
   are scenes and otherwise the error; else names the reasons (exit code 3).

OUTPUT.work holds the run, the evaluations and improve.json; the same command goes on from there.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robovlms_ros.core.schema import ConfigError, build, require
from robovlms_ros.core.statistics import wilson_interval
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.text_table import aligned

NOT_BETTER = 3
SCENES = "scenes:"
TOLERANCE = 0.05
"""Part by which one instruction's error may rise."""
OLD = "A"
NEW = "B"
ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms improve`."""
    parser.add_argument("--checkpoint", required=True, help="A: the policy to begin with")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="BAG",
                        help="rosbags to train on")
    parser.add_argument("--gate", nargs="+", required=True, metavar="BAG|scenes:N",
                        help="held-back rosbags, and scenes of the simulated arm")
    parser.add_argument("--output", type=Path, required=True, help="B: a folder that is not there")
    parser.add_argument("--config", type=Path, help="training YAML (default: A's configuration)")
    parser.add_argument("--steps", type=int, help="in the place of training.max_steps")
    parser.add_argument("--robot", help="robot of the bags: a YAML, or a name (default: A's own)")
    parser.add_argument("--task", default="cubes",
                        help="of scenes:N: cubes (the default), a tabletop task, or all")
    parser.add_argument("--worst", type=float, default=0.05, metavar="SHARE",
                        help="part of the frames, by error, that weigh more (default 0.05)")
    parser.add_argument("--jobs", type=int, default=1, help="bags or scenes at a time (default 1)")


@dataclass
class Score:
    """One policy under one instruction. errors: of each chunk, m or rad; refused: chunks that the
    gate refuses; success: of `episodes` simulated ones."""

    errors: list[float] = field(default_factory=list)
    refused: int = 0
    success: int = 0
    episodes: int = 0

    @property
    def error(self) -> float:
        """Mean; NaN without a chunk."""
        return float(np.mean(self.errors)) if self.errors else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the success."""
        return wilson_interval(self.success, self.episodes)

    def as_json(self) -> dict[str, Any]:
        """Means and counts."""
        error = self.error if self.errors else None
        return {**vars(self), "errors": len(self.errors), "error": error, "interval": self.interval}

    def cells(self) -> list[str]:
        """Columns of the table."""
        low, high = self.interval
        rolled = f"{self.success}/{self.episodes} ({low:.0%} to {high:.0%})"
        error = f"{self.error:.4g}" if self.errors else "-"
        return [error, str(self.refused), rolled if self.episodes else "-"]


class Scores(dict[str, dict[str, Score]]):
    """Instruction -> policy -> its score; the row ALL counts every instruction."""

    def add(self, words: str, name: str, **counts: Any) -> None:
        """Count for `words` and for ALL. counts: fields of Score."""
        for row in (words, ALL):
            score = self.setdefault(row, {OLD: Score(), NEW: Score()})[name]
            for key, value in counts.items():
                setattr(score, key, getattr(score, key) + value)


def run(args: argparse.Namespace) -> int:
    """Mine, train, evaluate, decide; returns 0, or NOT_BETTER."""
    import shutil

    from robovlms_ros.checkpoints.checkpoint import load_policy, locate_config
    from robovlms_ros.core.resources import find_checkpoint
    from robovlms_ros.training.runs import read_run, train_on

    scenes = sum(int(text.removeprefix(SCENES)) for text in args.gate if _is_scenes(text))
    held = [Path(text) for text in args.gate if not text.startswith(SCENES)]
    require(not args.output.exists(), "--output", args.output, "a folder that does not exist yet")
    require(0 <= args.worst < 1, "--worst", args.worst, "0 or more and below 1")
    known = sorted({path.resolve() for path in held} & {path.resolve() for path in args.data})
    require(not known, "--gate", [str(path) for path in known], "bags that --data does not name")
    work = args.output.with_name(f"{args.output.name}.work")
    start = find_checkpoint(args.checkpoint)
    job = read_run(args.config or locate_config(start), str(start))
    data = dict(job.data)
    of_bags = data.get("bag", {}).get("robot")
    of_policy = None if job.config.action is None else job.config.action.robot
    args.robot = args.robot or of_bags or of_policy
    require(bool(args.robot), "--robot", args.robot, "given: the checkpoint names no robot")
    data["bag"] = {"robot": args.robot, **data.get("bag", {})}
    steps = args.steps or job.config.training.max_steps
    training = replace(job.config.training, max_steps=steps)
    job = replace(job, data=data, config=replace(job.config, training=training))

    moments, lines = mine(
        _evaluate({OLD: start}, args.data, work / "mined", args, data["bag"]), args.worst
    )
    print("\n".join(lines))
    trained = train_on(args.data, job, work / "run", print, moments)
    both = {OLD: start, NEW: trained}
    scores = scores_on_bags(_evaluate(both, held, work / "gate", args, data["bag"]))
    if scenes:
        _roll_out(both, scenes, args, scores)
    worse, better = judge(scores)
    print(f"\n{table(scores)}\n")
    ids = {name: load_policy(folder).identity for name, folder in both.items()}
    numbers = {words: {name: score.as_json() for name, score in row.items()}
               for words, row in scores.items()}
    found = {"policies": ids, "worse": worse, "better": better, "scores": numbers}
    write_json(work / "improve.json", found)
    for name, text in ids.items():
        print(f"{name}: {text}")
    if worse or not better:
        print("not written: " + "; ".join(worse or ["no number is better"]))
        return NOT_BETTER
    shutil.copytree(trained, args.output)
    print(f"written: {args.output}: " + "; ".join(better))
    return 0


def _is_scenes(text: str) -> bool:
    if not text.startswith(SCENES):
        return False
    number = text.removeprefix(SCENES)
    whole = number.isdecimal() and int(number) > 0
    require(whole, "--gate", text, f"{SCENES}N with a number of scenes, 1 or more")
    return True


def _evaluate(
    policies: Mapping[str, Path], bags: Sequence[Path], output: Path, args: argparse.Namespace,
    mapping: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Results of `evaluate_bag` on each bag, read as `data.bag` maps it; those that are there
    already are kept."""
    from robovlms_ros.cli.eval import ProgressLine
    from robovlms_ros.cli.eval_setup import EvaluationJob, read_parameters, run_jobs
    from robovlms_ros.evaluation.replay.evaluate import EvaluationConfig
    from robovlms_ros.training.data.sources.bag_episodes import BagData

    if not bags:
        return []
    bag = build(BagData, mapping, "data.bag")
    parameters = read_parameters(None, {"robot": bag.robot})
    config = EvaluationConfig(
        bag.topics, bag.instruction, latencies=(0.05,), sensitivity=False, annotate=False,
        stamps=bag.stamps, camera=bag.camera, camera_tolerance=bag.camera_tolerance,
        joint_states_tolerance=bag.joint_states_tolerance,
    )
    pairs = tuple((name, str(folder)) for name, folder in policies.items())
    threads = 1 if args.jobs > 1 else 0
    jobs = [EvaluationJob(bag, pairs, parameters, config, output, threads=threads) for bag in bags]
    parts = run_jobs(jobs, "local", args.jobs, ProgressLine(len(jobs)))
    return [json.loads(part.read_text(encoding="utf-8")) for part in parts]


def mine(
    parts: Sequence[Mapping[str, Any]], share: float
) -> tuple[dict[str, list[int]], list[str]]:
    """Stamps of A's moments by bag (`training.data.windows.Moments`), and a line about each kind.

    share: of the scored frames, those of the largest error.
    """
    rows = [(error, part["bag"], int(stamp)) for part in parts
            for scored in _result(part, OLD)["errors"].values() for stamp, error in scored]
    worst = sorted(rows, key=lambda row: -row[0])[: round(share * len(rows))]
    refused = [(part["bag"], int(stamp)) for part in parts for stamp, _ in _refused(part, OLD)]
    moments: dict[str, list[int]] = {}
    for bag, stamp in dict.fromkeys([*((bag, stamp) for _, bag, stamp in worst), *refused]):
        moments.setdefault(bag, []).append(stamp)
    lines = [f"{OLD}: {len(rows)} frames scored, {len(refused)} chunks refused by the gate"]
    if worst:
        lines.append(f"{OLD}: {len(worst)} worst moments, error {worst[-1][0]:.3g} and more")
    return moments, lines


def _result(part: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = part["results"].get(name)
    if found is None:
        why = "; ".join(part["notes"]) or "it answered no image"
        raise ConfigError(
            f"{part['bag']}: {name} cannot be evaluated on it: {why} Leave the bag out."
        )
    return found


def _refused(part: Mapping[str, Any], name: str) -> list[Any]:
    gate = _result(part, name)["gate"]
    return [] if gate is None else gate["refused_chunks"]


def scores_on_bags(parts: Sequence[Mapping[str, Any]]) -> Scores:
    """Error and refusals of both policies, by instruction."""
    scores = Scores()
    for part in parts:
        words = {episode["label"]: episode["instruction"] for episode in part["episodes"]}
        for name in (OLD, NEW):
            for label, scored in _result(part, name)["errors"].items():
                scores.add(words[label], name, errors=[error for _, error in scored])
            for _, instruction in _refused(part, name):
                scores.add(instruction, name, refused=1)
    return scores


def _roll_out(
    policies: Mapping[str, Path], count: int, args: argparse.Namespace, scores: Scores
) -> None:
    """Add the success in simulated scenes."""
    from robovlms_ros.sim.scenes import EASY_TIME_LIMIT, BenchSettings, Scene, run_scenes
    from robovlms_ros.sim.tasks.base import CUBES, find_task
    from robovlms_ros.sim.tasks.evaluate import TIME_LIMIT
    from robovlms_ros.sim.tasks.language import TASKS

    cubes = args.task == CUBES
    names = (CUBES,) if cubes else TASKS if args.task == "all" else (find_task(args.task).name,)
    scenes = [Scene(task, seed) for task in names for seed in range(count)]
    for name, folder in policies.items():
        settings = BenchSettings(str(folder), args.robot, EASY_TIME_LIMIT if cubes else TIME_LIMIT)
        for _, episodes in run_scenes(settings, scenes, args.jobs):
            for episode in episodes:
                words = episode.result.instruction if cubes else episode.task
                result = episode.result
                scores.add(words, name, episodes=1, success=result.success, refused=result.refusals)


def judge(scores: Scores) -> tuple[list[str], list[str]]:
    """Lists of the numbers that are worse in B than in A, and of those that are better: of all
    instructions, and clearly worse ones of one. Without a better leading number nothing is better.
    """
    old = scores[ALL][OLD]
    new = scores[ALL][NEW]
    worse: list[str] = []
    better: list[str] = []
    for name, before, after, rises in (
        ("success", old.success, new.success, True), ("error", old.error, new.error, False),
        ("gate refusals", old.refused, new.refused, False),
    ):
        if before != after and np.isfinite([before, after]).all():
            found = better if (after > before) == rises else worse
            found.append(f"{name} {before:.4g} in {OLD}, {after:.4g} in {NEW}")
    for words, row in scores.items():
        a = row[OLD]
        b = row[NEW]
        if words == ALL:
            continue
        if a.episodes and b.interval[1] < a.interval[0]:
            worse.append(f"'{words}': success {a.success} and {b.success} of {a.episodes}")
        if b.error > (1 + TOLERANCE) * a.error:
            worse.append(f"'{words}': error {a.error:.4g} in {OLD}, {b.error:.4g} in {NEW}")
    leads = new.success > old.success if old.episodes else new.error < old.error
    equal = old.episodes > 0 and new.success == old.success and new.error < old.error
    return worse, better if leads or equal else []


def table(scores: Scores) -> str:
    """Both policies by instruction, for a terminal."""
    rows = sorted(scores, key=lambda words: words == ALL)
    lines = [[words, name, *scores[words][name].cells()] for words in rows for name in (OLD, NEW)]
    return aligned(["instruction", "policy", "error", "refused", "success (95 %)"], lines)
