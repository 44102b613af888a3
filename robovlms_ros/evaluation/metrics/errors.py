"""Errors of predicted chunks against what was recorded, per dimension and horizon step, as sums
that add up."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.types import Array, RobotState
from robovlms_ros.evaluation.replay.steps import Steps, displacement, distance, rotation_angle

MOVING_M = 0.003
MOVING_RAD = 0.01
"""Motion from the start below which a direction means nothing: tool in m, joints in rad."""

S = TypeVar("S", bound="Sums")


class Sums:
    """Base of dataclasses whose fields, numbers or arrays, add up over chunks and bags."""

    def merged(self: S, other: S) -> S:
        """The sums of both."""
        pairs = zip(vars(self).items(), vars(other).values(), strict=True)
        return type(self)(**{name: mine + theirs for (name, mine), theirs in pairs})

    def as_json(self) -> dict[str, Any]:
        """The sums as what JSON can hold; `from_json` reads them back."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}

    @classmethod
    def from_json(cls: type[S], data: Mapping[str, Any]) -> S:
        return cls(**{name: np.array(v) if isinstance(v, list) else v for name, v in data.items()})


@dataclass
class ErrorSums(Sums):
    """Sums over chunks; n steps, D dimensions.

    count, absolute, squared: (n, D), in the units of the dimension (m, rad; the gripper's opening).
    reach: (n,) distance between predicted and recorded target (m; joint spaces: largest joint
        error, rad). turn: (n,)
    angle between their orientations (rad). size: (n,) how far the recording moved from the start.
    cosine, moving: (n,) sum of direction cosines, over steps where the recording had moved.
    gripper_right, gripper_count: (n,).
    """

    count: Array
    absolute: Array
    squared: Array
    reach: Array
    turn: Array
    size: Array
    steps: Array
    cosine: Array
    moving: Array
    gripper_right: Array
    gripper_count: Array

    @classmethod
    def empty(cls, horizon: int, dims: int) -> "ErrorSums":
        shapes = {"count": (horizon, dims), "absolute": (horizon, dims), "squared": (horizon, dims)}
        return cls(**{f.name: np.zeros(shapes.get(f.name, (horizon,))) for f in fields(cls)})

    def add(self, predicted: Steps, recorded: Steps, start: RobotState) -> float:
        """Add one chunk; returns its mean distance over the known steps (NaN when none is
        known)."""
        known = recorded.valid
        error = np.abs(value_error(predicted, recorded))
        finite = np.isfinite(error)
        self.count += finite
        self.absolute += np.where(finite, error, 0.0)
        self.squared += np.where(finite, error, 0.0) ** 2
        apart = np.where(known, distance(predicted, recorded), 0.0)
        self.reach += apart
        self.steps += known
        if predicted.poses is not None and recorded.poses is not None:
            self.turn += np.where(known, rotation_angle(predicted.poses, recorded.poses), 0.0)
        moves = displacement(predicted, start), displacement(recorded, start)
        self._add_direction(*moves, known, predicted.poses is None)
        seen = np.isfinite(predicted.gripper) & np.isfinite(recorded.gripper)
        self.gripper_count += seen
        self.gripper_right += seen & ((predicted.gripper > 0.5) == (recorded.gripper > 0.5))
        return float(apart.sum() / known.sum()) if known.any() else float("nan")

    def _add_direction(self, predicted: Array, recorded: Array, known: NDArray[np.bool_], joints: bool) -> None:
        sizes = np.where(known, np.linalg.norm(recorded, axis=1), 0.0)
        self.size += sizes
        moving = known & (sizes > (MOVING_RAD if joints else MOVING_M))
        lengths = np.linalg.norm(predicted, axis=1)
        dots = np.einsum("nd,nd->n", predicted, np.where(known[:, None], recorded, 0.0))
        cosines = dots / np.maximum(lengths * sizes, 1e-12)
        self.cosine += np.where(moving & (lengths > 1e-9), cosines, 0.0)
        self.moving += moving

    def table(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Means for the report: `mae`, `rmse` (D,), by step (n, D); distance, cosine, gripper
        accuracy by step (n,)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            by_step = self.absolute / self.count
            rmse_by_step = np.sqrt(self.squared / self.count)
            return {
                "names": list(names),
                "steps": numbers(self.steps),
                "mae": numbers(self.absolute.sum(0) / self.count.sum(0)),
                "rmse": numbers(np.sqrt(self.squared.sum(0) / self.count.sum(0))),
                "mae_by_step": [numbers(row) for row in by_step],
                "rmse_by_step": [numbers(row) for row in rmse_by_step],
                "distance": number(self.reach.sum() / self.steps.sum()),
                "distance_by_step": numbers(self.reach / self.steps),
                "angle": number(self.turn.sum() / self.steps.sum()),
                "angle_by_step": numbers(self.turn / self.steps),
                "moved_by_step": numbers(self.size / self.steps),
                "cosine": number(self.cosine.sum() / self.moving.sum()),
                "cosine_by_step": numbers(self.cosine / self.moving),
                "gripper_accuracy": number(self.gripper_right.sum() / self.gripper_count.sum()),
                "gripper_accuracy_by_step": numbers(self.gripper_right / self.gripper_count),
            }


def value_error(predicted: Steps, recorded: Steps) -> Array:
    """(n, D) predicted minus recorded in the policy's own numbers; NaN where the recording is
    unknown.

    Rotations of absolute poses wrap: there the difference of angles is taken the short way round.
    """
    difference = predicted.values - recorded.values
    if predicted.poses is not None:
        difference[:, 3:6] = (difference[:, 3:6] + np.pi) % (2 * np.pi) - np.pi
    return difference


@dataclass
class EdgeSums(Sums):
    """Gripper edges inside the horizons: how often and how far in time the prediction has them.

    recorded: edges in the recording; found: of them, predicted in the same direction; late,
        late_absolute: sums over
    those of predicted minus recorded time, s; extra: predicted edges that the recording does not
    have. Counted per chunk, so one edge counts once for every chunk that covers it.
    """

    recorded: int = 0
    found: int = 0
    extra: int = 0
    late: float = 0.0
    late_absolute: float = 0.0

    def add(self, predicted: Array, recorded: Array, before: float, step: float) -> None:
        """predicted, recorded: (n,) openings; before: the recorded opening at the chunk's start;
        step: s."""
        if not np.isfinite(before) or not np.isfinite(recorded).any():
            return
        known = int(np.argmin(np.isfinite(recorded))) if not np.isfinite(recorded).all() else len(recorded)
        wanted = _edges(recorded[:known], before)
        given = _edges(predicted[:known], before)
        for place, opens in wanted:
            same = [p for p, o in given if o == opens]
            self.recorded += 1
            if same:
                late = (min(same, key=lambda p: abs(p - place)) - place) * step
                self.found += 1
                self.late += late
                self.late_absolute += abs(late)
        self.extra += sum(all(o != opens for _, o in wanted) for _, opens in given)

    def table(self) -> dict[str, Any]:
        """Counts and mean timing, s (positive: the prediction is late); None without edges."""
        return {
            "recorded": self.recorded, "found": self.found, "missed": self.recorded - self.found, "extra": self.extra,
            "late": self.late / self.found if self.found else None,
            "late_absolute": self.late_absolute / self.found if self.found else None,
        }


def _edges(openings: Array, before: float) -> list[tuple[int, bool]]:
    """(step, whether it opens) of every change, the first against `before`."""
    states = [before > 0.5, *(openings > 0.5)]
    return [(i, bool(now)) for i, (was, now) in enumerate(pairwise(states)) if was != now]


def number(value: Any) -> float | None:
    """A float for JSON; None for what is not a number."""
    return float(value) if np.isfinite(value) else None


def numbers(values: Any) -> list[float | None]:
    """`number` of each."""
    return [number(value) for value in values]
