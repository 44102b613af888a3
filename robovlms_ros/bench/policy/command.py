"""`robovlms bench policy`: from the options to a preset, its measurement and its verdict."""

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from robovlms_ros.bench.policy import head_window
from robovlms_ros.bench.policy.cases import Case, Size
from robovlms_ros.bench.policy.head_window import WindowCost
from robovlms_ros.bench.policy.models import peak_memory
from robovlms_ros.bench.policy.results import PolicyRow, Results, machine_of, table
from robovlms_ros.bench.policy.run import MeasurementJob, Preset, preset, run_preset
from robovlms_ros.bench.policy.thresholds import Check, cpu_checks, gpu_checks, head_checks
from robovlms_ros.bench.policy.variants import is_own
from robovlms_ros.core.structured_text import write_json


def run(args: argparse.Namespace) -> int:
    """Measure, print, judge; returns 1 when a threshold is missed or a case was not measured."""
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = _chosen(args, device.type != "cpu")
    machine = machine_of(device)
    print(
        f"{machine['name']} ({machine['device']}), {machine['threads']} threads, torch "
        f"{machine['torch']}, transformers {machine['transformers']}; random weights",
        flush=True,
    )
    results = run_preset(chosen, device, args.json, args.resume, _show)
    if chosen.check == "gpu":
        print(table(sorted(results.rows, key=lambda row: (row.case.title, row.path))))
    print(f"\n{_ceilings(results)}")
    for text in results.missing:
        print(f"not measured: {text}")
    checks = _checks(chosen, results, args.threads, device)
    for check in checks:
        print(check)
    if checks and args.json is not None:
        _append_checks(args.json, checks)
    return 0 if results.complete and all(check.kept for check in checks) else 1


def _show(rows: list[PolicyRow]) -> None:
    """The rows of one model, as they come."""
    if rows:
        print(table(rows), flush=True)


def _chosen(args: argparse.Namespace, on_gpu: bool) -> Preset:
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
        dtypes = tuple(dict.fromkeys((dtype, "float32")))
        chosen = Preset(tuple(jobs), replace(chosen.effort, rounds=7), dtypes)
    options = {"rounds": args.rounds, "seconds": args.seconds}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    return replace(chosen, effort=replace(chosen.effort, **given))


def _ceilings(results: Results) -> str:
    ceilings = results.ceilings
    rates = [f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in ceilings.flops.items()]
    copy = f"copy {ceilings.bandwidth / 1e9:.3g} GB/s"
    return f"measured limits: matrix product {', '.join(rates)}; {copy}"


def _checks(chosen: Preset, results: Results, threads: int, device: torch.device) -> list[Check]:
    """The thresholds of the preset, with what they need beside the rows."""
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
        shown = ", ".join(f"{path} {(peak or 0) / 1e9:.2f} GB" for path, peak in peaks.items())
        print(f"peak memory, {job.case.backbone}: {shown}", flush=True)
    return cpu_checks(results.rows, head, memory)


def _head(device: torch.device | None) -> WindowCost:
    """The LSTM head's window, measured and printed; None is the CPU."""
    device = device or torch.device("cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    head = head_window.window_cost(device, dtype)
    medians = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in head.seconds.items())
    print(
        f"LSTM head, W {head.window}: {medians}\nthe answer takes {head.growth:.2f} times W 1 and "
        f"is {head.gain:.2f} times as fast as again; with deferred updates {head.whole_growth:.2f} "
        f"and {head.whole_gain:.2f}",
        flush=True,
    )
    return head


def _append_checks(path: Path, checks: list[Check]) -> None:
    """Write the judgements into the file, beside its rows."""
    content = json.loads(path.read_text(encoding="utf-8"))
    names = ("name", "value", "bound", "kept")
    content["checks"] = [{name: getattr(check, name) for name in names} for check in checks]
    write_json(path, content)
