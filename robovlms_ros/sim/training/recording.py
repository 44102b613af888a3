"""Recording of shards in several processes: the expert's, or those that a policy drives."""

import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

GLIMPSES_PER_SHARD = 100
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordingJob:
    """One shard to record. task, paired: as in TrainingPlan. checkpoint: the policy that drives;
    None is the expert. glimpse: of each scene one frame, at a moment, and not an episode."""

    folder: Path
    seeds: range
    robot: str
    task: str
    checkpoint: Path | None = None
    glimpse: bool = False
    paired: bool = False


def shard_jobs(
    folder: Path, seeds: range, shard: int, robot: str, task: str, checkpoint: Path | None = None,
    paired: bool = False,
) -> list[RecordingJob]:
    """The scenes of `seeds` as shards of `shard` episodes, each named after its first seed."""
    parts = [seeds[i : i + shard] for i in range(0, len(seeds), shard)]
    return [
        RecordingJob(folder / str(part[0]), part, robot, task, checkpoint, paired=paired)
        for part in parts
    ]


def glimpse_jobs(folder: Path, seeds: range, robot: str, task: str) -> list[RecordingJob]:
    """One frame of each of the scenes of `seeds`."""
    return [
        replace(job, glimpse=True)
        for job in shard_jobs(folder, seeds, GLIMPSES_PER_SHARD, robot, task)
    ]


def record(jobs: list[RecordingJob], workers: int, stop: Event | None = None) -> None:
    """Record the shards that are missing, in `workers` processes of one thread each (0: see
    TrainingPlan). stop: once it is set, no other shard is begun."""
    missing = [job for job in jobs if not (job.folder / "frames.npz").exists()]
    if not missing:
        return
    log.info("recording %d shards of %d into %s", len(missing), len(jobs), missing[0].folder.parent)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    workers = workers or max((os.cpu_count() or 2) - 1, 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
        for shard in [pool.submit(record_job, job) for job in missing]:
            while not wait([shard], timeout=0.5).done:
                if stop is not None and stop.is_set():
                    pool.shutdown(cancel_futures=True)
                    return
            log.info("%s", shard.result())


def record_job(job: RecordingJob) -> str:
    """Record one shard in this process; returns a line about it."""
    import torch

    from robovlms_ros.checkpoints.checkpoint import load_policy
    from robovlms_ros.inference.session import PolicySession
    from robovlms_ros.sim.rollout import ExpertSession, build_loop
    from robovlms_ros.sim.tasks.base import CUBES
    from robovlms_ros.sim.training.demonstrations import (
        CUBE_SETTINGS,
        GLIMPSE,
        TASK_SETTINGS,
        Recording,
        record_shard,
    )
    from robovlms_ros.sim.world import SimWorld

    torch.set_num_threads(1)
    world = SimWorld(job.seeds[0], task=job.task)
    settings = GLIMPSE if job.glimpse else CUBE_SETTINGS if job.task == CUBES else TASK_SETTINGS
    recording = Recording(world, moments=job.glimpse, paired=job.paired)
    loop = build_loop(world, job.robot)
    agent: Any = ExpertSession(world)
    if job.checkpoint is not None:
        agent = PolicySession(load_policy(job.checkpoint))
        settings = replace(settings, noise=0.3, slip=0.005)
    outcomes = record_shard(job.folder, job.seeds, loop, agent, settings, recording)
    world.close()
    if job.glimpse:
        return f"{job.folder}: {len(outcomes)} glimpses"
    done = sum(outcome.success for outcome in outcomes)
    wrong = sum(outcome.wrong for outcome in outcomes)
    return f"{job.folder}: {done} of {len(outcomes)} done, {wrong} wrong"
