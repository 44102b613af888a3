"""A bag through the policies, once: every image decoded once, every policy and what-if on the same observations.

Messages are taken in blocks. A block's observations go through each policy's network together; then its events are
played in the order of reception to the executors and the scorers. Only the block, and the chunks whose last step has
not been recorded yet, are in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, RobotState
from robovlms_ros.evaluation.replay.commands import CommandTrack
from robovlms_ros.evaluation.replay.events import (
    CommandEvent,
    Event,
    JointStateEvent,
    ObservationEvent,
    RawMessageEvent,
    RecordedChunkEvent,
    Restart,
)
from robovlms_ros.evaluation.replay.observations import BagObservations
from robovlms_ros.evaluation.replay.reference import MotionTrack
from robovlms_ros.evaluation.replay.runner import Runner
from robovlms_ros.evaluation.replay.tracks import Answer, Tracks

Array = NDArray[np.float64]
RECORDED = "recorded"


@dataclass(frozen=True)
class Schedule:
    """At which images to infer.

    stamps: exactly these (ns), as a live run recorded them. rate: at most so many per second; 0 is every image.
    drop: fraction of images that never reach the policy (what-if), drawn with `seed`.
    """

    stamps: frozenset[int] | None = None
    rate: float = 0.0
    drop: float = 0.0
    seed: int = 0


class Replay:
    """See the module's docstring. progress: told the fraction done (0 to 1) now and then.

    block: observations that go through a network together. on_copy: told of every recorded message and of what is
    predicted, for the annotated bag.
    """

    def __init__(
        self, inputs: BagObservations, runners: Sequence[Runner], schedule: Schedule, block: int = 32,
        progress: Callable[[float], None] | None = None, label: str = "", annotate: Any | None = None,
    ) -> None:
        self._inputs, self._runners, self._schedule = inputs, list(runners), schedule
        self._block, self._progress, self._label, self._annotate = block, progress, label, annotate
        mapping, robot = inputs.mapping, inputs.robot
        step = next((r.subject.spec.step_duration for r in runners if r.subject.spec), 0.05)
        commands = None
        if mapping.commands is not None and mapping.command_kind != "action_chunk":
            assert mapping.command_kind is not None
            lead = mapping.command_lead
            if lead is None:
                lead = step if mapping.command_kind in ("pose", "joint_state", "float64_array") else 0.0
            commands = CommandTrack(mapping.command_kind, robot, round(lead * NANOSECONDS))
        self._tracks = Tracks(MotionTrack(), commands, {}, mapping.command_kind == "action_chunk")
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
                block, count = [], 0
                self._restart(event)
                continue
            if isinstance(event, ObservationEvent) and self._schedule.drop and self._rng.random() < self._schedule.drop:
                continue
            block.append(event)
            count += isinstance(event, ObservationEvent)
            if count >= self._block:
                self._play(block)
                block, count = [], 0
        self._play(block)
        for runner in self._runners:
            if runner.scorer is not None:
                runner.scorer.finish(self._tracks)

    def _restart(self, event: Restart) -> None:
        for runner in self._runners:
            if runner.scorer is not None:
                runner.scorer.finish(self._tracks)
            # A new instruction reaches the session with its next observation; the plan under way goes on.
            runner.reset(event.forget, event.forget or event.jump)
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
        observation, episode = seen.observation, self._episode(seen)
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
        """A recorded chunk for the subject that stands for the live run."""
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
        """Another instruction than the one in force: the one asked for, else one that the bag had before."""
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
