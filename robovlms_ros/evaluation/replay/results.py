"""Results of one policy on one bag: sums that add up over bags, and bounded samples for the report.

Only one number per chunk is kept (its error, for paired statistics); everything else is a sum or a
thinned
sample: plots, worst moments, the table of chunks.
"""

import base64
import heapq
import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.core.rotations import vector_from_matrix
from robovlms_ros.core.types import NANOSECONDS, ActionSpec, Array
from robovlms_ros.evaluation.metrics.errors import EdgeSums, ErrorSums, Sums, number, numbers, value_error
from robovlms_ros.evaluation.replay.executor import LatencyResult
from robovlms_ros.evaluation.replay.steps import Steps, displacement, distance
from robovlms_ros.evaluation.replay.tracks import Answer

FANS = 160
WORST = 6
WORST_APART_S = 1.0


class Thinned:
    """A list of at most `limit` entries: when full, every other one goes, and every other comes in
    from then on."""

    def __init__(self, limit: int) -> None:
        self.items: list[Any] = []
        self._limit = limit
        self._stride = 1
        self._seen = 0

    def add(self, item: Any) -> None:
        if self._seen % self._stride == 0:
            self.items.append(item)
            if len(self.items) >= self._limit:
                self.items = self.items[::2]
                self._stride *= 2
        self._seen += 1


@dataclass
class PairSums(Sums):
    """Distances between two answers at the same image: sums of the distance at the chunk's end and
    of its motion."""

    chunks: int = 0
    apart: float = 0.0
    moved: float = 0.0
    gripper: float = 0.0

    def add(self, apart: float, moved: float, gripper: float = 0.0) -> None:
        if np.isfinite(apart):
            self.chunks += 1
            self.apart += apart
            self.moved += moved
            self.gripper += gripper

    def table(self) -> dict[str, Any]:
        """Means: `apart`, `moved` (m or rad), `share` of the motion, `gripper` fraction of steps
        that differ."""
        if not self.chunks:
            return {"chunks": 0, "apart": None, "moved": None, "share": None, "gripper": None}
        return {"chunks": self.chunks, "apart": self.apart / self.chunks, "moved": self.moved / self.chunks,
                "share": self.apart / self.moved if self.moved else None, "gripper": self.gripper / self.chunks}


@dataclass
class Margins:
    """Distance of the plans from the limits: smallest margins and largest shares, and how many
    chunks broke one.

    position: rad to the nearer position limit. velocity: share of the velocity limit. workspace: m
        to the box.
    """

    position: float = float("inf")
    velocity: float = 0.0
    workspace: float = float("inf")
    unreachable: int = 0
    outside_workspace: int = 0
    beyond_position: int = 0
    too_fast: int = 0

    def merged(self, other: "Margins") -> "Margins":
        counts = ("unreachable", "outside_workspace", "beyond_position", "too_fast")
        return Margins(min(self.position, other.position), max(self.velocity, other.velocity),
                       min(self.workspace, other.workspace),
                       *(getattr(self, name) + getattr(other, name) for name in counts))

    def table(self) -> dict[str, Any]:
        return {k: (v if np.isfinite(v) else None) for k, v in vars(self).items()}


KINDS: dict[str, type[Sums]] = {
    "edges": EdgeSums, "agreement": PairSums, "recorded": PairSums, "baselines": ErrorSums,
    "variants": ErrorSums, "baseline_edges": EdgeSums, "sensitivity": PairSums,
}


@dataclass
class SubjectResult:
    """One policy on one or more bags. horizon, names, step, unit: of its chunks (`unit` m or rad of
    the distances).

    errors: by episode label, [stamp ns, mean distance] of every scored chunk. baselines: trivial
        policies on the same chunks. recorded: against the chunks that were recorded live for the
        same observations.
    """

    name: str
    names: tuple[str, ...]
    horizon: int
    step: float
    unit: str
    space: str
    policy_id: str = ""
    chunks: int = 0
    scored: int = 0
    unscored: int = 0
    sums: ErrorSums | None = None
    edges: EdgeSums = field(default_factory=EdgeSums)
    baselines: dict[str, ErrorSums] = field(default_factory=dict)
    baseline_edges: dict[str, EdgeSums] = field(default_factory=dict)
    agreement: PairSums = field(default_factory=PairSums)
    recorded: PairSums = field(default_factory=PairSums)
    recorded_max: float = 0.0
    margins: Margins = field(default_factory=Margins)
    sensitivity: dict[str, PairSums] = field(default_factory=dict)
    variants: dict[str, ErrorSums] = field(default_factory=dict)
    latencies: list[LatencyResult] = field(default_factory=list)
    gate: LatencyResult | None = None
    spent_ms: list[float] = field(default_factory=list)
    errors: dict[str, list[list[float]]] = field(default_factory=dict)
    fans: list[dict[str, Any]] = field(default_factory=list)
    track: list[list[float | None]] = field(default_factory=list)
    worst: list[dict[str, Any]] = field(default_factory=list)
    refused_inputs: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """Everything, as what JSON can hold; `from_json` reads it back."""
        plain = dict(vars(self))
        plain["sums"] = None if self.sums is None else self.sums.as_json()
        plain["margins"] = dict(vars(self.margins))
        for name in ("edges", "agreement", "recorded"):
            plain[name] = getattr(self, name).as_json()
        for name in ("baselines", "variants", "baseline_edges", "sensitivity"):
            plain[name] = {key: value.as_json() for key, value in getattr(self, name).items()}
        plain["latencies"] = [result.as_json() for result in self.latencies]
        plain["gate"] = None if self.gate is None else self.gate.as_json()
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SubjectResult":
        values = dict(data)
        values["names"] = tuple(data["names"])
        values["sums"] = None if data["sums"] is None else ErrorSums.from_json(data["sums"])
        values["margins"] = Margins(**data["margins"])
        for name in ("edges", "agreement", "recorded"):
            values[name] = KINDS[name].from_json(data[name])
        for name in ("baselines", "variants", "baseline_edges", "sensitivity"):
            values[name] = {key: KINDS[name].from_json(value) for key, value in data[name].items()}
        values["latencies"] = [LatencyResult.from_json(value) for value in data["latencies"]]
        values["gate"] = None if data["gate"] is None else LatencyResult.from_json(data["gate"])
        values["refused_inputs"] = Counter(data["refused_inputs"])
        return cls(**values)


def merge(results: list[SubjectResult]) -> SubjectResult:
    """One policy's results on several bags as one; samples and worst moments are thinned to their
    usual number."""
    first = results[0]
    total = SubjectResult.from_json(first.as_json())
    for other in results[1:]:
        for name in ("chunks", "scored", "unscored"):
            setattr(total, name, getattr(total, name) + getattr(other, name))
        for name in ("edges", "agreement", "recorded", "margins"):
            setattr(total, name, getattr(total, name).merged(getattr(other, name)))
        if other.sums is not None:
            total.sums = other.sums if total.sums is None else total.sums.merged(other.sums)
        for name in ("baselines", "baseline_edges", "variants", "sensitivity"):
            mine = getattr(total, name)
            theirs = getattr(other, name)
            for key, value in theirs.items():
                mine[key] = mine[key].merged(value) if key in mine else value
        total.latencies = [a.merged(b) for a, b in zip(total.latencies, other.latencies, strict=True)]
        if total.gate is not None and other.gate is not None:
            total.gate = total.gate.merged(other.gate)
        total.recorded_max = max(total.recorded_max, other.recorded_max)
        total.spent_ms += other.spent_ms
        total.errors.update(other.errors)
        total.refused_inputs += other.refused_inputs
        total.worst = sorted(total.worst + other.worst, key=lambda moment: -moment["error"])[:WORST]
    return total


Row = dict[str, Any]

TRACK = 4000
PICTURE_WIDTH = 320


class Samples:
    """Of one policy on one bag. fans, track: predicted chunks and recorded steps over time,
    thinned."""

    def __init__(self, spec: ActionSpec, kinematics: Kinematics | None, write_row: Callable[[Row], None] | None,
                 name: str) -> None:
        self._spec = spec
        self._kinematics = kinematics
        self._write = write_row
        self._name = name
        self.fans = Thinned(FANS)
        self.track = Thinned(TRACK)
        self._worst: list[tuple[float, int, dict[str, Any]]] = []
        self._origin: int | None = None
        self._episode = ""
        self._turn: Array | None = None

    def worst(self) -> list[dict[str, Any]]:
        """The moments of the largest error, the largest first."""
        return [moment for *_, moment in sorted(self._worst, key=lambda entry: -entry[0])]

    def add(self, answer: Answer, predicted: Steps, reference: Steps, error: float) -> None:
        """The samples for the plots, the worst moments, and the chunk's line in the table of
        chunks."""
        stamp = answer.chunk.stamp_ns
        self._origin = stamp if self._origin is None else self._origin
        seconds = (stamp - self._origin) / NANOSECONDS
        known = reference.valid
        if self._turn is None and answer.start.eef_pose is not None:
            self._turn = answer.start.eef_pose[:3, :3]
        if answer.episode != self._episode:
            self._episode = answer.episode
            # breaks the curve
            self.track.add([round(seconds, 4), *[None] * (_shown(reference, self._turn).shape[1])])
        first = np.where(known[:, None], _shown(reference, self._turn), np.nan)[0]
        self.track.add([round(seconds + self._spec.step_duration, 4), *numbers(first.round(5))])
        fan = [numbers(row) for row in _shown(predicted, self._turn).round(5)]
        self.fans.add({"t": round(seconds, 4), "values": fan})
        self._keep_worst(answer, predicted, reference, error, seconds)
        self.row(answer, predicted, reference, error)

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
        moment.update(self._drawn(answer, predicted, reference))
        heapq.heappush(self._worst, (error, answer.chunk.stamp_ns, moment))
        if len(self._worst) > WORST:
            heapq.heappop(self._worst)

    def _drawn(self, answer: Answer, predicted: Steps, reference: Steps) -> dict[str, Any]:
        """Both motions from the start on, in pixels of the image; empty where that is not known."""
        begin = answer.start.eef_pose
        known = int(reference.valid.sum())
        if answer.camera is None or answer.image is None or begin is None:
            return {}
        pixels = {}
        for name, steps, count in (("predicted", predicted, len(predicted.valid)), ("recorded", reference, known)):
            path = self._path(steps, count)
            if path is None:
                return {}
            pixels[name] = answer.camera.project(np.vstack([begin[:3, 3], path]))
        return {"pixels": pixels, "size": [answer.image.shape[1], answer.image.shape[0]]}

    def _path(self, steps: Steps, count: int) -> Array | None:
        """(count, 3) m, where the tool goes."""
        if steps.poses is not None:
            return steps.poses[:count, :3, 3]
        if steps.joints is None or self._kinematics is None:
            return None
        return np.array([self._kinematics.forward(row)[:3, 3] for row in steps.joints[:count]])

    def row(self, answer: Answer, predicted: Steps | None, reference: Steps | None, error: float | None) -> None:
        """The chunk's line in the table of chunks; None for what could not be scored."""
        if self._write is None:
            return
        row: Row = {"policy": self._name, "episode": answer.episode, "sequence": answer.chunk.sequence,
                    "stamp_ns": answer.chunk.stamp_ns, "instruction": answer.chunk.instruction,
                    "distance": None if error is None else number(error)}
        if predicted is not None and reference is not None:
            errors = np.ma.masked_invalid(np.abs(value_error(predicted, reference)))
            means = errors.mean(axis=0).filled(np.nan)
            row.update({f"mae_{name}": number(value) for name, value in zip(self._spec.names, means, strict=True)})
            row["distance_end"] = number(distance(predicted, reference)[int(reference.valid.sum()) - 1])
            row["steps_known"] = int(reference.valid.sum())
        self._write(row)


def _shown(steps: Steps, turn: Array | None) -> Array:
    """Rows of the plots, (n, 7): position, rotation vector from `turn` (3, 3), opening; or joints
    and opening."""
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
