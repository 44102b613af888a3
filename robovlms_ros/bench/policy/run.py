"""All jobs of a benchmark, one after the other, with what is finished kept on disk."""

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from robovlms_ros.bench.policy.measure import measure
from robovlms_ros.bench.policy.presets import MeasurementJob, Preset
from robovlms_ros.bench.policy.results import PolicyRow, Results, machine_of
from robovlms_ros.bench.policy.timing import measure_ceilings
from robovlms_ros.core.types import RoboVLMsError


def run_preset(chosen: Preset, device: torch.device, path: Path | None, resume: bool,
               say: Callable[[list[PolicyRow]], None]) -> Results:
    """Measure every job; a job that runs out of memory or is refused is listed in `missing`, and the rest goes on.

    path: written after every job. resume: rows that it holds from the same machine and software are kept. say: called
    with the rows of each job.
    """
    results = _begin(chosen, device, path, resume)
    for job in chosen.jobs:
        wanted = {_key(job, name) for name in job.paths}
        have = [row for row in results.rows if row.key in wanted]
        if len(have) < len(wanted):
            results.rows = [row for row in results.rows if row.key not in wanted]
            try:
                have = measure(job.case, device, results.ceilings, job.paths, chosen.effort, job.robots)
                results.rows += have
            except (RoboVLMsError, torch.OutOfMemoryError) as error:
                results.missing.append(f"{job.case.title}: {error}")
                have = []
            _release(device)
        say(have)
        if path is not None:
            results.write(path)
    results.complete = not results.missing
    if path is not None:
        results.write(path)
    return results


def _begin(chosen: Preset, device: torch.device, path: Path | None, resume: bool) -> Results:
    machine = machine_of(device)
    if resume and path is not None and path.is_file():
        earlier = Results.read(path)
        if earlier.machine == machine:
            earlier.missing, earlier.complete = [], False
            return earlier
    return Results(machine, measure_ceilings(device, chosen.dtypes))


def _key(job: MeasurementJob, name: str) -> str:
    return f"{job.case.title}, {job.case.dtype}, {job.robots} x {name}"


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
