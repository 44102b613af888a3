"""Replayed latency: the same chunks through the real scheduler and gate, as if inference took so
long."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from robovlms_ros.control.collision_solids import CollisionModel
from robovlms_ros.control.executor import ChunkExecutor, build_executor
from robovlms_ros.control.kinematics import IKResult, Kinematics
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.schedule import ScheduleConfig
from robovlms_ros.control.trajectory import Spline, curve_of
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    Array,
    RobotState,
    RoboVLMsError,
    TrajectoryCommand,
)
from robovlms_ros.evaluation.metrics.errors import number

TICK_NS = 2_000_000
AROUND_NS = 60_000_000
COMPARE_NS = 50_000_000
REASON_LENGTH = 120


class CachedKinematics:
    """Kinematics that caches its last answers: every replayed latency plans the same chunks."""

    def __init__(self, kinematics: Kinematics, size: int = 64) -> None:
        self._kinematics = kinematics
        self._size = size
        self._answers: dict[bytes, IKResult] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kinematics, name)

    def inverse(self, targets: Array, seed: Array) -> IKResult:
        """As Kinematics.inverse."""
        key = np.ascontiguousarray(targets).tobytes() + np.ascontiguousarray(seed).tobytes()
        if key not in self._answers:
            if len(self._answers) >= self._size:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = self._kinematics.inverse(targets, seed)
        return self._answers[key]


def executor_factory(
    robot: RobotSpec,
    kinematics: Any,
    schedule: ScheduleConfig,
    collision: CollisionModel | None = None,
) -> Callable[[], ChunkExecutor]:
    """A maker of executors, without the ramp of the speed scaling: a replay has no activation."""
    settled = replace(robot, gate=replace(robot.gate, speed_scaling_ramp=0.0))
    return lambda: build_executor(settled, kinematics, schedule, collision)


@dataclass
class LatencyResult:
    """Results of one replayed latency. latency: s from an image's stamp to its chunk; frames:
    images offered.

    verdicts: pass, clamp, refuse -> count. reasons: refusals and clamps by reason, digits left out.
        handover: sums over
    the takeovers of what a client that simply switches plans would jump (rad); tick: the worst
    command step of 2 ms (rad). starved: s in which the running plan had ended. age: sum of the
    chunks' ages when they took over, s. refused_chunks: [stamp ns, instruction] of each.
    """

    latency: float
    frames: int = 0
    chunks: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    takeovers: int = 0
    handover_sum: float = 0.0
    handover_max: float = 0.0
    tick_max: float = 0.0
    starved: float = 0.0
    age: float = 0.0
    off_sum: float = 0.0
    off_count: int = 0
    refused_chunks: list[list[Any]] = field(default_factory=list)

    def merged(self, other: "LatencyResult") -> "LatencyResult":
        """Both together."""
        largest = ("handover_max", "tick_max")
        values = {name: max(getattr(self, name), value) if name in largest else getattr(self, name) + value
                  for name, value in vars(other).items() if name != "latency"}
        return LatencyResult(self.latency, **values)

    def table(self) -> dict[str, Any]:
        """Numbers for the report."""
        decided = sum(self.verdicts.values())
        return {
            "latency": self.latency, "frames": self.frames, "chunks": self.chunks,
            "verdicts": {kind: self.verdicts.get(kind, 0) for kind in ("pass", "clamp", "refuse")},
            "refused": self.verdicts.get("refuse", 0) / decided if decided else None,
            "reasons": dict(self.reasons.most_common(8)),
            "handover_mean": self.handover_sum / self.takeovers if self.takeovers else None,
            "handover_max": self.handover_max, "tick_max": self.tick_max, "starved": self.starved,
            "age": self.age / decided if decided else None,
            "off": number(self.off_sum / self.off_count) if self.off_count else None,
        }

    def as_json(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LatencyResult":
        return cls(**{**data, "verdicts": Counter(data["verdicts"]), "reasons": Counter(data["reasons"])})


class LatencySimulation:
    """Runs one latency. continuing False judges every chunk as the node does in dry_run
    (`dry_run_chunk`).

    The recorded arm takes the place of the arm: it followed the commands of that time, not the
    policy's now. So a plan that continues drifts off it where policy and recording differ; `off`
    is how far, and the gate acts on it.
    """

    def __init__(self, latency: float, make: Callable[[], ChunkExecutor], continuing: bool = True) -> None:
        self.result = LatencyResult(latency)
        self._latency_ns = round(latency * NANOSECONDS)
        self._executor = make()
        self._continuing = continuing
        self._flight: tuple[int, ActionChunk, RobotState] | None = None
        self._waiting: tuple[ActionChunk, RobotState] | None = None
        self._plan_before: Any = None
        self._sent: Spline | None = None
        self._compared_ns = 0
        self._measured: RobotState | None = None
        self.on_decision: Callable[[int, ActionChunk, Any], None] | None = None

    def reset(self) -> None:
        """A new episode: nothing is under way."""
        self._drop_plan()
        self._flight = self._waiting = self._measured = None
        self._compared_ns = 0

    def _drop_plan(self) -> None:
        self._executor.reset()
        self._plan_before = self._sent = None

    def offer(self, chunk: ActionChunk, start: RobotState) -> None:
        """A frame came whose chunk would be this one; it is inferred when the one before is
        done."""
        self.result.frames += 1
        self.advance(chunk.stamp_ns)
        if self._flight is None:
            self._flight = (chunk.stamp_ns + self._latency_ns, chunk, start)
        else:
            self._waiting = (chunk, start)

    def measure(self, state: RobotState) -> None:
        """The arm as recorded moved on."""
        self.advance(state.stamp_ns)
        self._measured = state
        if self._continuing and self._sent is not None and state.stamp_ns >= self._compared_ns + COMPARE_NS:
            self._compared_ns = state.stamp_ns
            commanded = self._sent(np.array([state.stamp_ns]))[0][0]
            self.result.off_sum += float(np.abs(commanded - state.positions).max())
            self.result.off_count += 1

    def advance(self, now_ns: int) -> None:
        """Deliver what is ready by `now_ns`."""
        while self._flight is not None and self._flight[0] <= now_ns:
            ready, chunk, start = self._flight
            self._flight = None
            self._deliver(ready, chunk, start)
            if self._waiting is not None:
                self._flight = (ready + self._latency_ns, *self._waiting)
                self._waiting = None

    def _deliver(self, ready_ns: int, chunk: ActionChunk, start: RobotState) -> None:
        result = self.result
        result.chunks += 1
        result.age += (ready_ns - chunk.stamp_ns) / NANOSECONDS
        covered = self._executor.scheduler.covered_until_ns
        try:
            decide = self._executor.on_chunk if self._continuing else self._executor.dry_run_chunk
            decision = decide(chunk, start, self._measured or start, ready_ns)
        except RoboVLMsError as error:
            self._count("refuse", str(error), chunk)
            self._drop_plan()
            return
        verdict = decision.verdict
        self._count(verdict.kind, verdict.reason, chunk)
        if self.on_decision is not None:
            self.on_decision(ready_ns, chunk, decision)
        if verdict.kind == "refuse" or decision.command is None:
            self._drop_plan()
            return
        if self._continuing:
            self._take_over(ready_ns, decision.plan, decision.command, covered)

    def _take_over(self, ready_ns: int, plan: Any, command: TrajectoryCommand, covered_ns: int) -> None:
        """Continuity at the moment when one plan replaces the other."""
        result = self.result
        previous = self._plan_before
        self._plan_before = plan
        before = self._sent
        self._sent = curve_of(command)
        if previous is None or before is None:
            return
        result.takeovers += 1
        jump = float(np.abs(_at(plan, ready_ns) - _at(previous, ready_ns)).max())
        result.handover_sum += jump
        result.handover_max = max(result.handover_max, jump)
        # What the controller is commanded now, by the old message, and every 2 ms after, by the new
        # one.
        ticks = np.arange(ready_ns, ready_ns + AROUND_NS, TICK_NS)
        path = np.vstack([before(ticks[:1])[0], self._sent(ticks[1:])[0]])
        result.tick_max = max(result.tick_max, float(np.abs(np.diff(path, axis=0)).max()))
        result.starved += max(0.0, (ready_ns - covered_ns) / NANOSECONDS) if covered_ns else 0.0

    def _count(self, kind: str, reason: str, chunk: ActionChunk) -> None:
        self.result.verdicts[kind] += 1
        if kind == "refuse":
            self.result.refused_chunks.append([chunk.stamp_ns, chunk.instruction])
        if kind != "pass":
            self.result.reasons[plain_reason(reason)] += 1


def _at(plan: Any, time_ns: int) -> Array:
    return np.array([np.interp(time_ns, plan.times_ns, column) for column in plan.positions.T])


def plain_reason(reason: str) -> str:
    """A reason with its numbers taken out, so that equal reasons count together."""
    text = re.sub(r"(?<![\w^.])-?\d+(\.\d+)?(e[+-]?\d+)?", "…", reason)
    return text if len(text) <= REASON_LENGTH else text[:REASON_LENGTH - 3] + "..."
