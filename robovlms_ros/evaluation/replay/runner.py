"""One policy in a replay: its session, its variants, its executors and its scorer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from robovlms_ros.core.types import (
    ActionChunk,
    ActionSpec,
    Observation,
    ObservationError,
    RobotState,
)
from robovlms_ros.evaluation.replay.events import ObservationEvent
from robovlms_ros.evaluation.replay.executor import ExecutorStack, LatencySimulation
from robovlms_ros.evaluation.replay.results import SubjectResult
from robovlms_ros.evaluation.replay.scoring import Scorer
from robovlms_ros.evaluation.replay.tracks import Answer


class ReplaySession(Protocol):
    """What is asked of a policy's session: `BlockSession`, or a test's fake."""

    def reset(self) -> None: ...
    def predict_block(self, observations: Sequence[Observation], wanted: Sequence[bool]) -> list[ActionChunk | None]:
        """One chunk for each observation that is wanted, None for the others."""


@dataclass(frozen=True)
class Subject:
    """One policy to evaluate. session: makes a fresh one; None for the chunks that the bag holds itself.

    spec, horizon: of its chunks; None until the first chunk shows them (recorded chunks). memory: s that its history
    reaches back.
    """

    name: str
    session: Callable[[], ReplaySession] | None
    spec: ActionSpec | None = None
    horizon: int | None = None
    memory: float = 0.0


@dataclass(frozen=True)
class Perturbations:
    """Which what-ifs to run besides. latencies: s. stride: every so many inferences also with the variants.

    blank: cameras to blank, each alone. instruction: the other instruction; "" takes one that was heard before in the
    bag, None leaves it out. dropped: fraction of images dropped in one more variant, 0 leaves it out.
    """

    latencies: tuple[float, ...] = (0.05, 0.15, 0.3)
    blank: tuple[str, ...] = ()
    instruction: str | None = ""
    dropped: float = 0.0
    stride: int = 4


@dataclass
class Runner:
    """One policy's session, its variants, its executors and its scorer."""

    subject: Subject
    whatif: Perturbations
    make_machine: Callable[[], ExecutorStack] | None
    make_scorer: Callable[[Subject, ActionSpec, int], Scorer]
    scorer: Scorer | None = None
    failures: dict[str, int] = field(default_factory=dict)
    on_command: Callable[[str, int, Any], None] | None = None

    def __post_init__(self) -> None:
        make = self.subject.session
        self._session = make() if make else None
        self._variants: dict[str, ReplaySession] = {}
        if make is not None:
            labels = [f"camera '{name}' blanked" for name in self.whatif.blank]
            labels += ["other instruction"] if self.whatif.instruction is not None else []
            labels += [f"{self.whatif.dropped:.0%} of images dropped"] if self.whatif.dropped else []
            self._variants = {label: make() for label in labels}
        self._count = 0
        self._rng = np.random.default_rng(0)
        self.lanes: list[LatencySimulation] = []
        self.gate: LatencySimulation | None = None
        if self.make_machine is not None:
            self.lanes = [LatencySimulation(latency, self.make_machine) for latency in self.whatif.latencies]
            self.gate = LatencySimulation(self.whatif.latencies[0], self.make_machine, continuing=False)

    def reset(self, forget_session: bool, drop_plan: bool) -> None:
        """A new episode; sessions and plans begin anew when the node's would."""
        if forget_session:
            for session in [self._session, *self._variants.values()]:
                if session is not None:
                    session.reset()
        if drop_plan:
            for lane in [*self.lanes, *([self.gate] if self.gate else [])]:
                lane.reset()

    def predict(
        self, seen: Sequence[ObservationEvent], wanted: Sequence[bool], others: Sequence[str]
    ) -> dict[int, Any]:
        """Stamp -> (chunk, ((label, variant's chunk), ...)). others: another instruction for each, "" without one."""
        if self._session is None or not seen:
            return {}
        observations = [item.observation for item in seen]
        chunks = self._ask(self._session, observations, wanted)
        sparse = []
        for want in wanted:
            sparse.append(bool(want) and self._count % self.whatif.stride == 0)
            self._count += bool(want)
        variants: dict[int, list[tuple[str, ActionChunk]]] = {}
        for label, session in self._variants.items():
            changed, asked = self._changed(label, observations, sparse, others)
            for chunk in self._ask(session, changed, asked):
                if chunk is not None:
                    variants.setdefault(chunk.stamp_ns, []).append((label, chunk))
        return {c.stamp_ns: (c, tuple(variants.get(c.stamp_ns, ()))) for c in chunks if c is not None}

    def _changed(
        self, label: str, observations: list[Observation], wanted: list[bool], others: Sequence[str]
    ) -> tuple[list[Observation], list[bool]]:
        """The observations of one variant."""
        if label.startswith("camera"):
            name = label.split("'")[1]
            blank = [replace(o, images={**o.images, name: np.zeros_like(o.images[name])}) for o in observations]
            return blank, wanted
        if label == "other instruction":
            kept = [(replace(o, instruction=other), want)
                    for o, want, other in zip(observations, wanted, others, strict=True) if other]
        else:
            # An image whose chunk is compared is kept: what dropping changes is the history before it.
            kept = [(o, want) for o, want in zip(observations, wanted, strict=True)
                    if want or self._rng.random() >= self.whatif.dropped]
        return [o for o, _ in kept], [want for _, want in kept]

    def _ask(
        self, session: ReplaySession, observations: list[Observation], wanted: Sequence[bool]
    ) -> list[ActionChunk | None]:
        """The block's chunks; where the session refuses, one by one, and what it refuses is counted by reason."""
        try:
            return session.predict_block(observations, wanted) if observations else []
        except ObservationError:
            session.reset()  # part of the block is in its history already
            chunks: list[ActionChunk | None] = []
            for observation, want in zip(observations, wanted, strict=True):
                try:
                    chunks += session.predict_block([observation], [want])
                except ObservationError as error:
                    self.failures[str(error)] = self.failures.get(str(error), 0) + 1
                    chunks.append(None)
            return chunks

    def take(self, chunk: ActionChunk, answer: Answer) -> None:
        """One chunk into the scorer and the executors."""
        if self.scorer is None:
            spec = self.subject.spec or chunk.spec
            self.scorer = self.make_scorer(self.subject, spec, self.subject.horizon or chunk.horizon)
            if self.lanes:
                self.lanes[0].on_decision = self._decided
        if chunk.spec != self.scorer._spec or chunk.horizon != self.scorer.result.horizon:
            self.failures["a chunk of another shape or meaning than the first one"] = \
                self.failures.get("a chunk of another shape or meaning than the first one", 0) + 1
            return
        self.scorer.add(answer)
        for lane in [*self.lanes, *([self.gate] if self.gate else [])]:
            lane.offer(chunk, answer.start)

    def measure(self, state: RobotState) -> None:
        """The recorded arm moved on."""
        if len(state.positions):
            for lane in [*self.lanes, *([self.gate] if self.gate else [])]:
                lane.measure(state)

    def _decided(self, now_ns: int, chunk: ActionChunk, decision: Any) -> None:
        """A chunk at the first latency: its margins to the limits, and what would have been sent."""
        assert self.scorer is not None
        if self.on_command is not None and decision.command is not None:
            self.on_command(self.subject.name, now_ns, decision.command)
        margins, plan = self.scorer.result.margins, decision.plan
        if plan is None:
            margins.unreachable += 1
            return
        robot = self.scorer._robot
        room = np.minimum(plan.positions - robot.lower(), robot.upper() - plan.positions)
        share = np.abs(plan.velocities) / np.array(robot.limits.velocity)
        margins.position = min(margins.position, float(room.min()))
        margins.velocity = max(margins.velocity, float(share.max()))
        margins.beyond_position += bool(room.min() < 0)
        margins.too_fast += bool(share.max() > 1)

    def close(self) -> SubjectResult | None:
        """The result; None when the policy never answered."""
        if self.scorer is None:
            return None
        result = self.scorer.close()
        result.latencies = [lane.result for lane in self.lanes]
        result.gate = self.gate.result if self.gate else None
        for reason, count in self.failures.items():
            result.refused_inputs[reason] = result.refused_inputs.get(reason, 0) + count
        return result
