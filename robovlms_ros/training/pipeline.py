"""The whole way to the demo's checkpoint: demonstrations, behaviour cloning, rounds of dataset aggregation.

Everything lies in one folder and is resumable: `demonstrations/` and `aggregation_N/` hold shards, `run/` the trainer's
state and curve, `checkpoint/` the result. What is finished is not done again.
"""

import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robovlms_ros.config import PolicyConfig, config_from_mapping
from robovlms_ros.schema import build, read_mapping, require
from robovlms_ros.sim.task import TRAINING_SEEDS
from robovlms_ros.training.behaviour_cloning import Recipe, Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPlan:
    """One training run, as its YAML has it.

    policy: a policy's configuration (PolicyConfig). robot: name or path of the robot's YAML. episodes: demonstrations
    of the expert. shard: episodes per shard. workers: processes that record. stages: see `Stage`.
    """

    policy: dict[str, Any]
    stages: tuple[Stage, ...]
    recipe: Recipe = field(default_factory=Recipe)
    robot: str = "panda"
    episodes: int = 300
    shard: int = 10
    workers: int = 2

    def __post_init__(self) -> None:
        require(len(self.stages) > 0, "stages", list(self.stages), "at least one")
        first = self.stages[0].episodes
        require(first == 0, "stages[0].episodes", first, "0: an untrained policy drives nowhere")
        require(1 <= self.shard <= self.episodes, "shard", self.shard, f"1 to episodes = {self.episodes}")
        total = self.episodes + sum(stage.episodes for stage in self.stages)
        require(total <= len(TRAINING_SEEDS), "episodes in all", total, f"at most {len(TRAINING_SEEDS)}")

    @property
    def policy_config(self) -> PolicyConfig:
        return config_from_mapping(self.policy, "policy")


@dataclass(frozen=True)
class Job:
    """One shard to record. checkpoint: the policy that drives; None is the expert."""

    folder: Path
    seeds: range
    robot: str
    checkpoint: Path | None = None


def load_plan(path: str | Path) -> TrainingPlan:
    """The plan in a YAML file. Raises ConfigError."""
    plan = build(TrainingPlan, read_mapping(path), Path(path).name)
    plan.policy_config.require_runnable()
    return plan


def train(plan: TrainingPlan, folder: Path) -> Path:
    """Run or resume `plan` in `folder`; returns the checkpoint's folder."""
    import torch

    from robovlms_ros.policy.checkpoint import build_policy, save_policy
    from robovlms_ros.training.behaviour_cloning import initialise
    from robovlms_ros.training.trainer import Trainer

    torch.set_num_threads(1)
    seeds = TRAINING_SEEDS
    record(shard_jobs(folder / "demonstrations", seeds[: plan.episodes], plan.shard, plan.robot), plan.workers)
    seeds = seeds[plan.episodes :]
    policy = build_policy(plan.policy_config, seed=plan.recipe.seed)
    initialise(policy, plan.recipe.seed)
    trainer = Trainer(policy, plan.recipe, folder / "run")
    begin = 0
    for number, stage in enumerate(plan.stages):
        if stage.episodes:
            driver = folder / "run" / f"step_{begin}"
            jobs = shard_jobs(folder / f"aggregation_{number}", seeds[: stage.episodes], plan.shard, plan.robot, driver)
            record(jobs, plan.workers)
            seeds = seeds[stage.episodes :]
        end = begin + stage.steps
        if trainer.step < end:
            trainer.run(_data(plan, folder, number), stage, begin)
        if trainer.step == end and not (folder / "run" / f"step_{end}" / "model.safetensors").exists():
            save_policy(trainer.averaged(), folder / "run" / f"step_{end}")
            trainer.restore_raw()
        begin = end
    return save_policy(trainer.averaged(), folder / "checkpoint")


def _data(plan: TrainingPlan, folder: Path, stage: int) -> Any:
    """The data of the stage: the demonstrations, and what policies drove before it."""
    from robovlms_ros.sim.expert import STEP
    from robovlms_ros.training.dataset import DemonstrationSet, find_shards

    shards = find_shards(folder / "demonstrations")
    for number in range(1, stage + 1):
        shards += find_shards(folder / f"aggregation_{number}")
    model = plan.policy_config.model
    stride = round((model.history_step or STEP) / STEP)
    data = DemonstrationSet(shards, model.history_length, stride)
    log.info("%d frames in %d shards", len(data), len(shards))
    return data


def shard_jobs(folder: Path, seeds: range, shard: int, robot: str, checkpoint: Path | None = None) -> list[Job]:
    """The scenes of `seeds` as shards of `shard` episodes, each named after its first seed."""
    parts = [seeds[i : i + shard] for i in range(0, len(seeds), shard)]
    return [Job(folder / str(part[0]), part, robot, checkpoint) for part in parts]


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
    from robovlms_ros.sim.world import SimWorld
    from robovlms_ros.training.demonstrations import DemonstrationSettings, record_shard

    torch.set_num_threads(1)
    world = SimWorld(job.seeds[0])
    loop = build_loop(world, job.robot)
    agent: Any = ExpertSession(world)
    settings = DemonstrationSettings()
    if job.checkpoint is not None:
        agent = load_policy(job.checkpoint).new_session()
        settings = DemonstrationSettings(noise=0.3, slip=0.005)
    outcomes = record_shard(job.folder, job.seeds, loop, agent, settings)
    world.close()
    lifted = sum(outcome.success for outcome in outcomes)
    wrong = sum(outcome.wrong for outcome in outcomes)
    return f"{job.folder}: {lifted} of {len(outcomes)} lifted, {wrong} wrong"
