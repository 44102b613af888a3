"""The whole way to a simulated arm's checkpoint: demonstrations, behaviour cloning, rounds of dataset aggregation.

Everything lies in one folder and is resumable: `demonstrations/` and `aggregation_N/` hold shards, `run/` the trainer's
state and curve, `checkpoint/` the result. What is finished is not done again.
"""

import json
import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from robovlms_ros.config import PolicyConfig, config_from_mapping
from robovlms_ros.schema import ConfigError, build, read_mapping, require
from robovlms_ros.sim.task import TRAINING_SEEDS
from robovlms_ros.sim.tasks.language import LABELLED, TASKS
from robovlms_ros.training.simulated.behaviour_cloning import Recipe, Stage

log = logging.getLogger(__name__)
FREE = ("workers", "threads", "save_every")
"""Fields of a plan that may differ when its run goes on."""


@dataclass(frozen=True)
class TrainingPlan:
    """One training run, as its YAML has it.

    policy: a policy's configuration (PolicyConfig). robot: name or path of the robot's YAML. episodes: demonstrations
    of the expert. shard: episodes per shard. workers: processes that record. threads: that train, each with a part of
    a step's windows. stages: see `Stage`. save_every: steps between saved states.

    task: None for the easy demo's two cubes, or a tabletop task or `all` of them. Then goals: of those recorded, how
    many a window is learned under in a step; ground_truth: false trains on what a real robot records alone.
    """

    policy: dict[str, Any]
    stages: tuple[Stage, ...]
    recipe: Recipe = field(default_factory=Recipe)
    robot: str = "panda"
    episodes: int = 300
    shard: int = 10
    workers: int = 2
    threads: int = 1
    save_every: int = 200
    task: str | None = None
    goals: int = 3
    ground_truth: bool = True

    def __post_init__(self) -> None:
        require(len(self.stages) > 0, "stages", list(self.stages), "at least one")
        first = self.stages[0].episodes
        require(first == 0, "stages[0].episodes", first, "0: an untrained policy drives nowhere")
        require(1 <= self.shard <= self.episodes, "shard", self.shard, f"1 to episodes = {self.episodes}")
        windows = self.recipe.windows
        require(1 <= self.threads <= windows, "threads", self.threads, f"1 to recipe.windows = {windows}")
        require(self.save_every >= 1, "save_every", self.save_every, "1 or more")
        require(self.task in (None, "all", *TASKS), "task", self.task, f"all, {', '.join(TASKS)}, or left out")
        for number, stage in enumerate(self.stages):
            fits = self.task is not None and self.ground_truth
            require(fits or not stage.seeing, f"stages[{number}].seeing", stage.seeing,
                    "false without a tabletop task and ground_truth: only the simulator knows where things are")
        require(1 <= self.goals <= LABELLED, "goals", self.goals, f"1 to {LABELLED}")
        total = self.episodes + sum(stage.episodes for stage in self.stages)
        require(total <= len(TRAINING_SEEDS), "episodes in all", total, f"at most {len(TRAINING_SEEDS)}")

    @property
    def policy_config(self) -> PolicyConfig:
        return config_from_mapping(self.policy, "policy")


@dataclass(frozen=True)
class Job:
    """One shard to record. checkpoint: the policy that drives; None is the expert. task: as in TrainingPlan."""

    folder: Path
    seeds: range
    robot: str
    checkpoint: Path | None = None
    task: str | None = None


def load_plan(path: str | Path) -> TrainingPlan:
    """The plan in a YAML file. Raises ConfigError."""
    plan = build(TrainingPlan, read_mapping(path), Path(path).name)
    plan.policy_config.require_runnable()
    return plan


def train(plan: TrainingPlan, folder: Path, demonstrations: Path | None = None) -> Path:
    """Run or resume `plan` in `folder`; returns the checkpoint's folder.

    demonstrations: where the expert's shards are (recorded if missing), for runs that share them; of it `plan` uses its
    first `episodes`. Raises ConfigError when `folder` was begun with another plan (`FREE` and more stages may differ).
    """
    import torch

    from robovlms_ros.policy.checkpoint import build_policy, save_policy
    from robovlms_ros.training.simulated.behaviour_cloning import initialise
    from robovlms_ros.training.simulated.trainer import Trainer

    torch.set_num_threads(1)
    _require_same(plan, folder)
    seeds = TRAINING_SEEDS
    store = demonstrations or folder / "demonstrations"
    jobs = shard_jobs(store, seeds[: plan.episodes], plan.shard, plan.robot, task=plan.task)
    record(jobs, plan.workers)
    shards = [job.folder for job in jobs]
    seeds = seeds[plan.episodes :]
    policy = build_policy(plan.policy_config, seed=plan.recipe.seed)
    initialise(policy, plan.recipe.seed)
    trainer = Trainer(policy, plan.recipe, folder / "run", _learner(plan), plan.save_every, plan.threads)
    begin = 0
    for number, stage in enumerate(plan.stages):
        if stage.episodes:
            driver = folder / "run" / f"step_{begin}"
            jobs = shard_jobs(folder / f"aggregation_{number}", seeds[: stage.episodes], plan.shard, plan.robot, driver,
                              plan.task)
            record(jobs, plan.workers)
            shards += [job.folder for job in jobs]
            seeds = seeds[stage.episodes :]
        end = begin + stage.steps
        if trainer.step < end:
            trainer.run(_data(plan, shards, stage), stage, begin, sum(stage.steps for stage in plan.stages))
        if trainer.step == end and not (folder / "run" / f"step_{end}" / "model.safetensors").exists():
            save_policy(trainer.averaged(), folder / "run" / f"step_{end}")
            trainer.restore_raw()
        begin = end
    return save_policy(trainer.averaged(), folder / "checkpoint")


def without_ground_truth(plan: TrainingPlan) -> TrainingPlan:
    """The same plan for what a real robot records alone: nothing is learned that only the simulator knows."""
    stages = tuple(stage for stage in plan.stages if not stage.seeing)
    return replace(plan, ground_truth=False, stages=stages)


def _require_same(plan: TrainingPlan, folder: Path) -> None:
    """Keep the plan in `folder`, or compare it with the one that is kept."""
    path, told = folder / "plan.json", json.loads(json.dumps(asdict(plan), default=str))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    shared = min(len(kept["stages"]), len(told["stages"]))
    kept["stages"], told["stages"] = kept["stages"][:shared], told["stages"][:shared]
    differing = [key for key in told if key not in FREE and kept.get(key) != told[key]]
    if differing:
        values = "; ".join(f"{key}: {kept.get(key)} then, {told[key]} now" for key in differing)
        raise ConfigError(
            f"{folder}: holds a run of another plan ({values[:400]}). Give another --output, or the plan that it was "
            "begun with."
        )


def _learner(plan: TrainingPlan) -> Any:
    """What turns the plan's windows into losses: called with a policy and a recipe."""
    from robovlms_ros.training.simulated.behaviour_cloning import Learner
    from robovlms_ros.training.simulated.task_cloning import TaskLearner

    if plan.task is None:
        return Learner
    return partial(TaskLearner, chosen=plan.goals, ground_truth=plan.ground_truth)


def _data(plan: TrainingPlan, shards: list[Path], stage: Stage) -> Any:
    """The frames of a stage: the demonstrations, and what policies drove before it."""
    from robovlms_ros.sim.expert import STEP
    from robovlms_ros.training.simulated.shards import DemonstrationSet, Windows
    from robovlms_ros.training.simulated.task_cloning import TaskWindows

    model = plan.policy_config.model
    stride = round((model.history_step or STEP) / STEP)
    kind: type = Windows if plan.task is None else TaskWindows
    data = DemonstrationSet(shards, stage.history or model.history_length, stride, kind)
    log.info("%d frames in %d shards", len(data), len(shards))
    return data


def shard_jobs(
    folder: Path, seeds: range, shard: int, robot: str, checkpoint: Path | None = None, task: str | None = None
) -> list[Job]:
    """The scenes of `seeds` as shards of `shard` episodes, each named after its first seed."""
    parts = [seeds[i : i + shard] for i in range(0, len(seeds), shard)]
    return [Job(folder / str(part[0]), part, robot, checkpoint, task) for part in parts]


def record(jobs: list[Job], workers: int) -> None:
    """Record the shards that are missing, in `workers` processes of one thread each."""
    missing = [job for job in jobs if not (job.folder / "frames.npz").exists()]
    if not missing:
        return
    log.info("recording %d shards of %d into %s", len(missing), len(jobs), missing[0].folder.parent)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
        for line in pool.map(record_job, missing):
            log.info("%s", line)


def record_job(job: Job) -> str:
    """Record one shard in this process; returns a line about it."""
    import torch

    from robovlms_ros.policy.checkpoint import load_policy
    from robovlms_ros.sim.rollout import ExpertSession, build_loop
    from robovlms_ros.sim.tasks.world import TaskWorld
    from robovlms_ros.sim.world import SimWorld
    from robovlms_ros.training.simulated.demonstrations import DemonstrationSettings, Recording, record_shard
    from robovlms_ros.training.simulated.task_demonstrations import SETTINGS, TaskRecording

    torch.set_num_threads(1)
    recording: Recording | None = None
    if job.task is None:
        world, settings = SimWorld(job.seeds[0]), DemonstrationSettings()
    else:
        world, settings = TaskWorld(job.seeds[0], task=job.task), SETTINGS
        recording = TaskRecording(world)
    loop = build_loop(world, job.robot)
    agent: Any = ExpertSession(world)
    if job.checkpoint is not None:
        agent = load_policy(job.checkpoint).new_session()
        settings = replace(settings, noise=0.3, slip=0.005)
    outcomes = record_shard(job.folder, job.seeds, loop, agent, settings, recording=recording)
    world.close()
    done = sum(outcome.success for outcome in outcomes)
    wrong = sum(outcome.wrong for outcome in outcomes)
    return f"{job.folder}: {done} of {len(outcomes)} done, {wrong} wrong"
