"""How smoothly each way of sending chunks moves an arm under inference latency: one joint, many seeds at once.

The intent is q(t) = 0.5 sin(2 pi 0.4 t) rad; each chunk is the intent plus its own bias, normal with a standard
deviation of 20 mrad, as chunks of a policy disagree. A controller at 500 Hz drives a plant that follows its command
40 ms later. One inference is in flight; its image is taken when the one before is ready, and 100 ms apart at least.
All seeds share the times of images and chunks, so that one controller with a joint per seed runs them all.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from robovlms_ros.bench.stream_senders import DEFAULT, SENDERS, Message, Sender
from robovlms_ros.control.spline import Array, central_differences
from robovlms_ros.control.trajectory_controller_model import (
    TrajectoryController,
    TrajectoryRejected,
)
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.text_table import aligned
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, JointPlan, RobotState

TICK_NS = 2_000_000
PLANT_DELAY = 20  # ticks
SECONDS, SETTLING = 12.0, 2.0
REPLAN = 0.1  # s, shortest time between images
BIAS = 0.02  # rad
START_NS = 1000 * NANOSECONDS
JITTER_GROUPS = 5  # seeds of one group share their latencies

LATENCIES, HORIZONS, RATES = (0.05, 0.15, 0.3), (30, 10), (30, 5)


@dataclass(frozen=True)
class StreamCondition:
    """latency: s from image to chunk. jitter: s, half the width of the latency's uniform spread. rate: steps per s."""

    latency: float
    horizon: int
    rate: int
    interpolate_from_desired_state: bool = False
    jitter: float = 0.0


@dataclass(frozen=True)
class StreamRow:
    """One strategy under one condition, over the seeds.

    worst_step, worst_step_mean: largest change of the command per 2 ms tick, mrad: (median, 95th percentile), mean.
    rms: root mean square of command minus intent, mrad, mean. max_acc, max_jerk: of the command, rad/s^2 and
    rad/s^3, mean over seeds of the largest. starved: part of the time at which no step of the policy was left.
    """

    strategy: str
    condition: StreamCondition
    worst_step: tuple[float, float]
    worst_step_mean: float
    rms: float
    max_acc: float
    max_jerk: float
    starved: float

    @property
    def default(self) -> bool:
        """Whether this is what a user gets who sets nothing."""
        return self.strategy == DEFAULT


REFERENCE = StreamCondition(0.15, 30, 30)
LIMITS = {"median worst step": 3.3, "95th percentile of the worst step": 3.8, "mean RMS": 13.5}  # mrad


def intent(seconds: Array) -> Array:
    """The policy's intent, rad, at times since the start."""
    return 0.5 * np.sin(2 * np.pi * 0.4 * seconds)


def conditions() -> Iterator[StreamCondition]:
    """The table's conditions: the reference, its jitter, then the others."""
    yield REFERENCE
    yield StreamCondition(0.15, 30, 30, jitter=0.1)
    for rate in RATES:
        for horizon in HORIZONS:
            for latency in LATENCIES:
                for desired in (False, True):
                    condition = StreamCondition(latency, horizon, rate, desired)
                    if condition != REFERENCE:
                        yield condition


def measure(strategy: str, condition: StreamCondition, seeds: int = 50) -> StreamRow:
    """One row of the table."""
    groups = min(JITTER_GROUPS, seeds) if condition.jitter else 1
    runs = [simulate(strategy, condition, range(group, seeds, groups)) for group in range(groups)]
    commands = np.concatenate([run[0] for run in runs], axis=1)  # (ticks, seeds)
    first = round(SETTLING * NANOSECONDS / TICK_NS)
    error = commands[first:] - intent(_ticks_ns(first, len(commands)) / NANOSECONDS)[:, None]
    steps = np.abs(np.diff(commands[first - 1 :], axis=0)).max(axis=0) * 1e3
    tick = TICK_NS / NANOSECONDS
    return StreamRow(
        strategy,
        condition,
        (float(np.median(steps)), float(np.percentile(steps, 95))),
        float(steps.mean()),
        float(np.sqrt((error**2).mean(axis=0)).mean() * 1e3),
        float(np.abs(np.diff(commands[first - 2 :], n=2, axis=0)).max(axis=0).mean() / tick**2),
        float(np.abs(np.diff(commands[first - 3 :], n=3, axis=0)).max(axis=0).mean() / tick**3),
        float(np.mean([run[1][first:].mean() for run in runs])),
    )


def simulate(strategy: str, condition: StreamCondition, seeds: Sequence[int]) -> tuple[Array, Array]:
    """The controller's commands (ticks, seeds), rad, and (ticks,) whether no step of the policy was left."""
    joints = tuple(f"seed{int(seed)}" for seed in seeds)
    controller = TrajectoryController(joints, condition.interpolate_from_desired_state)
    sender = SENDERS[strategy](joints)
    chunks = _chunks(condition, seeds)
    ready_ns, plan = next(chunks)
    at_rest = np.zeros(len(joints))
    ticks = round(SECONDS * NANOSECONDS / TICK_NS)
    commands, starved = np.zeros((ticks, len(joints))), np.zeros(ticks, dtype=bool)
    for k in range(ticks):
        now_ns = START_NS + k * TICK_NS
        measured = commands[k - PLANT_DELAY] if k >= PLANT_DELAY else at_rest
        if now_ns >= ready_ns:
            _send(controller, sender, sender.on_chunk(plan, now_ns, RobotState(now_ns, measured)), now_ns)
            ready_ns, plan = next(chunks)
        _send(controller, sender, sender.on_tick(now_ns), now_ns)
        commands[k] = controller.update(now_ns, TICK_NS, measured, at_rest)[0]
        starved[k] = now_ns > sender.covered_until_ns
    return commands, starved


def _send(controller: TrajectoryController, sender: Sender, message: Message | None, now_ns: int) -> None:
    if message is not None:
        with suppress(TrajectoryRejected):  # as on a topic: the sender is never told
            controller.accept(message, now_ns)


def _chunks(condition: StreamCondition, seeds: Sequence[int]) -> Iterator[tuple[int, JointPlan]]:
    """When each chunk is ready (ns), and the chunk, for ever; a joint per seed."""
    biases = [np.random.default_rng(np.random.SeedSequence(0, spawn_key=(int(seed),))) for seed in seeds]
    latencies = np.random.default_rng(1000 + int(seeds[0]))
    spec = ActionSpec("joint_position", "base", "rotation_vector", "chained", 1 / condition.rate)
    offsets_ns = np.round(np.arange(1, condition.horizon + 1) / condition.rate * NANOSECONDS).astype(np.int64)
    image_ns = START_NS
    while True:
        latency = condition.latency + latencies.uniform(-1, 1) * condition.jitter
        ready_ns = image_ns + round(latency * NANOSECONDS)
        times_ns = image_ns + offsets_ns
        bias = np.array([rng.normal(0, BIAS) for rng in biases])
        positions = intent((times_ns - START_NS) / NANOSECONDS)[:, None] + bias
        chunk = ActionChunk(image_ns, positions, spec, "", "bench")
        yield ready_ns, JointPlan(times_ns, positions, central_differences(times_ns, positions), chunk=chunk)
        image_ns = max(image_ns + round(REPLAN * NANOSECONDS), ready_ns)


def _ticks_ns(first: int, end: int) -> Array:
    return np.arange(first, end, dtype=np.float64) * TICK_NS


def missed(rows: Sequence[StreamRow]) -> list[str]:
    """The thresholds that the default strategy does not keep under the reference condition."""
    row = next(row for row in rows if row.default and row.condition == REFERENCE)
    values = dict(zip(LIMITS, (*row.worst_step, row.rms), strict=True))
    return [
        f"{name} {values[name]:.2f} mrad, at most {limit}" for name, limit in LIMITS.items() if values[name] > limit
    ]


def as_json(row: StreamRow) -> dict[str, object]:
    """The row as plain values."""
    condition = row.condition
    return {
        "strategy": row.strategy,
        "latency_ms": round(condition.latency * 1e3),
        "jitter_ms": round(condition.jitter * 1e3),
        "chunk": condition.horizon,
        "rate_hz": condition.rate,
        "interpolate_from_desired_state": condition.interpolate_from_desired_state,
        "worst_step_mrad": {"median": row.worst_step[0], "p95": row.worst_step[1], "mean": row.worst_step_mean},
        "rms_mrad_mean": row.rms,
        "max_acc": row.max_acc,
        "max_jerk": row.max_jerk,
        "starved_fraction": row.starved,
        "default": row.default,
    }


def run(args: argparse.Namespace) -> int:
    """Print a table per condition; returns 1 when a threshold is missed."""
    print(
        f"Commands in mrad per 2 ms tick, RMS in mrad, rad/s^2, rad/s^3; {args.seeds} seeds a cell."
    )
    rows: list[StreamRow] = []
    for condition in [REFERENCE] if args.reference_only else conditions():
        measured = [measure(strategy, condition, args.seeds) for strategy in SENDERS]
        cells = [_cells(row) for row in measured]
        print(f"\n{_title(condition)}\n{aligned(COLUMNS, cells, numbers=True)}", flush=True)
        rows += measured
    failures = missed(rows)
    verdict = "Missed: " + "; ".join(failures) if failures else "Every threshold is kept."
    print(f"\n* the default. {verdict}")
    write_json(args.json, {"rows": [as_json(row) for row in rows], "pass": not failures})
    return 1 if failures else 0


COLUMNS = ("strategy", "step mean", "median", "p95", "RMS", "max acc", "max jerk", "starved")


def _cells(row: StreamRow) -> list[str]:
    lengths = (row.worst_step_mean, *row.worst_step, row.rms)
    name = f"{row.strategy} *" if row.default else row.strategy
    rest = (f"{row.max_acc:.1f}", f"{row.max_jerk:.0f}", f"{row.starved:.1%}")
    return [name, *(f"{length:.2f}" for length in lengths), *rest]


def _title(condition: StreamCondition) -> str:
    jitter = f" +- {condition.jitter * 1e3:.0f}" if condition.jitter else ""
    desired = ", interpolate_from_desired_state" if condition.interpolate_from_desired_state else ""
    latency = f"{condition.latency * 1e3:.0f}{jitter} ms"
    return f"{latency}, chunk of {condition.horizon} at {condition.rate} Hz{desired}"
