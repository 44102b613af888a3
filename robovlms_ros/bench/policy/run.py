"""Jobs of the policy benchmark: presets, and one job after the other with finished rows kept on
disk."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from robovlms_ros.bench.policy.cases import BACKBONES, Case, Size
from robovlms_ros.bench.policy.measure import Effort, measure
from robovlms_ros.bench.policy.results import PolicyRow, Results, machine_of
from robovlms_ros.bench.policy.timing import measure_ceilings
from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.inference.optimized.options import PARTS

Check = Literal["none", "cpu", "gpu", "head"]


@dataclass(frozen=True)
class MeasurementJob:
    """One call of `measure`. robots: sessions stepped together."""

    case: Case
    paths: tuple[str, ...]
    robots: int = 1


@dataclass(frozen=True)
class Preset:
    """jobs, in order; effort of each; dtypes whose matrix rate is measured; check: which thresholds
    are judged."""

    jobs: tuple[MeasurementJob, ...]
    effort: Effort
    dtypes: tuple[str, ...]
    check: Check = "none"


PRESETS = ("table", "must-show", "gpu", "curves", "parts", "head")
GPU_ONLY = ("cuda_graphs", "compile")
COMPARED = ("fast", "plain", "careful", "logits")
HISTORIES = (1, 4, 16, 64)
CAMERAS = (1, 2, 3)
CHUNKS = (10, 30, 50)
ROBOTS = (1, 2, 4, 8)


def preset(name: str, on_gpu: bool) -> Preset:
    """`table`: every family, tiny and mid size on a CPU, full size on a GPU. `must-show`: the CPU's
    thresholds. `gpu`: full sizes and the GPU's thresholds. `curves`: one family over history,
    cameras, chunk and robots. `parts`: each part of the fast path alone, against the plain path.
    `head`: the LSTM head's window alone, and its thresholds."""
    size: Size = "full" if on_gpu else "mid"
    dtype = "bfloat16" if on_gpu else "float32"
    effort = Effort(seconds=8.0, warm_up=12) if on_gpu else Effort()
    dtypes = ("bfloat16", "float32") if on_gpu else ("float32",)
    if name == "must-show":
        jobs = [MeasurementJob(Case(b), ("fast", "careful") + ("logits",) * (b == "paligemma")) for b in BACKBONES]
        return Preset(tuple(jobs), Effort(rounds=7), ("float32",), "cpu")
    if name == "gpu":
        return Preset(tuple(_gpu_jobs()), Effort(seconds=12.0, warm_up=12), ("bfloat16", "float32"), "gpu")
    if name == "head":
        return Preset((), effort, dtypes, "head")
    if name == "curves":
        return Preset(tuple(_curves(Case("kosmos", size, dtype=dtype))), replace(effort, rounds=3), dtypes)
    if name == "parts":
        left_out = () if on_gpu else GPU_ONLY
        alone = ("plain", *(f"fast:{part}" for part in PARTS if part not in left_out), "fast")
        jobs = [MeasurementJob(Case(b, size, cameras=2, dtype=dtype), alone) for b in ("kosmos", "paligemma")]
        return Preset(tuple(jobs), effort, dtypes)
    if on_gpu:
        paths = (*COMPARED, "logits_float32")
        return Preset(tuple(MeasurementJob(Case(b, "full", dtype=dtype), paths) for b in BACKBONES), effort, dtypes)
    tiny = [MeasurementJob(Case(b, "tiny", cameras=2), COMPARED) for b in BACKBONES]
    mid = [MeasurementJob(Case(b, "mid"), COMPARED) for b in BACKBONES]
    return Preset((*tiny, *mid), replace(effort, rounds=3), dtypes)


def _gpu_jobs() -> Iterator[MeasurementJob]:
    paths = (*COMPARED, "logits_float32")
    for backbone, cameras in (("kosmos", 2), ("paligemma", 2), ("llava", 1), ("llava", 2)):
        yield MeasurementJob(Case(backbone, "full", cameras=cameras, dtype="bfloat16"), paths)


def _curves(base: Case) -> Iterator[MeasurementJob]:
    """One thing varied at a time; the base itself once."""
    own = ("fast", "plain")
    yield MeasurementJob(base, own)
    yield from (MeasurementJob(replace(base, history=w), own) for w in HISTORIES if w != base.history)
    yield from (MeasurementJob(replace(base, cameras=c), own) for c in CAMERAS if c != base.cameras)
    yield from (MeasurementJob(replace(base, chunk=n), own) for n in CHUNKS if n != base.chunk)
    yield from (MeasurementJob(base, ("fast",), robots) for robots in ROBOTS if robots > 1)


def run_preset(chosen: Preset, device: torch.device, path: Path | None, resume: bool,
               on_rows: Callable[[list[PolicyRow]], None]) -> Results:
    """Measure every job; a job that runs out of memory or is refused is listed in `missing`, and
    the rest goes on.

    path: written after every job. resume: rows that it holds from the same machine and software are
    kept. on_rows: called with the rows of each job.
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
        on_rows(have)
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
            earlier.missing = []
            earlier.complete = False
            return earlier
    return Results(machine, measure_ceilings(device, chosen.dtypes))


def _key(job: MeasurementJob, name: str) -> str:
    return f"{job.case.title}, {job.case.dtype}, {job.robots} x {name}"


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
