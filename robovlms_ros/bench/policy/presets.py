"""What `robovlms bench policy` measures when it is not told otherwise."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from robovlms_ros.bench.policy.cases import BACKBONES, Case, Size
from robovlms_ros.bench.policy.measure import Effort
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
    """jobs, in order; effort of each; dtypes whose matrix rate is measured; check: which thresholds are judged."""

    jobs: tuple[MeasurementJob, ...]
    effort: Effort
    dtypes: tuple[str, ...]
    check: Check = "none"


PRESETS = ("table", "must-show", "gpu", "curves", "parts", "head")
GPU_ONLY = ("cuda_graphs", "compile")
COMPARED = ("fast", "plain", "careful", "logits")
HISTORIES, CAMERAS, CHUNKS, ROBOTS = (1, 4, 16, 64), (1, 2, 3), (10, 30, 50), (1, 2, 4, 8)


def preset(name: str, on_gpu: bool) -> Preset:
    """`table`: every family, tiny and mid size on a CPU, full size on a GPU. `must-show`: the CPU's thresholds. `gpu`:
    full sizes and the GPU's thresholds. `curves`: one family over history, cameras, chunk and robots. `parts`: each
    part of the fast path alone, against the plain path. `head`: the LSTM head's window alone, and its thresholds."""
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
