"""Ablations of a plan: one change at a time, equal demonstrations, measured without ROS.

Each variant's remaining work and its duration are estimated from finished ones. RoboVLMs' published
findings are printed beside the rows.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from safetensors import safe_open

from robovlms_ros.core.schema import ConfigError, require
from robovlms_ros.core.statistics import wilson_interval
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.sim.closed_loop import summarise
from robovlms_ros.sim.scenes import EASY_TIME_LIMIT, BenchSettings, Scene, run_scenes
from robovlms_ros.sim.tasks import evaluate
from robovlms_ros.sim.tasks.base import CUBES, TRAINING_SEEDS
from robovlms_ros.sim.tasks.language import INSTRUCTIONS, TASKS
from robovlms_ros.sim.training.pipeline import train
from robovlms_ros.sim.training.plans import TrainingPlan, TrainingStage, without_ground_truth
from robovlms_ros.sim.training.recording import record, shard_jobs

FILE = "cost.json"


@dataclass(frozen=True)
class Work:
    """demonstrations: to record, episodes of the expert. steps: of training. episodes: to
    measure."""

    demonstrations: int = 0
    steps: int = 0
    episodes: int = 0


def add_time(folder: Path, done: Work, seconds: Mapping[str, float]) -> None:
    """Add what was done, and the seconds that each part of it took, to the variant's file."""
    path = folder / FILE
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, count in asdict(done).items():
        old = kept.get(name, {"count": 0, "seconds": 0.0})
        kept[name] = {"count": old["count"] + count, "seconds": old["seconds"] + seconds.get(name, 0.0)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, kept)


def rates(folders: Iterable[Path]) -> dict[str, float]:
    """Seconds per demonstration, step and episode over all variants; what was never done is
    missing."""
    sums = {field.name: [0, 0.0] for field in fields(Work)}
    for folder in folders:
        path = folder / FILE
        for name, entry in (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}).items():
            sums[name][0] += entry["count"]
            sums[name][1] += entry["seconds"]
    return {name: seconds / count for name, (count, seconds) in sums.items() if count}


def seconds_of(work: Work, rate: Mapping[str, float]) -> float | None:
    """Duration of `work` at these rates; None where one of them is not known."""
    left = {name: count for name, count in asdict(work).items() if count}
    if any(name not in rate for name in left):
        return None
    return sum(count * rate[name] for name, count in left.items())


def table(works: Mapping[str, Work], rate: Mapping[str, float]) -> str:
    """Remaining work, a line per variant; the time where the rates are known."""
    width = max(len("left of variant"), *map(len, works))
    lines = [f"{'left of variant':<{width}}  demonstrations    steps  episodes  about"]
    for name, work in works.items():
        seconds = seconds_of(work, rate)
        about = "not known: none was timed here" if seconds is None else f"{seconds / 60:.0f} min"
        lines.append(f"{name:<{width}}  {work.demonstrations:14d}  {work.steps:7d}  {work.episodes:8d}  {about}")
    return "\n".join(lines)


PAPER = "arXiv 2412.14058"
TABLES = f"{PAPER} in Nature Machine Intelligence (s42256-025-01168-7), Extended Table 5"
EARLIER = "the authors' earlier repository github.com/lixinghang12/RoboVLM, ablation_plot.py"
NOT_STUDIED = "not studied"


@dataclass(frozen=True)
class PublishedFinding:
    """text: what was found; source: its page."""

    text: str
    source: str = PAPER


_DATA = "a tenth of the data 2.52, all of it 4.49, five times 4.51"
_EXECUTED = "PaliGemma, one step, flow matching, trained on ABC: first action 2.45, whole chunk 3.68"
_HEADS = "with history: MLP 1.357, GPT 4.06, LSTM 4.086"
FINDINGS: dict[str, PublishedFinding] = {
    "reference": PublishedFinding("4.49"),
    "history_1": PublishedFinding("one step 4.04, head over the history 4.49"),
    "executed_4": PublishedFinding(_EXECUTED),
    "executed_8": PublishedFinding(_EXECUTED),
    "head_gpt": PublishedFinding(_HEADS, EARLIER),
    "head_fc": PublishedFinding(_HEADS, EARLIER),
    "without_wrist_camera": PublishedFinding("static camera alone, after 5 epochs: 3.59", TABLES),
    **{f"demonstrations_{n}": PublishedFinding(_DATA) for n in (25, 50, 100, 200)},
}
"""By variant of `ablations.VARIANTS`; the others were not studied."""


def beside(variant: str) -> str:
    """The cell beside a variant's row: what was found, with the number of its source in `sources`,
    or `not studied`."""
    finding = FINDINGS.get(variant)
    if finding is None:
        return NOT_STUDIED
    return f"{finding.text} [{1 + _sources().index(finding.source)}]"


def _sources() -> list[str]:
    return list(dict.fromkeys(finding.source for finding in FINDINGS.values()))


def sources() -> str:
    """The note under the table."""
    told = "; ".join(f"[{number}] {source}" for number, source in enumerate(_sources(), 1))
    return (
        "RoboVLMs: mean count of tasks in a row, of 5, on CALVIN ABCD -> D, Kosmos with an LSTM over the history where "
        f"nothing else is said. Directions compare, sizes do not. Quoted at second hand: {told}."
    )


Change = Callable[[dict[str, Any]], None]


def _unchanged(policy: dict[str, Any]) -> None:
    pass


@dataclass(frozen=True)
class AblationVariant:
    """One row. change: of the policy's configuration, in place. plan: fields of the plan that
    differ. seed: of the training. condition: of the rollouts. base: the variant whose checkpoint is
    measured; empty: its own.
    """

    group: str
    change: Change = _unchanged
    plan: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    condition: evaluate.TaskCondition = field(default_factory=evaluate.TaskCondition)
    base: str = ""


def _history(length: int) -> Change:
    def change(policy: dict[str, Any]) -> None:
        policy["model"]["history_length"] = length
        if length == 1:
            policy["model"].pop("history_step", None)
    return change


def _head(kind: str, **settings: Any) -> Change:
    def change(policy: dict[str, Any]) -> None:
        policy["action_head"] = {"type": kind, **settings}
    return change


def _without(key: str, value: Any = None) -> Change:
    def change(policy: dict[str, Any]) -> None:
        if value is None:
            policy.pop(key)
        else:
            policy[key] = value
    return change


VARIANTS: dict[str, AblationVariant] = {
    "reference": AblationVariant("reference"),
    "history_1": AblationVariant("history length", _history(1)),
    "history_16": AblationVariant("history length", _history(16)),
    "executed_4": AblationVariant(
        "steps executed", condition=evaluate.find_condition("4 steps executed"), base="reference"
    ),
    "executed_8": AblationVariant(
        "steps executed", condition=evaluate.find_condition("8 steps executed"), base="reference"
    ),
    "head_gpt": AblationVariant("head", _head("gpt", hidden_size=256, num_layers=2)),
    "head_fc": AblationVariant("head", _head("fc", hidden_size=256)),
    "without_wrist_camera": AblationVariant("inputs", _without("cameras", ["static"])),
    "without_proprioception": AblationVariant("inputs", _without("proprioception")),
    "without_ground_truth": AblationVariant("ground truth", plan={"ground_truth": False}),
    "hindsight": AblationVariant("ground truth", plan={"ground_truth": False, "hindsight": True}),
    "hindsight_paired": AblationVariant(
        "ground truth", plan={"ground_truth": False, "hindsight": True, "paired": True, "shard": 10}
    ),
    **{
        f"demonstrations_{n}": AblationVariant("demonstrations", plan={"episodes": n})
        for n in (25, 50, 100, 200)
    },
    "seed_1": AblationVariant("training seed", seed=1),
    "seed_2": AblationVariant("training seed", seed=2),
}
"""`reference` has 400 demonstrations, 4 frames of history, an LSTM, and a new chunk as soon as
one is ready."""
REFERENCE_EPISODES = 400
_CUBES_ONLY = ("hindsight", "hindsight_paired")


def variants_of(plan: TrainingPlan) -> tuple[str, ...]:
    """The variants that `plan` can have, in order."""
    return tuple(name for name in VARIANTS if plan.task == CUBES or name not in _CUBES_ONLY)


def plan_of(name: str, plan: TrainingPlan, steps: int) -> TrainingPlan:
    """`plan` with one variant's change, its stages without aggregation in `steps` steps. Raises
    ConfigError."""
    require(name in VARIANTS, "variant", name, f"one of {', '.join(VARIANTS)}")
    if plan.policy is None:
        raise ConfigError("the plan has no `policy` that could be changed: ablations begin from new weights.")
    variant = VARIANTS[name]
    policy = deepcopy(plan.policy)
    variant.change(policy)
    # As many frames a step, whatever the history's length.
    frames = plan.recipe.windows * plan.policy_config.model.history_length
    recipe = replace(plan.recipe, seed=variant.seed, windows=max(frames // policy["model"]["history_length"], 1))
    fields: dict[str, Any] = {"episodes": REFERENCE_EPISODES, "shard": 5, **variant.plan}
    stages = _stages(without_ground_truth(plan) if not fields.get("ground_truth", True) else plan, steps)
    return replace(plan, policy=policy, recipe=recipe, stages=stages, **fields)


def _stages(plan: TrainingPlan, steps: int) -> tuple[TrainingStage, ...]:
    """The plan's stages before the first that the policy drives for, in their proportion, with
    what the first has."""
    expert = takewhile(lambda stage: not stage.episodes, plan.stages)
    kept = [replace(stage, demonstrations=0, glimpses=0) for stage in expert]
    require(steps >= len(kept), "steps", steps, f"at least {len(kept)}, one for each stage")
    total = sum(stage.steps for stage in kept)
    ends = [round(steps * sum(stage.steps for stage in kept[: i + 1]) / total) for i in range(len(kept))]
    return tuple(
        replace(stage, steps=max(end - begin, 1)) for stage, begin, end in zip(kept, [0, *ends], ends, strict=False)
    )


def run(
    name: str, plan: TrainingPlan, folder: Path, steps: int, seeds: Sequence[int],
    limit: float = 0.0, now: Callable[[], float] = time.monotonic, device: str = "cpu", jobs: int = 1,
) -> None:
    """Train and measure one variant, as far as it is not done; limit: simulated s per episode, 0
    for what `robovlms rollout` gives. Raises ConfigError.

    now: seconds, for what `costs` keeps alone. device: where it trains. jobs: processes that
    measure.
    """
    left = work((name,), plan, folder, steps, seeds)[name]
    variant = VARIANTS[name]
    changed = plan_of(variant.base or name, plan, steps)
    trained = folder / (variant.base or name)
    times = [now()]
    if left.demonstrations:
        record(_shards(changed, folder), changed.workers)
    times.append(now())
    if left.steps:
        train(changed, trained, _demonstrations(changed, folder), device)
    times.append(now())
    limit = limit or (EASY_TIME_LIMIT if plan.task == CUBES else evaluate.TIME_LIMIT)
    settings = BenchSettings(str(trained / "checkpoint"), plan.robot, limit,
                             conditions={evaluate.AS_TRAINED: variant.condition})
    missing = _unmeasured(plan, folder / name)
    scenes = [Scene(task, seed) for task in missing for seed in seeds]
    done: dict[str, list[list[evaluate.TaskEpisode]]] = {task: [] for task in missing}
    for scene, episodes in run_scenes(settings, scenes, jobs):
        done[scene.task].append(episodes)
        if len(done[scene.task]) == len(seeds):
            results = evaluate.named_by_task(
                [episode for each in done[scene.task] for episode in each]
            )
            row = summarise(results, evaluate.AIMS[scene.task])[0]
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_json(folder / name / f"{scene.task}.json", row.as_json())
    times.append(now())
    if left != Work():
        spent = [after - before for before, after in pairwise(times)]
        add_time(folder / name, left, dict(zip(("demonstrations", "steps", "episodes"), spent, strict=True)))


def work(
    names: Iterable[str], plan: TrainingPlan, folder: Path, steps: int, seeds: Sequence[int]
) -> dict[str, Work]:
    """Remaining work of each variant in this order; what several need counts for
    the first alone.

    Raises ConfigError.
    """
    counted: set[Path] = set()
    left = {}
    for name in names:
        plan_of(name, plan, steps)
        base = VARIANTS[name].base or name
        changed = plan_of(base, plan, steps)
        trained = folder / base
        jobs = []
        missing = 0
        if not (trained / "checkpoint" / "model.safetensors").exists() and trained not in counted:
            jobs = [j for j in _shards(changed, folder) if not (j.folder / "frames.npz").exists()]
            missing = sum(stage.steps for stage in changed.stages) - _steps_done(trained / "run")
        new = sum(len(job.seeds) for job in jobs if job.folder not in counted)
        counted |= {trained, *(job.folder for job in jobs)}
        instructions = len(INSTRUCTIONS) if plan.task == CUBES else 1
        left[name] = Work(new, missing, len(_unmeasured(plan, folder / name)) * len(seeds) * instructions)
    return left


def _columns(plan: TrainingPlan) -> tuple[str, ...]:
    return TASKS if plan.task == "all" else (plan.task,)


def _unmeasured(plan: TrainingPlan, folder: Path) -> list[str]:
    return [column for column in _columns(plan) if not (folder / f"{column}.json").exists()]


def _shards(plan: TrainingPlan, folder: Path) -> list[Any]:
    seeds = TRAINING_SEEDS[plan.first_scene :][: plan.episodes]
    return shard_jobs(
        _demonstrations(plan, folder), seeds, plan.shard, plan.robot, plan.task, paired=plan.paired
    )


def _demonstrations(plan: TrainingPlan, folder: Path) -> Path:
    return folder / ("pairs" if plan.paired else "demonstrations")


def _steps_done(run: Path) -> int:
    path = run / "state.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        return int(json.loads(file.metadata()["progress"])["step"])


def report(folder: Path, plan: TrainingPlan) -> str:
    """Every variant's row as a Markdown table: success and wrong object per task with 95 %
    intervals, or `not run`, and what RoboVLMs found for the same question."""
    columns = _columns(plan)
    lines = [f"| changed | variant | {' | '.join(columns)} | wrong object | RoboVLMs |",
             "|---" * (len(columns) + 4) + "|"]
    for name in variants_of(plan):
        variant = VARIANTS[name]
        cells = []
        wrong = 0
        count = 0
        for column in columns:
            path = folder / name / f"{column}.json"
            if not path.exists():
                cells.append("not run")
                continue
            row = json.loads(path.read_text(encoding="utf-8"))
            low, high = wilson_interval(row["success"], row["n"])
            cells.append(f"{row['success']}/{row['n']} ({low:.0%} to {high:.0%})")
            wrong = wrong + row["wrong"]
            count = count + row["n"]
        cells.append(f"{wrong}/{count}" if count else "not run")
        lines.append(f"| {variant.group} | {name} | {' | '.join(cells)} | {beside(name)} |")
    return "\n".join([*lines, "", sources()])
