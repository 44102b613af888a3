"""One pass of a bag through the policies: sessions, variants, executors and scorers.

Every image is decoded once, every policy and variant receives the same observations. Messages are
taken in blocks. A block's observations go through each policy's network together; then its events
are replayed in the order of reception to the executors and the scorers. Only the block, and the
chunks whose last step has not been recorded yet, are in memory.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from robovlms_ros.control.executor import ChunkExecutor
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    ActionSpec,
    Observation,
    ObservationError,
    RobotState,
)
from robovlms_ros.evaluation.replay.events import (
    CommandEvent,
    Event,
    JointStateEvent,
    ObservationEvent,
    RawMessageEvent,
    RecordedChunkEvent,
    Restart,
)
from robovlms_ros.evaluation.replay.executor import LatencySimulation
from robovlms_ros.evaluation.replay.observations import BagObservations
from robovlms_ros.evaluation.replay.results import SubjectResult
from robovlms_ros.evaluation.replay.scoring import Scorer
from robovlms_ros.evaluation.replay.tracks import Answer, Tracks


class ReplaySession(Protocol):
    """Interface of a policy's session: `BlockSession`, or a test's fake."""

    def reset(self) -> None: ...
    def predict_block(self, observations: Sequence[Observation], wanted: Sequence[bool]) -> list[ActionChunk | None]:
        """One chunk for each observation that is wanted, None for the others."""


@dataclass(frozen=True)
class Subject:
    """One policy to evaluate. session: makes a fresh one; None for the chunks that the bag holds
    itself.

    spec, horizon: of its chunks; None until the first chunk shows them (recorded chunks). memory: s
    that its history reaches back.
    """

    name: str
    session: Callable[[], ReplaySession] | None
    spec: ActionSpec | None = None
    horizon: int | None = None
    memory: float = 0.0


@dataclass(frozen=True)
class Perturbations:
    """Perturbed runs beside the recorded one. latencies: s. stride: every so many inferences also
    with the variants.

    blank: cameras to blank, each alone. instruction: the other instruction; "" takes an
    earlier one of the bag, None leaves it out. dropped: fraction of images dropped in one more
    variant, 0 leaves it out.
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
    make_executor: Callable[[], ChunkExecutor] | None
    make_scorer: Callable[[Subject, ActionSpec, int], Scorer]
    scorer: Scorer | None = None
    failures: Counter[str] = field(default_factory=Counter)
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
        if self.make_executor is not None:
            self.lanes = [LatencySimulation(latency, self.make_executor) for latency in self.whatif.latencies]
            self.gate = LatencySimulation(self.whatif.latencies[0], self.make_executor, continuing=False)
        self._simulations = self.lanes if self.gate is None else [*self.lanes, self.gate]

    def reset(self, forget_session: bool, drop_plan: bool) -> None:
        """A new episode; sessions and plans begin anew when the node's would."""
        if forget_session:
            for session in [self._session, *self._variants.values()]:
                if session is not None:
                    session.reset()
        if drop_plan:
            for lane in self._simulations:
                lane.reset()

    def predict(
        self, seen: Sequence[ObservationEvent], wanted: Sequence[bool], others: Sequence[str]
    ) -> dict[int, Any]:
        """Stamp -> (chunk, ((label, variant's chunk), ...)). others: another instruction for each,
        "" without one."""
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
            # An image whose chunk is compared is kept: what dropping changes is the history before
            # it.
            kept = [(o, want) for o, want in zip(observations, wanted, strict=True)
                    if want or self._rng.random() >= self.whatif.dropped]
        return [o for o, _ in kept], [want for _, want in kept]

    def _ask(
        self, session: ReplaySession, observations: list[Observation], wanted: Sequence[bool]
    ) -> list[ActionChunk | None]:
        """The block's chunks; where the session refuses, one by one, and what it refuses is counted
        by reason."""
        try:
            return session.predict_block(observations, wanted) if observations else []
        except ObservationError:
            session.reset()  # part of the block is in its history already
            chunks: list[ActionChunk | None] = []
            for observation, want in zip(observations, wanted, strict=True):
                try:
                    chunks += session.predict_block([observation], [want])
                except ObservationError as error:
                    self.failures[str(error)] += 1
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
            self.failures["a chunk of another shape or meaning than the first one"] += 1
            return
        self.scorer.add(answer)
        for lane in self._simulations:
            lane.offer(chunk, answer.start)

    def measure(self, state: RobotState) -> None:
        """The recorded arm moved on."""
        if len(state.positions):
            for lane in self._simulations:
                lane.measure(state)

    def _decided(self, now_ns: int, chunk: ActionChunk, decision: Any) -> None:
        """A chunk at the first latency: its margins to the limits, and what would have been
        sent."""
        assert self.scorer is not None
        if self.on_command is not None and decision.command is not None:
            self.on_command(self.subject.name, now_ns, decision.command)
        margins = self.scorer.result.margins
        plan = decision.plan
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
        result.refused_inputs += self.failures
        return result


RECORDED = "recorded"


@dataclass(frozen=True)
class Schedule:
    """At which images to infer.

    stamps: exactly these (ns), as a live run recorded them. rate: at most so many per second; 0 is
        every image.
    drop: fraction of images that never reach the policy (what-if), drawn with `seed`.
    """

    stamps: frozenset[int] | None = None
    rate: float = 0.0
    drop: float = 0.0
    seed: int = 0


class Replay:
    """See the module's docstring. progress: called with the fraction done (0 to 1).

    block: observations that go through a network together. on_copy: called with every recorded
        message
    and of what is predicted, for the annotated bag.
    """

    def __init__(
        self, inputs: BagObservations, runners: Sequence[Runner], schedule: Schedule, block: int = 32,
        progress: Callable[[float], None] | None = None, label: str = "", annotate: Any | None = None,
    ) -> None:
        self._inputs = inputs
        self._runners = list(runners)
        self._schedule = schedule
        self._block = block
        self._progress = progress
        self._label = label
        self._annotate = annotate
        mapping = inputs.mapping
        step = next((r.subject.spec.step_duration for r in runners if r.subject.spec), 0.05)
        self._tracks = Tracks.of(mapping, inputs.robot, step)
        self._rng = np.random.default_rng(schedule.seed)
        self._last_ns = -1
        self._images = 0
        self.episodes: list[dict[str, Any]] = []
        counts = inputs.bag.counts or {}
        self._expected = counts.get(mapping.cameras.get(inputs.cameras[0], ""), 0)

    @property
    def images(self) -> int:
        """Observations that were complete."""
        return self._images

    def run(self) -> None:
        """Read the bag to its end; results lie in the runners, `episodes` in order."""
        block: list[Event] = []
        count = 0
        for event in self._inputs.events():
            if isinstance(event, Restart):
                self._play(block)
                block = []
                count = 0
                self._restart(event)
                continue
            if isinstance(event, ObservationEvent) and self._schedule.drop and self._rng.random() < self._schedule.drop:
                continue
            block.append(event)
            count += isinstance(event, ObservationEvent)
            if count >= self._block:
                self._play(block)
                block = []
                count = 0
        self._play(block)
        for runner in self._runners:
            if runner.scorer is not None:
                runner.scorer.finish(self._tracks)

    def _restart(self, event: Restart) -> None:
        for runner in self._runners:
            if runner.scorer is not None:
                runner.scorer.finish(self._tracks)
            # A new instruction reaches the session with its next observation; the plan under way
            # goes on.
            runner.reset(event.forget, event.forget or event.jump)
        if event.judges:
            for episode in self.episodes:
                if episode["index"] >= event.since:
                    episode["mark"] = event.mark
        if event.jump:
            self._tracks.motion.clear()
            self._tracks.chunks.clear()
            if self._tracks.commands is not None:
                self._tracks.commands.clear()
            self._last_ns = -1

    def _play(self, block: list[Event]) -> None:
        seen = [event for event in block if isinstance(event, ObservationEvent)]
        wanted = [self._wants(item.observation.stamp_ns) for item in seen]
        others = [self._other(item.observation.instruction) for item in seen]
        answers = [runner.predict(seen, wanted, others) for runner in self._runners]
        for event in block:
            self._step(event, answers)
        if self._progress is not None and seen:
            self._progress(min(1.0, self._images / self._expected) if self._expected else 0.0)

    def _step(self, event: Event, answers: list[dict[int, Any]]) -> None:
        if isinstance(event, RawMessageEvent):
            if self._annotate is not None:
                self._annotate.copy(event.raw)
            return
        if isinstance(event, JointStateEvent):
            self._tracks.motion.add(event.state)
            for runner in self._runners:
                runner.measure(event.state)
        elif isinstance(event, CommandEvent):
            if self._tracks.commands is not None:
                (self._tracks.commands.add_gripper if event.gripper else self._tracks.commands.add)(
                    event.message, event.now_ns)
        elif isinstance(event, RecordedChunkEvent):
            self._tracks.chunks[event.chunk.stamp_ns] = event.chunk
            self._take_recorded(event.chunk)
        elif isinstance(event, ObservationEvent):
            self._see(event, answers)
        self._mature(event.now_ns)

    def _see(self, seen: ObservationEvent, answers: list[dict[int, Any]]) -> None:
        observation = seen.observation
        episode = self._episode(seen)
        self._images += 1
        for runner, answered in zip(self._runners, answers, strict=True):
            if observation.stamp_ns not in answered or observation.state is None:
                continue
            chunk, variants = answered[observation.stamp_ns]
            image = observation.images[self._inputs.cameras[0]]
            runner.take(chunk, Answer(chunk, observation.state, episode, image, variants, seen.camera))
            if self._annotate is not None:
                self._annotate.chunk(runner.subject.name, seen.now_ns, chunk)

    def _take_recorded(self, chunk: ActionChunk) -> None:
        """A recorded chunk for the subject of the live run."""
        for runner in self._runners:
            if runner.subject.session is None:
                targets = self._tracks.motion.at(np.array([chunk.stamp_ns]), _no_state())
                start = self._state_of(chunk.stamp_ns, targets)
                if start is not None:
                    episode = self.episodes[-1]["label"] if self.episodes else self._label
                    runner.take(chunk, Answer(chunk, start, episode))

    def _state_of(self, stamp_ns: int, targets: Any) -> RobotState | None:
        if not targets.valid[0]:
            return None
        kinematics: Kinematics | None = self._inputs.kinematics
        poses = targets.as_poses(kinematics)
        positions = np.empty(0) if targets.joints is None else targets.joints[0]
        gripper = self._tracks.motion.gripper(np.array([stamp_ns]))[0]
        return RobotState(stamp_ns, positions, None, None if poses is None else poses[0],
                          None if np.isnan(gripper) else float(gripper))

    def _mature(self, now_ns: int) -> None:
        oldest = now_ns
        for runner in self._runners:
            scorer = runner.scorer
            if scorer is not None:
                scorer.mature(now_ns, self._tracks)
                oldest = min(oldest, scorer.oldest_ns or now_ns)
        before = oldest - NANOSECONDS
        self._tracks.motion.trim(before)
        if self._tracks.commands is not None:
            self._tracks.commands.trim(before)
        while self._tracks.chunks and next(iter(self._tracks.chunks)) < before - NANOSECONDS:
            del self._tracks.chunks[next(iter(self._tracks.chunks))]

    def _wants(self, stamp_ns: int) -> bool:
        schedule = self._schedule
        if schedule.stamps is not None:
            return stamp_ns in schedule.stamps
        if schedule.rate > 0 and self._last_ns >= 0 and stamp_ns - self._last_ns < 0.999 * NANOSECONDS / schedule.rate:
            return False
        self._last_ns = stamp_ns
        return True

    def _other(self, instruction: str) -> str:
        """Another instruction than the one in force: the configured one, else one that the bag had
        before."""
        wanted = next((r.whatif.instruction for r in self._runners), None)
        if wanted:
            return wanted if wanted != instruction else ""
        return next((text for text in reversed(self._inputs.instructions) if text != instruction), "")

    def _episode(self, seen: ObservationEvent) -> str:
        if not self.episodes or self.episodes[-1]["index"] != seen.episode:
            label = f"{self._label} {len(self.episodes) + 1}".strip()
            self.episodes.append({"index": seen.episode, "label": label, "instruction": seen.observation.instruction,
                                  "begin_ns": seen.observation.stamp_ns, "end_ns": 0, "images": 0})
        episode = self.episodes[-1]
        episode["end_ns"], episode["images"] = seen.observation.stamp_ns, episode["images"] + 1
        return str(episode["label"])


def _no_state() -> RobotState:
    return RobotState(0, np.empty(0))
