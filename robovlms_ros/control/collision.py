"""The gate's collision check: a whole motion is swept against the robot's own links and the world.

Between two checked configurations no point of the robot moves by more than STEP. A capsule around
every solid gives a lower bound of each pair's distance, at first at every BLOCK-th configuration:
the pair's motion since then (measured for the world, bounded by the joints' for two links) decides
where the bound is computed again. coal computes the distance itself where a bound falls below the
margin, and skips the configurations that the distance rules out (conservative advancement; Mirtich,
"Impulse-based dynamic simulation of rigid body systems", 1996).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.collision_model import CollisionModel, solid_distance
from robovlms_ros.control.description.robot_tree import Array
from robovlms_ros.control.spline import Spline, Stamps
from robovlms_ros.core.types import NANOSECONDS

Flags = NDArray[np.bool_]
Index = NDArray[np.int64]

STEP = 0.01
"""m: largest motion of any point of the robot between two checked configurations."""
AIM = 0.9
"""Part of STEP between configurations: the path between two is longer than its chord."""
REFINEMENTS = 3
SUBDIVISIONS = 200
BLOCK = 8
QUERIES = 8
"""Distances that are computed to settle the least clearance."""
TINY = 1e-12
RELEASE = 1e-6
"""m: from inside a margin a pair may not come nearer than it is, but for rounding."""
SLACK = 1e-3
"""m: a pair that begins this little inside its margin may stay there."""
SHOWN_WITHIN = 0.2
"""m: clearances beyond it are reported as such a bound."""


@dataclass(frozen=True)
class Clearance:
    """Two bodies at their nearest on a motion. distance: m; seconds: from the motion's begin.

    at_least: the distance is a lower bound.
    """

    first: str
    second: str
    distance: float
    seconds: float
    at_least: bool = False

    def __str__(self) -> str:
        bound = "more than " if self.at_least else ""
        return f"{self.first} to {self.second} {bound}{self.distance:.3f} m"


@dataclass(frozen=True)
class Contact:
    """The first place of a motion where two bodies come too near.

    t_ns, free_until_ns: stamps of the configuration, and of the last one before it that is free.
    point: (3,) m in base_frame, on the second body. distance: m, negative for an overlap.
    """

    first: str
    second: str
    t_ns: int
    free_until_ns: int
    point: Array
    distance: float
    margin: float

    def text(self, now_ns: int) -> str:
        """The bodies, when and where, for a status."""
        x, y, z = self.point
        after = (self.t_ns - now_ns) / NANOSECONDS
        return (
            f"{self.first} would come within {self.distance:.3f} m of {self.second} after "
            f"{after:.2f} s at ({x:.3f}, {y:.3f}, {z:.3f}) m, allowed is {self.margin:.3f} m"
        )


@dataclass(frozen=True)
class Sweep:
    """The answer to one motion. contact: None where it is free. world, itself: least clearances up
    to the contact, None without such pairs; intended contacts do not count."""

    contact: Contact | None
    world: Clearance | None
    itself: Clearance | None

    @property
    def clearances(self) -> tuple[Clearance, ...]:
        return tuple(found for found in (self.world, self.itself) if found is not None)


@dataclass
class _Samples:
    """Configurations of a motion: stamps (N,), positions (N, J), joint poses, capsule ends.

    ends: (N, S, 2, 3). displacements: (N - 1, S) m, bound of the motion of a solid's points from one
    configuration to the next one.
    """

    times_ns: Stamps
    positions: Array
    rotations: Array
    origins: Array
    ends: Array
    displacements: Array


@dataclass
class _Bounds:
    """Lower bounds (K,) of distances, m, with their samples (K,) and pairs (K,)."""

    values: Array
    rows: Index
    columns: Index


class CollisionChecker:
    """Sweeps the motions of one robot. Not thread safe."""

    def __init__(self, model: CollisionModel) -> None:
        self.model = model
        solids = model.solids
        pairs = model.pairs
        self._radius = np.array([solid.radius for solid in solids])
        self._carriers = np.array([solid.joint for solid in solids], dtype=np.int64)
        blank = np.zeros((2, 3))
        self._local = np.stack([blank if s.ends is None else s.ends for s in solids])
        self._groups = [
            (joint, np.flatnonzero(self._carriers == joint))
            for joint in np.unique(self._carriers).tolist()
        ]
        second_fixed = self._carriers[pairs.second] == 0
        self._both_move = ~second_fixed & (self._carriers[pairs.first] != 0)
        self._mover = np.where(second_fixed, pairs.first, pairs.second)
        fixed = np.where(second_fixed, pairs.second, pairs.first)
        self._fixed = np.where(self._both_move, -1, fixed)
        most = max([1, *(len(s.planes) for s in solids if s.planes is not None)])
        # Padding with an infinite offset never is the largest excess.
        self._planes = np.zeros((len(solids) + 1, most, 4))
        self._planes[:, :, 3] = np.inf
        for i, solid in enumerate(solids):
            if solid.planes is not None:
                self._planes[i, : len(solid.planes)] = solid.planes
        self._has_planes = np.isfinite(self._planes[self._fixed, 0, 3])
        flat = np.array([s.ends is None or s.shape.kind == "box" for s in solids] + [False])
        self._has_capsules = ~(self._has_planes & flat[self._fixed])
        self._groups_of_pairs = (pairs.world & ~pairs.intended, ~pairs.world & ~pairs.intended)

    def sweep(self, curve: Spline, begin_ns: int) -> Sweep:
        """The first contact of a curve from begin_ns to its end, and the least clearances."""
        if not len(self.model.pairs.first):
            return Sweep(None, None, None)
        samples = self._sample(curve, begin_ns)
        moved = self._motion(samples)
        bounds, margin = self._bounds(samples, moved)
        hit = self._first_contact(samples, moved, margin, bounds)
        last = len(moved) if hit is None else hit[0] + 1
        nearest = [
            self._nearest(samples, moved, bounds, last, chosen) for chosen in self._groups_of_pairs
        ]
        contact = None if hit is None else self._contact(samples, float(margin[hit[1]]), *hit)
        return Sweep(contact, *nearest)

    def _sample(self, curve: Spline, begin_ns: int) -> _Samples:
        """Configurations at the curve's points, and as many between them as STEP asks for."""
        later = curve.times_ns[curve.times_ns > begin_ns]
        samples = self._at(curve, np.concatenate([[begin_ns], later]).astype(np.int64))
        for _ in range(REFINEMENTS):
            steps = samples.displacements.max(axis=1, initial=0.0)
            if (steps <= STEP).all():
                break
            parts = np.ceil(steps / (AIM * STEP)).astype(np.int64)
            parts = np.clip(parts, 1, SUBDIVISIONS)
            begins = np.repeat(samples.times_ns[:-1], parts)
            lengths = np.repeat(np.diff(samples.times_ns) / parts, parts)
            index = np.arange(len(begins)) - np.repeat(np.cumsum(parts) - parts, parts)
            inner = begins + np.round(index * lengths).astype(np.int64)
            samples = self._at(curve, np.append(inner, samples.times_ns[-1]))
        return samples

    def _at(self, curve: Spline, times_ns: Stamps) -> _Samples:
        positions = curve(times_ns)[0]
        rotations, origins = self.model.poses(positions)
        ends = np.empty((len(times_ns), len(self._radius), 2, 3))
        for joint, members in self._groups:
            points = self._local[members].reshape(-1, 3)
            placed = points @ rotations[joint].transpose(0, 2, 1) + origins[joint][:, None]
            ends[:, members] = placed.reshape(len(times_ns), -1, 2, 3)
        shifts = np.sqrt(np.square(np.diff(ends, axis=0)).sum(axis=3).max(axis=2))
        # The trace of a rotation is 1 + 2 cos: a point at radius r moves by r sqrt(3 - trace).
        trace = np.einsum("vnij,vnij->nv", rotations[:, 1:], rotations[:, :-1])
        turns = np.sqrt(np.maximum(0.0, 3.0 - trace))
        displacements = shifts + turns[:, self._carriers] * self._radius
        return _Samples(times_ns, positions, rotations, origins, ends, displacements)

    def _motion(self, samples: _Samples) -> Array:
        """(N, P) m: the motion of two solids against each other, summed from the first sample."""
        pairs = self.model.pairs
        solid = samples.displacements
        joints = np.abs(np.diff(samples.positions, axis=0))
        both = solid[:, pairs.first] + solid[:, pairs.second]
        relative = np.minimum(joints @ pairs.reach.T, both)
        moved = np.zeros((len(solid) + 1, len(pairs.first)))
        step = np.where(self._both_move, relative, solid[:, self._mover])
        np.cumsum(step, axis=0, out=moved[1:])
        return moved

    def _bounds(self, samples: _Samples, moved: Array) -> tuple[_Bounds, Array]:
        """Lower bounds of the distances, and the margin (P,) of every pair.

        All pairs at every BLOCK-th sample, and a pair at the samples of a block where its motion
        might bring it below its margin, or below the least clearance by STEP.
        """
        count, width = moved.shape
        grid = np.append(np.arange(0, count - 1, BLOCK), count - 1)
        rows = np.repeat(grid, width)
        columns = np.tile(np.arange(width), len(grid))
        coarse = self._lower_bounds(samples, rows, columns).reshape(len(grid), width)
        margin = self._margins(samples, coarse[0])
        wanted = margin.copy()
        for chosen in self._groups_of_pairs:
            if chosen.any():
                least = min(float(coarse[:, chosen].min()), SHOWN_WITHIN) - STEP
                wanted[chosen] = np.maximum(wanted[chosen], least)
        # By the triangle inequality, from both ends of a block.
        least = 0.5 * (coarse[:-1] + coarse[1:] - (moved[grid[1:]] - moved[grid[:-1]]))
        block, pair = np.nonzero(least < wanted)
        fine = (grid[block][:, None] + np.arange(1, BLOCK)).ravel()
        column = np.repeat(pair, BLOCK - 1)
        inside = fine < np.repeat(grid[block + 1], BLOCK - 1)
        fine = fine[inside]
        column = column[inside]
        values = self._lower_bounds(samples, fine, column)
        return _Bounds(
            np.concatenate([coarse.ravel(), values]),
            np.concatenate([rows, fine]),
            np.concatenate([columns, column]),
        ), margin

    def _margins(self, samples: _Samples, bounds: Array) -> Array:
        """(P,) m, smaller where the motion begins inside a margin: it may leave, or stay.

        bounds: (P,) lower bounds of the distances at the first sample.
        """
        margin = self.model.pairs.margin.copy()
        for p in np.flatnonzero(bounds < margin):
            distance = self._distance(samples, 0, int(p))[0]
            if distance < margin[p] - SLACK:
                margin[p] = distance - RELEASE
            elif distance < margin[p]:
                margin[p] -= SLACK
        return margin

    def _lower_bounds(self, samples: _Samples, rows: Index, columns: Index) -> Array:
        """(K,) m: lower bounds of the distances of pairs `columns` at samples `rows`."""
        bounds = np.full(len(rows), -np.inf)
        chosen = np.flatnonzero(self._has_capsules[columns])
        if len(chosen):
            first = self.model.pairs.first[columns[chosen]]
            second = self.model.pairs.second[columns[chosen]]
            row = rows[chosen]
            apart = _segment_distances(samples.ends[row, first], samples.ends[row, second])
            bounds[chosen] = apart - self._radius[first] - self._radius[second]
        chosen = np.flatnonzero(self._has_planes[columns])
        if len(chosen):
            mover = self._mover[columns[chosen]]
            planes = self._planes[self._fixed[columns[chosen]]]  # (K, F, 4)
            ends = samples.ends[rows[chosen], mover]  # (K, 2, 3)
            heights = planes[:, :, :3] @ ends.transpose(0, 2, 1)  # (K, F, 2)
            excess = (heights.min(axis=2) - planes[:, :, 3]).max(axis=1)
            bounds[chosen] = np.maximum(bounds[chosen], excess - self._radius[mover])
        return bounds

    def _distance(self, samples: _Samples, row: int, column: int) -> tuple[float, Array]:
        """The distance of a pair at a sample, m, and the point (3,) of its second solid."""
        pairs = self.model.pairs
        first = self.model.solids[pairs.first[column]]
        second = self.model.solids[pairs.second[column]]
        poses = [
            (samples.rotations[solid.joint, row], samples.origins[solid.joint, row])
            for solid in (first, second)
        ]
        return solid_distance(first, poses[0], second, poses[1])

    def _first_contact(
        self, samples: _Samples, moved: Array, margin: Array, bounds: _Bounds
    ) -> tuple[int, int] | None:
        """Sample and pair of the first contact."""
        near = bounds.values < margin[bounds.columns]
        rows = bounds.rows[near]
        columns = bounds.columns[near]
        found: tuple[int, int] | None = None
        for p in np.unique(columns).tolist():
            waiting = np.sort(rows[columns == p])
            if found is not None:
                waiting = waiting[waiting < found[0]]
            while len(waiting):
                row = int(waiting[0])
                distance = self._distance(samples, row, p)[0]
                if distance < margin[p]:
                    found = (row, p)
                    break
                # As far as the distance reaches, the pair cannot meet.
                free = moved[waiting, p] - moved[row, p] < distance - margin[p]
                free[0] = True
                waiting = waiting[~free]
        return found

    def _nearest(
        self, samples: _Samples, moved: Array, bounds: _Bounds, last: int, chosen: Flags
    ) -> Clearance | None:
        """The least distance of some pairs before sample `last`, to within STEP."""
        kept = np.flatnonzero(chosen[bounds.columns] & (bounds.rows < last))
        if not len(kept):
            return None
        values = bounds.values[kept].copy()
        rows = bounds.rows[kept]
        columns = bounds.columns[kept]
        settled = self.model.pairs.exact[columns]
        for _ in range(QUERIES):
            k = int(np.argmin(values))
            if settled[k] or values[k] > SHOWN_WITHIN:
                break
            column = int(columns[k])
            distance = self._distance(samples, int(rows[k]), column)[0]
            same = columns == column
            away = np.abs(moved[rows[same], column] - moved[rows[k], column])
            values[same] = np.maximum(values[same], distance - away)
            settled[k] = True
        k = int(np.argmin(values))
        at_least = not settled[k] or values[k] > SHOWN_WITHIN
        pairs = self.model.pairs
        return Clearance(
            self.model.solids[pairs.first[columns[k]]].body,
            self.model.solids[pairs.second[columns[k]]].body,
            min(float(values[k]), SHOWN_WITHIN),
            float(samples.times_ns[rows[k]] - samples.times_ns[0]) / NANOSECONDS,
            at_least,
        )

    def _contact(self, samples: _Samples, margin: float, row: int, column: int) -> Contact:
        distance, point = self._distance(samples, row, column)
        pairs = self.model.pairs
        base = self.model.base
        return Contact(
            self.model.solids[pairs.first[column]].body,
            self.model.solids[pairs.second[column]].body,
            int(samples.times_ns[row]),
            int(samples.times_ns[max(0, row - 1)]),
            base[:3, :3].T @ (point - base[:3, 3]),
            distance,
            margin,
        )


def _segment_distances(first: Array, second: Array) -> Array:
    """(K,) m between segments (K, 2, 3); Ericson, "Real-Time Collision Detection", 2005, 5.1.9."""
    u = first[:, 1] - first[:, 0]
    v = second[:, 1] - second[:, 0]
    w = first[:, 0] - second[:, 0]
    a = np.einsum("ij,ij->i", u, u) + TINY
    b = np.einsum("ij,ij->i", u, v)
    c = np.einsum("ij,ij->i", u, w)
    e = np.einsum("ij,ij->i", v, v) + TINY
    f = np.einsum("ij,ij->i", v, w)
    s = np.clip((b * f - c * e) / np.maximum(a * e - b * b, TINY * TINY), 0.0, 1.0)
    t = np.clip((b * s + f) / e, 0.0, 1.0)
    s = np.clip((b * t - c) / a, 0.0, 1.0)
    apart = w + s[:, None] * u - t[:, None] * v
    return np.sqrt(np.einsum("ij,ij->i", apart, apart))
