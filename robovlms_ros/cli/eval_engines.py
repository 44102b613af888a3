"""Engines for the jobs of `robovlms eval`: this process, processes of this machine, or on a Ray
cluster. The same jobs.

A job that finished is filed; one that was killed leaves nothing that counts, and is run again.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from robovlms_ros.cli.eval_setup import EvaluationJob, run_job
from robovlms_ros.core.schema import ConfigError


class Bar(Protocol):
    """Receiver of the jobs' progress."""

    def within(self, fraction: float) -> None: ...
    def done(self, name: str) -> None: ...


def run_jobs(jobs: Sequence[EvaluationJob], engine: str, at_a_time: int, bar: Bar) -> list[Path]:
    """Run all jobs; returns their result files in order. Raises ConfigError for an engine that is
    not installed."""
    if engine == "ray":
        _on_ray(jobs, bar)
    elif at_a_time == 1 or len(jobs) == 1:
        for job in jobs:
            run_job(job, bar.within)
            bar.done(str(job.bag))
    else:
        _in_processes(jobs, at_a_time, bar)
    return [job.part for job in jobs]


def _in_processes(jobs: Sequence[EvaluationJob], at_a_time: int, bar: Bar) -> None:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    with ProcessPoolExecutor(at_a_time, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_job, job): job for job in jobs}
        for future in as_completed(futures):
            future.result()
            bar.done(str(futures[future].bag))


def _on_ray(jobs: Sequence[EvaluationJob], bar: Bar) -> None:
    """On the cluster that RAY_ADDRESS names, else on one that starts here. It shares the files and
    the installation."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray: Ray is not installed. `pip install robovlms_ros[fleet]` (or `pip install ray`), or use "
            "--jobs N on this machine."
        ) from error
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    gpus = 1 if jobs[0].parameters.device != "cpu" and ray.cluster_resources().get("GPU") else 0
    remote: Callable[..., Any] = ray.remote(num_cpus=1, num_gpus=gpus)(run_job_in).remote
    waiting = {remote(os.getcwd(), job): job for job in jobs}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        ray.get(ready[0])
        bar.done(str(waiting.pop(ready[0]).bag))


def run_job_in(folder: str, job: EvaluationJob) -> Path:
    """`run_job` where the paths of the command line mean what they mean there."""
    os.chdir(folder)
    return run_job(job)
