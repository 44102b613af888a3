"""What one bag says about one policy: sums that add up over bags, small samples for the plots, and nothing that grows.

Only one number per chunk is kept (its error, for paired statistics); everything else is a sum or a bounded sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robovlms_ros.evaluation.metrics.errors import EdgeSums, ErrorSums
from robovlms_ros.evaluation.replay.executor import LatencyResult

FANS = 160
WORST = 6
WORST_APART_S = 1.0


class Thinned:
    """A list of at most `limit` entries: when full, every other one goes, and every other comes in from then on."""

    def __init__(self, limit: int) -> None:
        self.items: list[Any] = []
        self._limit, self._stride, self._seen = limit, 1, 0

    def add(self, item: Any) -> None:
        if self._seen % self._stride == 0:
            self.items.append(item)
            if len(self.items) >= self._limit:
                self.items = self.items[::2]
                self._stride *= 2
        self._seen += 1


@dataclass
class PairSums:
    """Distances between two answers at the same image: sums of the distance at the chunk's end and of its motion."""

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

    def merged(self, other: "PairSums") -> "PairSums":
        return PairSums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def table(self) -> dict[str, Any]:
        """Means: `apart`, `moved` (m or rad), `share` of the motion, `gripper` fraction of steps that differ."""
        if not self.chunks:
            return {"chunks": 0, "apart": None, "moved": None, "share": None, "gripper": None}
        return {"chunks": self.chunks, "apart": self.apart / self.chunks, "moved": self.moved / self.chunks,
                "share": self.apart / self.moved if self.moved else None, "gripper": self.gripper / self.chunks}


@dataclass
class Margins:
    """How close the plans came to the limits: smallest margins and largest shares, and how many chunks broke one.

    position: rad to the nearer position limit. velocity: share of the velocity limit. workspace: m to the box.
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


@dataclass
class SubjectResult:
    """One policy on one or more bags. horizon, names, step, unit: of its chunks (`unit` m or rad of the distances).

    errors: by episode label, [stamp ns, mean distance] of every scored chunk. baselines: trivial policies on the same
        chunks. recorded: against the chunks that were recorded live for the same observations.
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
    refused_inputs: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, as what JSON can hold; `from_json` reads it back."""
        plain = dict(vars(self))
        plain["sums"] = None if self.sums is None else self.sums.as_json()
        for name in ("edges", "agreement", "recorded", "margins"):
            plain[name] = dict(vars(getattr(self, name)))
        for name in ("baselines", "variants", "baseline_edges"):
            plain[name] = {key: value.as_json() for key, value in getattr(self, name).items()}
        plain["sensitivity"] = {key: dict(vars(value)) for key, value in self.sensitivity.items()}
        plain["latencies"] = [result.as_json() for result in self.latencies]
        plain["gate"] = None if self.gate is None else self.gate.as_json()
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SubjectResult":
        values = dict(data)
        values["names"] = tuple(data["names"])
        values["sums"] = None if data["sums"] is None else ErrorSums.from_json(data["sums"])
        for name, kind in (("edges", EdgeSums), ("agreement", PairSums), ("recorded", PairSums), ("margins", Margins)):
            values[name] = kind(**data[name])
        for name in ("baselines", "variants"):
            values[name] = {key: ErrorSums.from_json(value) for key, value in data[name].items()}
        values["baseline_edges"] = {key: EdgeSums(**value) for key, value in data["baseline_edges"].items()}
        values["sensitivity"] = {key: PairSums(**value) for key, value in data["sensitivity"].items()}
        values["latencies"] = [LatencyResult.from_json(value) for value in data["latencies"]]
        values["gate"] = None if data["gate"] is None else LatencyResult.from_json(data["gate"])
        return cls(**values)


def merge(results: list[SubjectResult]) -> SubjectResult:
    """One policy's results on several bags as one; samples and worst moments are thinned to their usual number."""
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
            mine, theirs = getattr(total, name), getattr(other, name)
            for key, value in theirs.items():
                mine[key] = mine[key].merged(value) if key in mine else value
        total.latencies = [a.merged(b) for a, b in zip(total.latencies, other.latencies, strict=True)]
        if total.gate is not None and other.gate is not None:
            total.gate = total.gate.merged(other.gate)
        total.recorded_max = max(total.recorded_max, other.recorded_max)
        total.spent_ms += other.spent_ms
        total.errors.update(other.errors)
        for reason, count in other.refused_inputs.items():
            total.refused_inputs[reason] = total.refused_inputs.get(reason, 0) + count
        total.worst = sorted(total.worst + other.worst, key=lambda moment: -moment["error"])[:WORST]
    return total
