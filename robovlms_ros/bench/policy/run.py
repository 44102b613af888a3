"""Jobs of the policy benchmark: presets, and one job after the other with finished rows kept on
disk."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch

from robovlms_ros.bench.policy.cases import BACKBONES, Case, Size
from robovlms_ros.bench.policy.measure import Effort, measure
from robovlms_ros.bench.policy.results import PolicyRow, Results, key_of, machine_of
from robovlms_ros.bench.policy.timing import FP8, measure_ceilings
from robovlms_ros.bench.policy.variants import WARM_UP
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
    are judged. limit: s after which no job is begun, None is none."""

    jobs: tuple[MeasurementJob, ...]
    effort: Effort
    dtypes: tuple[str, ...]
    check: Check = "none"
    limit: float | None = None


PRESETS = ("table", "must-show", "gpu", "curves", "parts", "head")
GPU_ONLY = ("cuda_graphs", "compile")
GPU_CASES = (("paligemma", 2), ("kosmos", 2), ("llava", 1))
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
        return _gpu_preset(on_gpu)
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


def _gpu_preset(on_gpu: bool) -> Preset:
    """The default path first: a run that is cut off goes on with --resume. Compiled code, which
    takes minutes, comes last. On a processor the same jobs on tiny models, to try the command."""
    size: Size = "full" if on_gpu else "tiny"
    dtype = "bfloat16" if on_gpu else "float32"
    effort = Effort(
        rounds=7 if on_gpu else 1,
        seconds=5.0 if on_gpu else 0.0,
        warm_up=12 if on_gpu else WARM_UP,
        consecutive=600 if on_gpu else 4,
        verify=True,
    )

    def job(backbone: str, cameras: int, *paths: str) -> MeasurementJob:
        return MeasurementJob(Case(backbone, size, cameras=cameras, dtype=dtype), paths)

    baselines = ("fast", *COMPARED[1:], "logits_float32")
    jobs = (
        *(job(backbone, cameras, *baselines) for backbone, cameras in GPU_CASES),
        *(job(backbone, cameras, "fast:fp8") for backbone, cameras in GPU_CASES),
        *(job(backbone, cameras, "fast:max") for backbone, cameras in GPU_CASES),
        job("llava", 2, "fast", "plain"),
    )
    dtypes = ("bfloat16", "float32", FP8) if on_gpu else ("float32",)
    return Preset(jobs, effort, dtypes, "gpu", 540.0 if on_gpu else None)


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
    """Measure every job; a path that fails, a job that is refused or runs out of memory or would
    begin after the limit is listed in `missing`, and the rest goes on.

    path: written as soon as times are there, and after every job. resume: rows that it holds from
    the same machine and software are kept. on_rows: called with the rows of each job.
    """
    begin = perf_counter()
    results = _begin(chosen, device, path, resume)

    def write() -> None:
        if path is not None:
            results.write(path)

    for job in chosen.jobs:
        wanted = {key_of(job.case, job.robots, name) for name in job.paths}
        have = [row for row in results.rows if row.key in wanted and row.flops]
        if len(have) < len(wanted):
            if chosen.limit is not None and perf_counter() - begin > chosen.limit:
                paths = ", ".join(job.paths)
                results.missing.append(f"{job.case.title}, {paths}: the time is over; go on with --resume")
                continue
            others = [row for row in results.rows if row.key not in wanted]
            have = _measured(job, device, results, chosen.effort, others, write)
            results.rows = [*others, *have]
            _release(device)
        on_rows(have)
        write()
    results.complete = not results.missing
    write()
    return results


def _measured(job: MeasurementJob, device: torch.device, results: Results, effort: Effort,
              others: list[PolicyRow], write: Callable[[], None]) -> list[PolicyRow]:
    """The rows of one job. others: those that the file holds beside them."""

    def failed(name: str, error: Exception) -> None:
        text = str(error).splitlines()[0] if str(error) else ""
        results.missing.append(f"{job.case.title}, {name}: {type(error).__name__}: {text}")

    def kept(rows: list[PolicyRow]) -> None:
        results.rows = [*others, *rows]
        write()

    try:
        return measure(job.case, device, results.ceilings, job.paths, effort, job.robots, failed, kept)
    except (RoboVLMsError, RuntimeError) as error:  # of the model itself; torch.OutOfMemoryError is one
        failed("model", error)
        return []


def _begin(chosen: Preset, device: torch.device, path: Path | None, resume: bool) -> Results:
    machine = machine_of(device)
    if resume and path is not None and path.is_file():
        earlier = Results.read(path)
        if earlier.machine == machine:
            earlier.missing = []
            earlier.complete = False
            return earlier
    return Results(machine, measure_ceilings(device, chosen.dtypes))


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
