"""One policy's chunks against what was recorded, as soon as the recording has reached their last
step."""

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.planner import EEF_SPACES, PlanRefused
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.types import NANOSECONDS, ActionSpec, Array, RobotState
from robovlms_ros.evaluation.metrics.baselines import BASELINES, Baselines
from robovlms_ros.evaluation.metrics.errors import EdgeSums, ErrorSums
from robovlms_ros.evaluation.replay.results import PairSums, Row, Samples, SubjectResult, Thinned
from robovlms_ros.evaluation.replay.steps import (
    Steps,
    displacement,
    distance,
    step_times,
    steps_of_chunk,
    steps_of_targets,
)
from robovlms_ros.evaluation.replay.tracks import Answer, Tracks

SETTLE_NS = NANOSECONDS // 5
SPENT = 4000


class Scorer:
    """Scores one policy's answers on one bag; `result` is complete after `finish`."""

    def __init__(
        self, name: str, spec: ActionSpec, horizon: int, robot: RobotSpec, kinematics: Kinematics | None,
        with_baselines: bool, write_row: Callable[[Row], None] | None = None,
        memory: float = 0.0,
    ) -> None:
        self._robot = robot
        self._kinematics = kinematics
        self._spec = spec
        dims = len(spec.names)
        self._memory_ns = round(memory * NANOSECONDS)
        self._remembers_from = -1
        self.result = SubjectResult(name, spec.names, horizon, spec.step_duration,
                                    "m" if spec.space in EEF_SPACES else "rad", spec.space)
        self.result.sums = ErrorSums.empty(horizon, dims)
        if with_baselines:
            self.result.baselines = {key: ErrorSums.empty(horizon, dims) for key in BASELINES}
            self.result.baseline_edges = {key: EdgeSums() for key in BASELINES}
        self._baselines = Baselines()
        self._pending: deque[Answer] = deque()
        self._samples = Samples(spec, kinematics, write_row, name)
        self._spent = Thinned(SPENT)
        self._previous: tuple[Answer, Steps] | None = None

    def add(self, answer: Answer) -> None:
        """Take an answer; it is scored once the recording has passed its last step."""
        self.result.chunks += 1
        self.result.policy_id = self.result.policy_id or answer.chunk.policy_id
        if answer.chunk.timing is not None:
            timing = answer.chunk.timing
            self._spent.add((timing.inference_end_ns - timing.inference_start_ns) / 1e6)
        self._pending.append(answer)

    @property
    def oldest_ns(self) -> int | None:
        """Stamp of the oldest answer that waits, so that tracks are kept from there on."""
        return self._pending[0].chunk.stamp_ns if self._pending else None

    def mature(self, now_ns: int, tracks: Tracks) -> None:
        """Score what the recording has passed."""
        while self._pending:
            chunk = self._pending[0].chunk
            end = chunk.stamp_ns + round(chunk.horizon * chunk.spec.step_duration * NANOSECONDS)
            if now_ns < end + SETTLE_NS:
                return
            self._score(self._pending.popleft(), tracks)

    def finish(self, tracks: Tracks) -> None:
        """Score what is left, as far as the recording goes: the bag, or its time line, ends
        here."""
        while self._pending:
            self._score(self._pending.popleft(), tracks)
        self._previous = None

    def close(self) -> SubjectResult:
        """The result."""
        self.result.fans = self._samples.fans.items
        self.result.track = self._samples.track.items
        self.result.spent_ms = self._spent.items
        self.result.worst = self._samples.worst()
        return self.result

    def _score(self, answer: Answer, tracks: Tracks) -> None:
        result = self.result
        assert result.sums is not None
        try:
            predicted = steps_of_chunk(answer.chunk, answer.start)
        except PlanRefused as refusal:
            self._unscored(answer, str(refusal))
            return
        self._agree(answer, predicted)
        self._check_workspace(predicted)
        self._compare_variants(answer, predicted)
        self._compare_recorded(answer, predicted, tracks)
        reference = tracks.reference(answer, self._kinematics)
        if reference is None or not reference.valid.any():
            self._unscored(answer, "nothing was recorded to compare with")
            return
        error = result.sums.add(predicted, reference, answer.start)
        result.scored += 1
        result.errors.setdefault(answer.episode, []).append([answer.chunk.stamp_ns, error])
        before = tracks.gripper(np.array([answer.chunk.stamp_ns]))[0]
        result.edges.add(predicted.gripper, reference.gripper, float(before), self._spec.step_duration)
        for label, chunk in answer.variants:
            if label in result.variants:
                result.variants[label].add(steps_of_chunk(chunk, answer.start), reference, answer.start)
        self._score_baselines(answer, reference, tracks, float(before))
        self._samples.add(answer, predicted, reference, error)

    def _unscored(self, answer: Answer, reason: str) -> None:
        self.result.unscored += 1
        self.result.refused_inputs[reason] += 1
        self._samples.row(answer, None, None, None)

    def _agree(self, answer: Answer, predicted: Steps) -> None:
        """Chunk-to-chunk agreement: both chunks' targets at the later one's times, where they
        overlap."""
        previous = self._previous
        self._previous = (answer, predicted)
        if previous is None or previous[0].episode != answer.episode:
            return
        chunk = answer.chunk
        older = previous[0].chunk
        mine = step_times(chunk.stamp_ns, chunk.spec, chunk.horizon)
        theirs = step_times(older.stamp_ns, older.spec, older.horizon)
        common = mine <= theirs[-1]
        if not common.any() or chunk.stamp_ns - older.stamp_ns > 2 * NANOSECONDS:
            return
        a = _places(predicted)[common]
        b = _resampled(_places(previous[1]), theirs, mine[common])
        apart = np.linalg.norm(a - b, axis=1) if predicted.poses is not None else np.abs(a - b).max(axis=1)
        grip = np.interp(mine[common], theirs, previous[1].gripper) > 0.5
        moved = float(np.linalg.norm(displacement(predicted, answer.start)[-1]))
        self.result.agreement.add(float(apart.mean()), moved, float((grip != (predicted.gripper[common] > 0.5)).mean()))

    def _check_workspace(self, predicted: Steps) -> None:
        box = self._robot.limits.workspace
        if box is None or predicted.poses is None:
            return
        places = predicted.poses[:, :3, 3]
        margin = float(np.minimum(places - np.array(box.lower), np.array(box.upper) - places).min())
        self.result.margins.workspace = min(self.result.margins.workspace, margin)
        self.result.margins.outside_workspace += margin < 0

    def _compare_variants(self, answer: Answer, predicted: Steps) -> None:
        for label, chunk in answer.variants:
            try:
                other = steps_of_chunk(chunk, answer.start)
            except PlanRefused:
                continue
            moved = float(np.linalg.norm(displacement(predicted, answer.start)[-1]))
            grip = float(np.mean((other.gripper > 0.5) != (predicted.gripper > 0.5)))
            apart = float(distance(other, predicted)[-1])
            self.result.sensitivity.setdefault(label, PairSums()).add(apart, moved, grip)
            if label not in self.result.variants:
                assert self.result.sums is not None
                self.result.variants[label] = ErrorSums.empty(*self.result.sums.count.shape)

    def _compare_recorded(self, answer: Answer, predicted: Steps, tracks: Tracks) -> None:
        """Against the chunk that was recorded live for the very same observation, once both
        store the same."""
        recorded = tracks.chunks.get(answer.chunk.stamp_ns)
        if self._remembers_from < 0 and recorded is not None:
            # A recording that begins while the node runs does not hold what the node remembered
            # then.
            before = self._memory_ns if recorded.sequence else 0
            self._remembers_from = answer.chunk.stamp_ns + before
        same = recorded is not None and recorded.spec == answer.chunk.spec and recorded is not answer.chunk
        if not same or recorded is None or recorded.values.shape != answer.chunk.values.shape:
            return
        if answer.chunk.stamp_ns < self._remembers_from:
            return
        other = steps_of_chunk(recorded, answer.start)
        moved = float(np.linalg.norm(displacement(predicted, answer.start)[-1]))
        self.result.recorded.add(float(distance(other, predicted)[-1]), moved)
        worst = float(np.abs(recorded.values - answer.chunk.values).max())
        self.result.recorded_max = max(self.result.recorded_max, worst)

    def _score_baselines(self, answer: Answer, reference: Steps, tracks: Tracks, before: float) -> None:
        if not self.result.baselines:
            return
        last = self._last_action(answer, tracks)
        for name, steps in self._baselines.answers(answer.chunk, answer.start, last).items():
            self.result.baselines[name].add(steps, reference, answer.start)
            self.result.baseline_edges[name].add(steps.gripper, reference.gripper, before, self._spec.step_duration)
        self._baselines.learn(reference)

    def _last_action(self, answer: Answer, tracks: Tracks) -> Array | None:
        """(D,) the recorded action of the step that ended at the image."""
        chunk = answer.chunk
        if tracks.by_chunks:
            older = tracks.chunk_near(chunk.stamp_ns - round(chunk.spec.step_duration * NANOSECONDS), 1.0)
            return older.values[0] if older is not None and older.spec == chunk.spec else None
        step_ns = round(chunk.spec.step_duration * NANOSECONDS)
        source = tracks.commands or tracks.motion
        times = np.array([chunk.stamp_ns - step_ns, chunk.stamp_ns])
        targets = source.at(times, answer.start)
        if not targets.valid.all() or (tracks.commands is not None and tracks.commands.kind == "twist"):
            return None
        gripper = tracks.gripper(times)
        if chunk.spec.space in EEF_SPACES:
            poses = targets.as_poses(self._kinematics)
            if poses is None:
                return None
            begin = RobotState(int(times[0]), answer.start.positions, None, poses[0])
            return steps_of_targets(chunk.spec, begin, poses[1:], targets.valid[1:], gripper[1:]).values[0]
        if targets.joints is None:
            return None
        begin = RobotState(int(times[0]), targets.joints[0])
        return steps_of_targets(chunk.spec, begin, targets.joints[1:], targets.valid[1:], gripper[1:]).values[0]


def _places(steps: Steps) -> Array:
    """(n, 3) m or (n, J) rad."""
    if steps.poses is not None:
        return steps.poses[:, :3, 3]
    assert steps.joints is not None
    return steps.joints


def _resampled(places: Array, times: NDArray[np.int64], wanted: NDArray[np.int64]) -> Array:
    return np.column_stack([np.interp(wanted, times, column) for column in places.T])
