"""Smoothness of an arm under inference latency, by the way of sending chunks: one joint, many
seeds at once.

The intent is q(t) = 0.5 sin(2 pi 0.4 t) rad; each chunk is the intent plus its own bias, normal
with a standard deviation of 20 mrad, as chunks of a policy disagree. A controller at 500 Hz drives
a plant that follows its command 40 ms later. One inference is in flight; its image is taken when
the one before is ready, and 100 ms apart at least. All seeds share the times of images and chunks,
so that one controller with a joint per seed runs them all.

The controller is one of CONTROLLERS, which the scheduler's senders know as the node finds it out;
the others send all of them the same.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from robovlms_ros.bench.stream_senders import DEFAULT, NAIVE, SENDERS, Message, Sender
from robovlms_ros.control.trajectory import Array, central_differences
from robovlms_ros.control.trajectory_controller_model import (
    PositionsUpsampling,
    TrajectoryController,
    TrajectoryRejected,
)
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.text_table import aligned
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, JointPlan, RobotState

TICK_NS = 2_000_000
PLANT_DELAY = 20  # ticks
SECONDS = 12.0
SETTLING = 2.0
REPLAN = 0.1  # s, shortest time between images
BIAS = 0.02  # rad
START_NS = 1000 * NANOSECONDS
JITTER_GROUPS = 5  # seeds of one group share their latencies
CONTROLLER_GROUPS = 10

LATENCIES = (0.05, 0.15, 0.3)
HORIZONS = (30, 10)
RATES = (30, 5)

JAZZY = "Jazzy"
MASTER = "master"
_BLENDS = {"allow_trajectory_replacement": True}
CONTROLLERS: dict[str, dict[str, Any]] = {
    JAZZY: {},
    MASTER: _BLENDS,
    "master, upsampling": {**_BLENDS, "upsampling": PositionsUpsampling()},
    "with #2573": {**_BLENDS, "upsampling": PositionsUpsampling(0.0, True)},
}
"""Builds of joint_trajectory_controller, parameters at their defaults but
`positions_upsampling.enable`."""

CHANGE_EVERY = (0.5, 1.5)  # s between two changes of allow_trajectory_replacement


@dataclass(frozen=True)
class StreamCondition:
    """latency: s from image to chunk. jitter: s, half the width of the latency's uniform spread.
    rate: steps per s.

    controller: one of CONTROLLERS. transport: s, the longest way of a message to the controller, 0
    to that. changes: allow_trajectory_replacement is switched again and again, while no message is
    on its way; the sender knows after a message's way.
    """

    latency: float
    horizon: int
    rate: int
    interpolate_from_desired_state: bool = False
    jitter: float = 0.0
    controller: str = JAZZY
    transport: float = 0.0
    changes: bool = False


@dataclass(frozen=True)
class StreamRow:
    """One strategy under one condition, over the seeds.

    worst_step, worst_step_mean, worst_step_max: largest change of the command per 2 ms tick, mrad:
    (median, 95th percentile), mean and greatest over the seeds.
    rms: root mean square of command minus intent, mrad, mean. max_acc, max_jerk: of the command,
    rad/s^2 and rad/s^3, mean over seeds of the largest. starved: part of the time at which no step
    of the policy was left.
    """

    strategy: str
    condition: StreamCondition
    worst_step: tuple[float, float]
    worst_step_mean: float
    worst_step_max: float
    rms: float
    max_acc: float
    max_jerk: float
    starved: float

    @property
    def default(self) -> bool:
        """True if this is what a user gets who sets nothing."""
        return self.strategy == DEFAULT


REFERENCE = StreamCondition(0.15, 30, 30)
JITTER = 0.02
TRANSPORT = 0.006
QUICK = 0.002
# mrad
LIMITS = {"median worst step": 3.3, "95th percentile of the worst step": 3.8, "mean RMS": 13.5}
JITTER_LIMITS = {JAZZY: (2.8, 3.05, 9.5), MASTER: (3.0, 3.3, 9.5)}
"""mrad: median and 95th percentile of the worst step, mean RMS, by controller, with jitter."""

CHANGE_LIMIT = 6.0
"""mrad: 95th percentile of the worst step where allow_trajectory_replacement changes."""


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


def controller_conditions(controller: str) -> tuple[StreamCondition, StreamCondition]:
    """A controller's conditions: constant latency, and jitter of latency and transport."""
    constant = StreamCondition(0.15, 30, 30, controller=controller)
    return constant, replace(constant, jitter=JITTER, transport=TRANSPORT)


def changing_condition(transport: float) -> StreamCondition:
    """Jitter, on a controller that is switched from blending to forgetting and back while the arm
    moves."""
    return replace(REFERENCE, jitter=JITTER, controller=MASTER, transport=transport, changes=True)


def measure(strategy: str, condition: StreamCondition, seeds: int = 50) -> StreamRow:
    """One row of the table."""
    most = CONTROLLER_GROUPS if condition.transport else JITTER_GROUPS
    groups = min(most, seeds) if condition.jitter else 1
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
        float(steps.max()),
        float(np.sqrt((error**2).mean(axis=0)).mean() * 1e3),
        float(np.abs(np.diff(commands[first - 2 :], n=2, axis=0)).max(axis=0).mean() / tick**2),
        float(np.abs(np.diff(commands[first - 3 :], n=3, axis=0)).max(axis=0).mean() / tick**3),
        float(np.mean([run[1][first:].mean() for run in runs])),
    )


def simulate(strategy: str, condition: StreamCondition, seeds: Sequence[int]) -> tuple[Array, Array]:
    """The controller's commands (ticks, seeds), rad, and (ticks,) whether no step of the policy was
    left."""
    joints = tuple(f"seed{int(seed)}" for seed in seeds)
    desired = condition.interpolate_from_desired_state
    controller = TrajectoryController(joints, desired, **CONTROLLERS[condition.controller])
    sender = SENDERS[strategy](joints)
    transport = _Transport(condition, int(seeds[0]), controller, sender)
    chunks = _chunks(condition, seeds)
    ready_ns, plan = next(chunks)
    at_rest = np.zeros(len(joints))
    ticks = round(SECONDS * NANOSECONDS / TICK_NS)
    commands = np.zeros((ticks, len(joints)))
    starved = np.zeros(ticks, dtype=bool)
    for k in range(ticks):
        now_ns = START_NS + k * TICK_NS
        measured = commands[k - PLANT_DELAY] if k >= PLANT_DELAY else at_rest
        transport.change(now_ns)
        if now_ns >= ready_ns:
            transport.send(sender.on_chunk(plan, now_ns, RobotState(now_ns, measured)), now_ns)
            ready_ns, plan = next(chunks)
        transport.send(sender.on_tick(now_ns), now_ns)
        transport.deliver(now_ns)
        commands[k] = controller.update(now_ns, TICK_NS, measured, at_rest)[0]
        starved[k] = now_ns > sender.covered_until_ns
    return commands, starved


class _Transport:
    """The way between a sender and a controller: messages there, the news of a changed parameter
    back."""

    def __init__(
        self,
        condition: StreamCondition,
        seed: int,
        controller: TrajectoryController,
        sender: Sender,
    ) -> None:
        self._rng = np.random.default_rng(2000 + seed)
        self._longest = condition.transport
        self._controller = controller
        self._sender = sender
        self._messages: list[tuple[int, Message]] = []
        self._news_ns = START_NS
        self._change_ns = START_NS + self._nanoseconds(*CHANGE_EVERY) if condition.changes else None
        self._quiet = False  # a message has just arrived: the next one is far

    def _nanoseconds(self, shortest: float, longest: float) -> int:
        return round(self._rng.uniform(shortest, longest) * NANOSECONDS)

    def change(self, now_ns: int) -> None:
        """Switch the controller's blending where it is time, and bring the sender the news."""
        if self._change_ns is not None and now_ns >= self._change_ns and self._quiet:
            self._controller.allow_trajectory_replacement ^= True
            self._news_ns = now_ns + self._nanoseconds(0.0, self._longest)
            self._change_ns = now_ns + self._nanoseconds(*CHANGE_EVERY)
        if now_ns >= self._news_ns:
            blends = self._controller.allow_trajectory_replacement
            self._sender.shape = "replacement" if blends else "self_splice"

    def send(self, message: Message | None, now_ns: int) -> None:
        """Take a message on its way; None for none."""
        if message is not None:
            self._messages.append((now_ns + self._nanoseconds(0.0, self._longest), message))

    def deliver(self, now_ns: int) -> None:
        """Hand the controller the messages that have arrived, in order."""
        self._quiet = bool(self._messages) and self._messages[-1][0] <= now_ns
        while self._messages and self._messages[0][0] <= now_ns:
            with suppress(TrajectoryRejected):  # as on a topic: the sender gets no answer
                self._controller.accept(self._messages.pop(0)[1], now_ns)


def _chunks(condition: StreamCondition, seeds: Sequence[int]) -> Iterator[tuple[int, JointPlan]]:
    """Time (ns) at which each chunk is ready, and the chunk, for ever; a joint per seed."""
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
    """The thresholds that the default strategy does not keep, among the conditions that have
    some."""
    found = []
    for row in rows:
        values = dict(zip(LIMITS, (*row.worst_step, row.rms), strict=True))
        where, limits = _limits_of(row.condition)
        found += [
            f"{where}{name} {values[name]:.2f} mrad, at most {limit}"
            for name, limit in limits.items()
            if row.default and values[name] > limit
        ]
    return found


def _limits_of(condition: StreamCondition) -> tuple[str, dict[str, float]]:
    """A condition's name and its thresholds by measure; none for most conditions."""
    if condition == REFERENCE:
        return "", LIMITS
    if condition == changing_condition(QUICK):
        return "changing controller: ", {"95th percentile of the worst step": CHANGE_LIMIT}
    limits = JITTER_LIMITS.get(condition.controller)
    if limits is not None and condition == controller_conditions(condition.controller)[1]:
        return f"{condition.controller} with jitter: ", dict(zip(LIMITS, limits, strict=True))
    return "", {}


def as_json(row: StreamRow) -> dict[str, object]:
    """The row as plain values."""
    condition = row.condition
    return {
        "strategy": row.strategy,
        "latency_ms": round(condition.latency * 1e3),
        "jitter_ms": round(condition.jitter * 1e3),
        "controller": condition.controller,
        "transport_ms": round(condition.transport * 1e3),
        "controller_changes": condition.changes,
        "chunk": condition.horizon,
        "rate_hz": condition.rate,
        "interpolate_from_desired_state": condition.interpolate_from_desired_state,
        "worst_step_mrad": {"median": row.worst_step[0], "p95": row.worst_step[1], "mean": row.worst_step_mean,
                             "max": row.worst_step_max},
        "rms_mrad_mean": row.rms,
        "max_acc": row.max_acc,
        "max_jerk": row.max_jerk,
        "starved_fraction": row.starved,
        "default": row.default,
    }


def run(args: argparse.Namespace) -> int:
    """Print the tables; returns 1 when a threshold is missed."""
    print(
        f"Commands in mrad per 2 ms tick, RMS in mrad, rad/s^2, rad/s^3; {args.seeds} seeds a cell."
    )
    rows: list[StreamRow] = []
    if not args.controllers_only:
        rows += _strategies(args.seeds, args.reference_only)
    if not args.reference_only:
        rows += _controllers(args.seeds)
    failures = missed(rows)
    verdict = "Missed: " + "; ".join(failures) if failures else "Every threshold is kept."
    print(f"\n* the default. {verdict}")
    write_json(args.json, {"rows": [as_json(row) for row in rows], "pass": not failures})
    return 1 if failures else 0


def _strategies(seeds: int, reference_only: bool) -> list[StreamRow]:
    """Print the table of strategies and conditions, and return its rows."""
    rows = []
    for condition in [REFERENCE] if reference_only else conditions():
        measured = [measure(strategy, condition, seeds) for strategy in SENDERS]
        cells = [_cells(row) for row in measured]
        print(f"\n{_title(condition)}\n{aligned(COLUMNS, cells, numbers=True)}", flush=True)
        rows += measured
    return rows


def _controllers(seeds: int) -> list[StreamRow]:
    """Print the table of senders and controllers, and return its rows."""
    rows = []
    kinds = (
        "constant latency",
        f"+- {JITTER * 1e3:.0f} ms, messages up to {TRANSPORT * 1e3:.0f} ms on their way",
    )
    for index, kind in enumerate(kinds):
        print(f"\n150 ms, chunk of 30 at 30 Hz, {kind}: worst step, median / 95th percentile; RMS")
        table = []
        for strategy in (*NAIVE, DEFAULT):
            measured = [
                measure(strategy, controller_conditions(name)[index], seeds) for name in CONTROLLERS
            ]
            rows += measured
            mark = " *" if strategy == DEFAULT else ""
            table.append([strategy + mark, *(_cell(row) for row in measured)])
        print(aligned(("sender", *CONTROLLERS), table, numbers=True), flush=True)
    print("\nThe default, while allow_trajectory_replacement changes about once a second:")
    for longest in (QUICK, TRANSPORT):
        rows.append(measure(DEFAULT, changing_condition(longest), seeds))
        print(f"messages and news up to {longest * 1e3:.0f} ms on their way: {_cell(rows[-1])}")
    return rows


def _cell(row: StreamRow) -> str:
    return f"{row.worst_step[0]:.2f} / {row.worst_step[1]:.2f}; {row.rms:.2f}"


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
