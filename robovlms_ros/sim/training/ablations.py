"""Ablations of a plan: one thing changed at a time, all on the same demonstrations, measured
without ROS.

A folder holds `demonstrations/` (shared; `pairs/` for the variant that has them in twos), and per
variant `NAME/` with the run, its checkpoint, `TASK.json`, one per task (`cubes.json` for the easy
demo), and what it took (`costs`): what is there is not done again, what is missing is listed as not
run.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from safetensors import safe_open

from robovlms_ros.core.schema import ConfigError, require
from robovlms_ros.core.statistics import wilson_interval
from robovlms_ros.sim.closed_loop import summarise
from robovlms_ros.sim.processes import run_scenes
from robovlms_ros.sim.scenes import EASY_TIME_LIMIT, BenchSettings, Scene
from robovlms_ros.sim.tasks import evaluate
from robovlms_ros.sim.tasks.base import CUBES, TRAINING_SEEDS
from robovlms_ros.sim.tasks.language import INSTRUCTIONS, TASKS
from robovlms_ros.sim.training.costs import Work, add_time, write_json
from robovlms_ros.sim.training.pipeline import train
from robovlms_ros.sim.training.plans import TrainingPlan, without_ground_truth
from robovlms_ros.sim.training.published import beside, sources
from robovlms_ros.sim.training.recipe import TrainingStage
from robovlms_ros.sim.training.recording import record, shard_jobs

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
    variant, policy = VARIANTS[name], deepcopy(plan.policy)
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
            write_json(folder / name / f"{scene.task}.json", row.as_json())
    times.append(now())
    if left != Work():
        spent = [after - before for before, after in pairwise(times)]
        add_time(folder / name, left, dict(zip(("demonstrations", "steps", "episodes"), spent, strict=True)))


def work(
    names: Iterable[str], plan: TrainingPlan, folder: Path, steps: int, seeds: Sequence[int]
) -> dict[str, Work]:
    """What is left of each variant when they are run in this order; what several need counts for
    the first alone.

    Raises ConfigError.
    """
    counted: set[Path] = set()
    left = {}
    for name in names:
        plan_of(name, plan, steps)
        base = VARIANTS[name].base or name
        changed, trained = plan_of(base, plan, steps), folder / base
        jobs, missing = [], 0
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
        cells, wrong, count = [], 0, 0
        for column in columns:
            path = folder / name / f"{column}.json"
            if not path.exists():
                cells.append("not run")
                continue
            row = json.loads(path.read_text(encoding="utf-8"))
            low, high = wilson_interval(row["success"], row["n"])
            cells.append(f"{row['success']}/{row['n']} ({low:.0%} to {high:.0%})")
            wrong, count = wrong + row["wrong"], count + row["n"]
        cells.append(f"{wrong}/{count}" if count else "not run")
        lines.append(f"| {variant.group} | {name} | {' | '.join(cells)} | {beside(name)} |")
    return "\n".join([*lines, "", sources()])
