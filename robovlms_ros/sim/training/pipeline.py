"""The whole way to a simulated arm's checkpoint: demonstrations, behaviour cloning, rounds of
dataset aggregation.

Everything lies in one folder and is resumable: `demonstrations/` and `aggregation_N/` hold shards,
`run/` the state and curve of the training engine (`training.engine.stages`), `checkpoint/` the
result. What is finished is not done again. The processors record the shards of a stage while the
stage before it trains, where the plan requires it.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from robovlms_ros.core.resources import find_checkpoint
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.sim.tasks.base import CUBES, TRAINING_SEEDS
from robovlms_ros.sim.training.plans import Recipe, TrainingPlan, require_same
from robovlms_ros.sim.training.recording import RecordingJob, glimpse_jobs, record, shard_jobs

if TYPE_CHECKING:
    from robovlms_ros.training.engine.stages import StageTrainer

log = logging.getLogger(__name__)


def train(plan: TrainingPlan, folder: Path, demonstrations: Path | None = None, device: str = "cpu") -> Path:
    """Run or resume `plan` in `folder`; returns the checkpoint's folder.

    demonstrations: where the expert's shards are (recorded if missing), for runs that share them;
    of it `plan` uses its first episodes. device: where it trains; recording is the processors'
    work. Raises ConfigError when `folder` was begun with another plan (`FREE` and more stages may
    differ).
    """
    import torch

    from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy, save_policy
    from robovlms_ros.sim.tasks.expert import STEP
    from robovlms_ros.sim.training.shards import DemonstrationSet, ShardFrames
    from robovlms_ros.training.engine.trainable import initialise

    torch.set_num_threads(1)
    require_same(plan, folder)
    work = shards_of_stages(plan, folder, demonstrations or folder / "demonstrations")
    if plan.start is None:
        policy = build_policy(plan.policy_config, seed=plan.recipe.seed)
        initialise(policy, plan.recipe.seed)
    else:
        policy = load_policy(find_checkpoint(plan.start), plan.policy_config)
        if not (step_folder(folder, 0) / "model.safetensors").exists():
            save_policy(policy, step_folder(folder, 0))
    trainer = build_trainer(
        policy,
        plan.recipe,
        folder / "run",
        _objective(plan, device),
        plan.save_every,
        plan.threads,
        device,
    )
    frames = ShardFrames(trainer.module, device)
    model = plan.policy_config.model
    stride = round((model.history_step or STEP) / STEP)
    begin = 0
    with ThreadPoolExecutor(1) as background, _set_at_the_end(Event()) as stop:
        for number, stage in enumerate(plan.stages):
            record(work[number].jobs, plan.workers)
            frames.add([job.folder for job in work[number].jobs])
            log.info("%d frames in %d shards", len(frames), frames.shards)
            coming = [job for each in work[number + 1 : number + 2] for job in each.ahead]
            ahead = background.submit(record, coming, plan.workers, stop)
            end = begin + stage.steps
            if trainer.step < end:
                data = DemonstrationSet(frames, stage.history or model.history_length, stride)
                trainer.run(data, stage, begin, sum(stage.steps for stage in plan.stages))
            if trainer.step == end and not (step_folder(folder, end) / "model.safetensors").exists():
                save_averaged(trainer, step_folder(folder, end))
            begin = end
            ahead.result()
    return save_averaged(trainer, folder / "checkpoint")


def build_trainer(
    policy: Any,
    recipe: Recipe,
    folder: Path,
    objective: Callable[[Any, Recipe], Any],
    save_every: int = 200,
    threads: int = 1,
    device: str = "cpu",
) -> "StageTrainer":
    """The engine's trainer by a recipe. objective: makes the objective of a policy and a recipe;
    its heads are drawn by the recipe's seed."""
    import torch

    from robovlms_ros.training.engine.stages import StageTrainer

    if torch.device(device).type != "cpu":
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(recipe.seed)
    made = objective(policy.to(device), recipe)
    return StageTrainer(made, recipe.training(save_every), folder, recipe.schedule, device, threads)


def save_averaged(trainer: "StageTrainer", folder: Path) -> Path:
    """Write the policy with its averaged weights; returns the folder."""
    from robovlms_ros.checkpoints.checkpoint import save_policy

    with trainer.averaged():
        trainer.policy.is_random = False
        return save_policy(trainer.policy.eval(), folder)


@contextmanager
def _set_at_the_end(event: Event) -> Iterator[Event]:
    """So that a run that fails does not go on recording for a stage that never comes."""
    try:
        yield event
    finally:
        event.set()


@dataclass(frozen=True)
class StageShards:
    """Data added when a stage begins. ahead: those that may be recorded while the stage
    before it runs."""

    jobs: list[RecordingJob]
    ahead: list[RecordingJob]


def shards_of_stages(plan: TrainingPlan, folder: Path, demonstrations: Path) -> list[StageShards]:
    """The shards of each stage, whose scenes follow those of the stage before, so that further
    stages change none."""
    seeds = TRAINING_SEEDS[plan.first_scene :]
    starts = [0, *accumulate(stage.steps for stage in plan.stages)]
    work = []
    for number, stage in enumerate(plan.stages):
        count = stage.demonstrations + (plan.episodes if number == 0 else 0)
        shown = shard_jobs(
            demonstrations, seeds[:count], plan.shard, plan.robot, plan.task, paired=plan.paired
        )
        driver = step_folder(folder, starts[number - 1 if stage.ahead else number])
        seeds = seeds[count:]
        shown += glimpse_jobs(folder / f"glimpses_{number}", seeds[: stage.glimpses], plan.robot, plan.task)
        seeds = seeds[stage.glimpses :]
        own = shard_jobs(
            folder / f"aggregation_{number}",
            seeds[: stage.episodes],
            plan.shard,
            plan.robot,
            plan.task,
            driver,
        )
        work.append(StageShards([*shown, *own], [*shown, *own] if stage.ahead else shown))
        seeds = seeds[stage.episodes :]
    return work


def default_device(name: str | None) -> str:
    """The device of this name; without one a GPU where there is one. Raises ConfigError for one
    that is not there."""
    import torch

    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(
            f"--device {device}: torch {torch.__version__} cannot use it here ({str(error).splitlines()[0]}). Use cpu, "
            "or leave it out."
        ) from error
    return device


def step_folder(folder: Path, step: int) -> Path:
    """Folder of the averaged policy at a step."""
    return folder / "run" / f"step_{step}"


def _objective(plan: TrainingPlan, device: str) -> Any:
    """Makes the plan's objective of a policy and a recipe."""
    from robovlms_ros.sim.training.objectives import CubeObjective, TaskObjective

    if plan.task == CUBES:
        return partial(CubeObjective, ground_truth=plan.ground_truth, hindsight=plan.hindsight)
    compiled = plan.compile and device != "cpu"
    return partial(
        TaskObjective, chosen=plan.goals, ground_truth=plan.ground_truth, compiled=compiled
    )
