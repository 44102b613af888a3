"""What a step of a policy costs, on this machine: every path, against the machine's limits and against transformers by
hand, with random weights. Runs from a checkout with torch, transformers, numpy, Pillow, PyYAML and safetensors alone.

presets: table (default; tiny and mid sizes on a CPU, full sizes on a GPU), must-show (mid sizes on a CPU, thresholds),
gpu (full sizes, thresholds), curves (over history, cameras, chunk and robots), parts (each of the fast path's alone),
head (the LSTM head's window alone, thresholds).
Naming a backbone measures that instead. Exit code 1 when a threshold is missed or something could not be measured.
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from robovlms_ros.bench.policy.cases import Size
    from robovlms_ros.bench.policy.head_window import WindowCost
    from robovlms_ros.bench.policy.presets import Preset
    from robovlms_ros.bench.policy.results import PolicyRow, Results
    from robovlms_ros.bench.policy.thresholds import Check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms bench policy`."""
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--preset", choices=("table", "must-show", "gpu", "curves", "parts", "head"), default="table")
    parser.add_argument("--backbone", action="append", metavar="NAME", help="this one; may be given several times")
    parser.add_argument("--size", choices=("tiny", "mid", "full"), help="default mid on a CPU, full on a GPU")
    parser.add_argument("--head", default="lstm", help="lstm, gpt or fc (default lstm)")
    parser.add_argument("--cameras", type=numbers, default=[1], help="1 to 3, or several: 1,2,3 (default 1)")
    parser.add_argument("--history", type=numbers, default=[16], help="frames, or several: 1,16,64 (default 16)")
    parser.add_argument("--chunk", type=numbers, default=[10], help="steps of an answer, or several (default 10)")
    parser.add_argument("--robots", type=numbers, default=[1], help="sessions stepped together (paths fast and plain)")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 (default float32 on a CPU, bfloat16 on a GPU)")
    parser.add_argument("--paths", default="fast,plain,careful,logits",
                        help="also fast:PART+PART, fast:fp8, logits_float32, logits_bfloat16; ratios are to the first")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 7, in table and curves on a CPU 3)")
    parser.add_argument("--seconds", type=float, help="of each path, all rounds together (default: one step a round)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after every model")
    parser.add_argument("--resume", action="store_true", help="keep the rows that FILE has from this machine")


def run(args: argparse.Namespace) -> int:
    """Measure, print, judge."""
    import torch
    from transformers.utils import logging as transformers_logging

    from robovlms_ros.bench.policy.results import machine_of
    from robovlms_ros.bench.policy.run import run_preset

    transformers_logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = _chosen(args, device.type != "cpu")
    machine = machine_of(device)
    print(f"{machine['name']} ({machine['device']}), {machine['threads']} threads, torch {machine['torch']}, "
          f"transformers {machine['transformers']}; random weights", flush=True)
    results = run_preset(chosen, device, args.json, args.resume, _show)
    print(f"\n{_ceilings(results)}")
    for text in results.missing:
        print(f"not measured: {text}")
    checks = _checks(chosen, results, args.threads, device)
    for check in checks:
        print(check)
    if checks and args.json is not None:
        _append_checks(args.json, checks)
    return 0 if results.complete and all(check.kept for check in checks) else 1


def _show(rows: "list[PolicyRow]") -> None:
    """The rows of one model, as they come."""
    from robovlms_ros.bench.policy.results import table

    if rows:
        print(table(rows), flush=True)


def _chosen(args: argparse.Namespace, on_gpu: bool) -> "Preset":
    from robovlms_ros.bench.policy.cases import Case
    from robovlms_ros.bench.policy.presets import MeasurementJob, Preset, preset
    from robovlms_ros.bench.policy.variants import is_own

    chosen = preset(args.preset, on_gpu)
    if args.backbone:
        size: Size = args.size or ("full" if on_gpu else "mid")
        dtype = args.dtype or ("bfloat16" if on_gpu else "float32")
        axes = itertools.product(args.backbone, args.cameras, args.history, args.chunk, args.robots)
        jobs = []
        for backbone, cameras, history, chunk, robots in axes:
            case = Case(backbone, size, args.head, cameras, history, chunk, dtype)
            names = tuple(args.paths.split(","))
            own = tuple(name for name in names if robots == 1 or is_own(name))
            jobs.append(MeasurementJob(case, own, robots))
        chosen = Preset(tuple(jobs), replace(chosen.effort, rounds=7), tuple(dict.fromkeys((dtype, "float32"))))
    effort = chosen.effort
    given: dict[str, Any] = {"rounds": args.rounds, "seconds": args.seconds}
    return replace(chosen, effort=replace(effort, **{k: v for k, v in given.items() if v is not None}))


def _ceilings(results: "Results") -> str:
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in results.ceilings.flops.items())
    return f"measured limits: matrix product {rates}; copy {results.ceilings.bandwidth / 1e9:.3g} GB/s"


def _checks(chosen: "Preset", results: "Results", threads: int, device: "torch.device") -> "list[Check]":
    """The thresholds of the preset, with what they need beside the rows."""
    from robovlms_ros.bench.policy.memory import peak_memory
    from robovlms_ros.bench.policy.thresholds import cpu_checks, gpu_checks, head_checks

    if chosen.check == "gpu":
        return gpu_checks(results.rows)
    if chosen.check == "none":
        return []
    head = _head(device if chosen.check == "head" else None)
    if chosen.check == "head":
        return head_checks(head, device.type != "cpu")
    memory: dict[str, dict[str, int | None]] = {}
    for job in chosen.jobs:
        peaks = {path: peak_memory(job.case, path, threads) for path in ("fast", "careful")}
        memory[job.case.backbone] = peaks
        said = ", ".join(f"{path} {(peak or 0) / 1e9:.2f} GB" for path, peak in peaks.items())
        print(f"peak memory, {job.case.backbone}: {said}", flush=True)
    return cpu_checks(results.rows, head, memory)


def _head(device: "torch.device | None") -> "WindowCost":
    """The LSTM head's window, measured and printed; None is the CPU."""
    import torch

    from robovlms_ros.bench.policy.head_window import window_cost

    device = device or torch.device("cpu")
    head = window_cost(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    medians = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in head.seconds.items())
    print(f"LSTM head, W {head.window}: {medians}\nthe answer takes {head.growth:.2f} times W 1 and is {head.gain:.2f} "
          f"times as fast as again; with what it puts off {head.whole_growth:.2f} and {head.whole_gain:.2f}",
          flush=True)
    return head


def _append_checks(path: Path, checks: "list[Check]") -> None:
    """The judgements into the file, beside its rows."""
    import json

    content = json.loads(path.read_text(encoding="utf-8"))
    content["checks"] = [{"name": c.name, "value": c.value, "bound": c.bound, "kept": c.kept} for c in checks]
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
