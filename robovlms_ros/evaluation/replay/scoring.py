"""One policy's chunks against what was recorded, as soon as the recording has reached their last step."""

import base64
import heapq
import io
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.evaluation.metrics.baselines import BASELINES, Baselines
from robovlms_ros.evaluation.metrics.errors import EdgeSums, ErrorSums, number, numbers, value_error
from robovlms_ros.evaluation.replay.results import FANS, WORST, WORST_APART_S, PairSums, SubjectResult, Thinned
from robovlms_ros.evaluation.replay.steps import (
    Steps,
    displacement,
    distance,
    step_times,
    steps_of_chunk,
    steps_of_targets,
)
from robovlms_ros.evaluation.replay.tracks import Answer, Tracks
from robovlms_ros.processing.rotations import vector_from_matrix
from robovlms_ros.runtime.kinematics import Kinematics
from robovlms_ros.runtime.planner import EEF_SPACES, PlanRefused
from robovlms_ros.runtime.robot import RobotSpec
from robovlms_ros.types import NANOSECONDS, ActionSpec, RobotState

Array = NDArray[np.float64]

SETTLE_NS = NANOSECONDS // 5
PICTURE_WIDTH = 320
Row = dict[str, Any]


class Scorer:
    """Scores one policy's answers on one bag; `result` is complete after `finish`."""

    def __init__(
        self, name: str, spec: ActionSpec, horizon: int, robot: RobotSpec, kinematics: Kinematics | None,
        with_baselines: bool, write_row: Callable[[Row], None] | None = None,
        project: Callable[[Array], list[list[float]]] | None = None,
    ) -> None:
        self._robot, self._kinematics, self._write, self._project = robot, kinematics, write_row, project
        self._spec, dims = spec, len(spec.names)
        self.result = SubjectResult(name, spec.names, horizon, spec.step_duration,
                                    "m" if spec.space in EEF_SPACES else "rad", spec.space)
        self.result.sums = ErrorSums.empty(horizon, dims)
        if with_baselines:
            self.result.baselines = {key: ErrorSums.empty(horizon, dims) for key in BASELINES}
            self.result.baseline_edges = {key: EdgeSums() for key in BASELINES}
        self._baselines = Baselines()
        self._pending: deque[Answer] = deque()
        self._fans, self._track, self._spent = Thinned(FANS), Thinned(4000), Thinned(4000)
        self._worst: list[tuple[float, int, dict[str, Any]]] = []
        self._previous: tuple[Answer, Steps] | None = None
        self._origin: int | None = None
        self._turn: Array | None = None

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
        """Score what is left, as far as the recording goes: the bag, or its time line, ends here."""
        while self._pending:
            self._score(self._pending.popleft(), tracks)
        self._previous = None

    def close(self) -> SubjectResult:
        """The result."""
        self.result.fans, self.result.track = self._fans.items, self._track.items
        self.result.spent_ms = self._spent.items
        self.result.worst = [moment for *_, moment in sorted(self._worst, key=lambda entry: -entry[0])]
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
        self._remember(answer, predicted, reference, error)

    def _unscored(self, answer: Answer, reason: str) -> None:
        self.result.unscored += 1
        self.result.refused_inputs[reason] = self.result.refused_inputs.get(reason, 0) + 1
        self._row(answer, None, None, None)

    def _agree(self, answer: Answer, predicted: Steps) -> None:
        """Chunk-to-chunk agreement: both chunks' targets at the later one's times, where they overlap."""
        previous, self._previous = self._previous, (answer, predicted)
        if previous is None or previous[0].episode != answer.episode:
            return
        chunk, older = answer.chunk, previous[0].chunk
        mine = step_times(chunk.stamp_ns, chunk.spec, chunk.horizon)
        theirs = step_times(older.stamp_ns, older.spec, older.horizon)
        common = mine <= theirs[-1]
        if not common.any() or chunk.stamp_ns - older.stamp_ns > 2 * NANOSECONDS:
            return
        a, b = _places(predicted)[common], _resampled(_places(previous[1]), theirs, mine[common])
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
        """Against the chunk that was recorded live for the very same observation."""
        recorded = tracks.chunks.get(answer.chunk.stamp_ns)
        same = recorded is not None and recorded.spec == answer.chunk.spec and recorded is not answer.chunk
        if not same or recorded is None or recorded.values.shape != answer.chunk.values.shape:
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

    def _remember(self, answer: Answer, predicted: Steps, reference: Steps, error: float) -> None:
        """The samples for the plots, the worst moments, and the chunk's line in the table of chunks."""
        stamp = answer.chunk.stamp_ns
        self._origin = stamp if self._origin is None else self._origin
        seconds = (stamp - self._origin) / NANOSECONDS
        known = reference.valid
        if self._turn is None and answer.start.eef_pose is not None:
            self._turn = answer.start.eef_pose[:3, :3]
        first = np.where(known[:, None], _shown(reference, self._turn), np.nan)[0]
        self._track.add([round(seconds + self._spec.step_duration, 4), *numbers(first.round(5))])
        fan = [numbers(row) for row in _shown(predicted, self._turn).round(5)]
        self._fans.add({"t": round(seconds, 4), "values": fan})
        self._keep_worst(answer, predicted, reference, error, seconds)
        self._row(answer, predicted, reference, error)

    def _keep_worst(self, answer: Answer, predicted: Steps, reference: Steps, error: float, seconds: float) -> None:
        near = [i for i, (_, _, moment) in enumerate(self._worst) if abs(moment["t"] - seconds) < WORST_APART_S]
        if near:
            if self._worst[near[0]][0] >= error:
                return
            self._worst = [entry for i, entry in enumerate(self._worst) if i not in near]
            heapq.heapify(self._worst)
        if len(self._worst) >= WORST and self._worst[0][0] >= error:
            return
        moves = {"predicted": displacement(predicted, answer.start), "recorded": displacement(reference, answer.start)}
        known = int(reference.valid.sum())
        moment: dict[str, Any] = {
            "t": round(seconds, 3), "stamp_ns": answer.chunk.stamp_ns, "error": error, "episode": answer.episode,
            "instruction": answer.chunk.instruction, "image": _jpeg(answer.image),
            "predicted": moves["predicted"].round(5).tolist(), "recorded": moves["recorded"][:known].round(5).tolist(),
            "gripper": {"predicted": numbers(predicted.gripper), "recorded": numbers(reference.gripper)},
        }
        if self._project is not None and predicted.poses is not None and reference.poses is not None:
            moment["pixels"] = {"predicted": self._project(predicted.poses[:, :3, 3]),
                                "recorded": self._project(reference.poses[:known, :3, 3])}
            moment["size"] = None if answer.image is None else [answer.image.shape[1], answer.image.shape[0]]
        heapq.heappush(self._worst, (error, answer.chunk.stamp_ns, moment))
        if len(self._worst) > WORST:
            heapq.heappop(self._worst)

    def _row(self, answer: Answer, predicted: Steps | None, reference: Steps | None, error: float | None) -> None:
        if self._write is None:
            return
        row: Row = {"policy": self.result.name, "episode": answer.episode, "sequence": answer.chunk.sequence,
                    "stamp_ns": answer.chunk.stamp_ns, "instruction": answer.chunk.instruction,
                    "distance": None if error is None else number(error)}
        if predicted is not None and reference is not None:
            errors = np.ma.masked_invalid(np.abs(value_error(predicted, reference)))
            means = errors.mean(axis=0).filled(np.nan)
            row.update({f"mae_{name}": number(value) for name, value in zip(self._spec.names, means, strict=True)})
            row["distance_end"] = number(distance(predicted, reference)[int(reference.valid.sum()) - 1])
            row["steps_known"] = int(reference.valid.sum())
        self._write(row)


def _places(steps: Steps) -> Array:
    """(n, 3) m or (n, J) rad."""
    if steps.poses is not None:
        return steps.poses[:, :3, 3]
    assert steps.joints is not None
    return steps.joints


def _resampled(places: Array, times: NDArray[np.int64], wanted: NDArray[np.int64]) -> Array:
    return np.column_stack([np.interp(wanted, times, column) for column in places.T])


def _shown(steps: Steps, turn: Array | None) -> Array:
    """What the plots show, (n, 7): position, rotation vector from `turn` (3, 3), opening; or joints and opening."""
    if steps.poses is not None:
        # Absolute rotation vectors of a hand that points down jump between pi and -pi.
        turns = (np.eye(3) if turn is None else turn.T) @ np.nan_to_num(steps.poses[:, :3, :3])
        arm = np.hstack([steps.poses[:, :3, 3], vector_from_matrix(turns + 1e-12)])
    else:
        assert steps.joints is not None
        arm = steps.joints
    return np.column_stack([arm, steps.gripper])


def _jpeg(image: NDArray[np.uint8] | None) -> str | None:
    """A small JPEG as base64 text."""
    if image is None:
        return None
    from PIL import Image

    picture = Image.fromarray(image)
    width = min(PICTURE_WIDTH, max(picture.width, 160))
    picture = picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode("ascii")
