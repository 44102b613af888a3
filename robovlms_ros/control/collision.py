"""The gate's collision check: a whole motion is swept against the robot's own links and the world.

Between two checked configurations no point of the robot moves by more than STEP. A capsule around
every solid gives a lower bound of each pair's distance, at first at every BLOCK-th configuration:
the pair's motion in between (measured for the world, bounded by the joints' for two links) decides
where the bound is computed again. coal computes the distance itself where a bound falls below the
margin, and skips the configurations that the distance rules out (conservative advancement; Mirtich,
"Impulse-based dynamic simulation of rigid body systems", 1996).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.collision_solids import CollisionModel, Index, solid_distance
from robovlms_ros.control.description.robot_tree import Array
from robovlms_ros.control.trajectory import Spline, Stamps
from robovlms_ros.core.types import NANOSECONDS

Flags = NDArray[np.bool_]

STEP = 0.01
"""m: largest motion of any point of the robot between two checked configurations."""
SPACING_NS = 40_000_000
"""At 16 rad/s^2 a joint leaves the straight line between two such points by 3 mrad."""
AIM = 0.9
"""Part of STEP between configurations: the path between two is longer than its chord."""
REFINEMENTS = 3
SUBDIVISIONS = 200
BLOCK = 8
QUERIES = 3
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

    ends: (N, S, 2, 3). displacements: (N - 1, S) m, bound of the motion of a solid's points from
    one configuration to the next one.
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
    pairs: Index


@dataclass
class _Motion:
    """Pairs (A,) that a motion might bring too near, and their relative motion.

    moved: (N, A) m, summed from the first sample. columns: (P,) of a pair in it, -1 for others.
    """

    pairs: Index
    moved: Array
    columns: Index

    def since(self, pair: int, rows: Index, row: int) -> Array:
        """m by which a pair moves at most between samples `rows` and `row`."""
        moved = self.moved[:, self.columns[pair]]
        return np.abs(moved[rows] - moved[row])


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
        self._fixed = np.where(second_fixed, pairs.second, pairs.first)
        slabs = [solid.slab is not None for solid in solids]
        boxes = [solid.ends is None or solid.shape.kind == "box" for solid in solids]
        self._has_slab = np.array(slabs, dtype=np.bool_)[self._fixed] & ~self._both_move
        # The faces of a box bound it more closely than the capsule around it.
        self._has_capsules = ~(self._has_slab & np.array(boxes, dtype=np.bool_)[self._fixed])
        self._slabs = np.stack([np.zeros((2, 3)) if s.slab is None else s.slab for s in solids])
        self._poses = np.stack([solid.pose for solid in solids])
        self._counted = (pairs.world & ~pairs.intended, ~pairs.world)

    def sweep(self, curve: Spline, begin_ns: int, share: float = 1.0) -> Sweep:
        """The first contact of a curve from begin_ns to its end, and the least clearances.

        share: 0 to 1, the part of the margins that is kept.
        """
        if not len(self.model.pairs.first):
            return Sweep(None, None, None)
        samples = self._sample(curve, begin_ns)
        count = len(self.model.pairs.first)
        last = len(samples.times_ns) - 1
        rows = np.repeat([0, last], count)
        every = np.tile(np.arange(count), 2)
        ends = _Bounds(self._lower_bounds(samples, rows, every), rows, every)
        first = ends.values[:count]
        final = ends.values[count:]
        margin = self._margins(samples, first, share)
        wanted = self._wanted(margin, np.minimum(first, final))
        motion = self._motion(samples, 0.5 * (first + final) - wanted)
        bounds = self._bounds(samples, motion, margin)
        hit = self._first_contact(samples, motion, margin, bounds)
        end = last if hit is None else hit[0]
        everything = _Bounds(
            np.concatenate([ends.values, bounds.values]),
            np.concatenate([rows, bounds.rows]),
            np.concatenate([every, bounds.pairs]),
        )
        nearest = [self._nearest(samples, motion, everything, end, c) for c in self._counted]
        contact = None if hit is None else self._contact(samples, float(margin[hit[1]]), *hit)
        return Sweep(contact, *nearest)

    def _sample(self, curve: Spline, begin_ns: int) -> _Samples:
        """Configurations at the curve's points, SPACING_NS apart or more, and as many between them
        as STEP requires."""
        later = curve.times_ns[curve.times_ns > begin_ns]
        chosen = np.unique((later - begin_ns) // SPACING_NS, return_index=True)[1]
        times_ns = np.concatenate([[begin_ns], later[chosen], later[-1:]]).astype(np.int64)
        samples = self._at(curve, np.unique(times_ns))
        for _ in range(REFINEMENTS):
            steps = samples.displacements.max(axis=1, initial=0.0)
            if (steps <= STEP).all():
                break
            parts = np.ceil(steps / (AIM * STEP)).astype(np.int64)
            parts = np.clip(parts, 1, SUBDIVISIONS)
            begins = np.repeat(samples.times_ns[:-1], parts)
            lengths = np.repeat(np.diff(samples.times_ns) / parts, parts)
            index = np.arange(len(begins)) - np.repeat(np.cumsum(parts) - parts, parts)
            between = index > 0
            inner = begins + np.round(index * lengths).astype(np.int64)
            samples = self._merged(samples, self._at(curve, inner[between]))
        return samples

    def _at(self, curve: Spline, times_ns: Stamps) -> _Samples:
        positions = curve(times_ns)[0]
        rotations, origins = self.model.poses(positions)
        ends = np.empty((len(times_ns), len(self._radius), 2, 3))
        for joint, members in self._groups:
            points = self._local[members].reshape(-1, 3)
            placed = points @ rotations[joint].transpose(0, 2, 1) + origins[joint][:, None]
            ends[:, members] = placed.reshape(len(times_ns), -1, 2, 3)
        displacements = self._displacements(rotations, ends)
        return _Samples(times_ns, positions, rotations, origins, ends, displacements)

    def _merged(self, first: _Samples, then: _Samples) -> _Samples:
        times_ns = np.concatenate([first.times_ns, then.times_ns])
        order = np.argsort(times_ns, kind="stable")
        rotations = np.concatenate([first.rotations, then.rotations], axis=1)[:, order]
        ends = np.concatenate([first.ends, then.ends])[order]
        return _Samples(
            times_ns[order],
            np.concatenate([first.positions, then.positions])[order],
            rotations,
            np.concatenate([first.origins, then.origins], axis=1)[:, order],
            ends,
            self._displacements(rotations, ends),
        )

    def _displacements(self, rotations: Array, ends: Array) -> Array:
        shift = ends[1:] - ends[:-1]
        squares = np.einsum("nsej,nsej->nse", shift, shift)
        shifts = np.sqrt(np.maximum(squares[:, :, 0], squares[:, :, 1]))
        # The trace of a rotation is 1 + 2 cos: a point at radius r moves by r sqrt(3 - trace).
        trace = np.einsum("vnij,vnij->nv", rotations[:, 1:], rotations[:, :-1])
        turns = np.sqrt(np.maximum(0.0, 3.0 - trace))
        return shifts + turns[:, self._carriers] * self._radius

    def _wanted(self, margin: Array, bounds: Array) -> Array:
        """(P,) m: distances below which a pair matters, for a contact or the least clearance."""
        wanted = margin.copy()
        for chosen in self._counted:
            if chosen.any():
                least = min(float(bounds[chosen].min()), SHOWN_WITHIN) - STEP
                wanted[chosen] = np.maximum(wanted[chosen], least)
        return wanted

    def _motion(self, samples: _Samples, room: Array) -> _Motion:
        """The motion of the pairs whose whole motion exceeds twice their room (P,), m."""
        pairs = self.model.pairs
        solid = samples.displacements
        joints = np.abs(np.diff(samples.positions, axis=0))
        travel = solid.sum(axis=0)
        whole = travel[pairs.first] + travel[pairs.second]
        relative = pairs.reach @ joints.sum(axis=0)
        whole = np.where(self._both_move, np.minimum(whole, relative), travel[self._mover])
        active = np.flatnonzero(0.5 * whole > room)
        columns = np.full(len(room), -1, dtype=np.int64)
        columns[active] = np.arange(len(active))
        both = solid[:, pairs.first[active]] + solid[:, pairs.second[active]]
        relative = np.minimum(joints @ pairs.reach[active].T, both)
        alone = solid[:, self._mover[active]]
        moved = np.zeros((len(solid) + 1, len(active)))
        np.cumsum(np.where(self._both_move[active], relative, alone), axis=0, out=moved[1:])
        return _Motion(active, moved, columns)

    def _bounds(self, samples: _Samples, motion: _Motion, margin: Array) -> _Bounds:
        """Lower bounds at every BLOCK-th sample, and at all samples of a block where a pair's
        motion might bring it below its margin, or below the least clearance by STEP."""
        moved = motion.moved
        count, width = moved.shape
        grid = np.append(np.arange(0, count - 1, BLOCK), count - 1)
        rows = np.repeat(grid, width)
        pairs = np.tile(motion.pairs, len(grid))
        coarse = self._lower_bounds(samples, rows, pairs)
        table = np.full(len(margin), np.inf)
        np.minimum.at(table, pairs, coarse)
        wanted = self._wanted(margin, table)[motion.pairs]
        values = coarse.reshape(len(grid), width)
        # By the triangle inequality, from both ends of a block.
        least = 0.5 * (values[:-1] + values[1:] - (moved[grid[1:]] - moved[grid[:-1]]))
        block, column = np.nonzero(least < wanted)
        fine = (grid[block][:, None] + np.arange(1, BLOCK)).ravel()
        inside = fine < np.repeat(grid[block + 1], BLOCK - 1)
        fine = fine[inside]
        pair = motion.pairs[np.repeat(column, BLOCK - 1)[inside]]
        return _Bounds(
            np.concatenate([coarse, self._lower_bounds(samples, fine, pair)]),
            np.concatenate([rows, fine]),
            np.concatenate([pairs, pair]),
        )

    def _margins(self, samples: _Samples, bounds: Array, share: float) -> Array:
        """(P,) m, smaller where the motion begins inside a margin: it may leave, or stay.

        bounds: (P,) lower bounds of the distances at the first sample.
        """
        margin = self.model.pairs.margin * np.where(self.model.pairs.intended, 1.0, share)
        for p in np.flatnonzero(bounds < margin).tolist():
            distance = self._distance(samples, 0, p)[0]
            if distance < margin[p] - SLACK:
                margin[p] = distance - RELEASE
            elif distance < margin[p]:
                margin[p] -= SLACK
        return margin

    def _lower_bounds(self, samples: _Samples, rows: Index, pairs: Index) -> Array:
        """(K,) m: lower bounds of the distances of `pairs` at samples `rows`."""
        bounds = np.full(len(rows), -np.inf)
        chosen = np.flatnonzero(self._has_capsules[pairs])
        first = self.model.pairs.first[pairs[chosen]]
        second = self.model.pairs.second[pairs[chosen]]
        row = rows[chosen]
        apart = _segment_distances(samples.ends[row, first], samples.ends[row, second])
        bounds[chosen] = apart - self._radius[first] - self._radius[second]
        chosen = np.flatnonzero(self._has_slab[pairs])
        mover = self._mover[pairs[chosen]]
        fixed = self._fixed[pairs[chosen]]
        pose = self._poses[fixed]  # (K, 4, 4)
        ends = samples.ends[rows[chosen], mover] - pose[:, None, :3, 3]
        ends = np.einsum("kej,kji->kei", ends, pose[:, :3, :3])  # in the body's axes
        low = self._slabs[fixed, 0]
        high = self._slabs[fixed, 1]
        above = np.minimum(ends[:, 0], ends[:, 1]) - high
        below = low - np.maximum(ends[:, 0], ends[:, 1])
        excess = np.maximum(above, below)  # (K, 3)
        excess = np.maximum(np.maximum(excess[:, 0], excess[:, 1]), excess[:, 2])
        bounds[chosen] = np.maximum(bounds[chosen], excess - self._radius[mover])
        return bounds

    def _distance(self, samples: _Samples, row: int, pair: int) -> tuple[float, Array]:
        """The distance of a pair at a sample, m, and the point (3,) of its second solid."""
        pairs = self.model.pairs
        first = self.model.solids[pairs.first[pair]]
        second = self.model.solids[pairs.second[pair]]
        poses = [
            (samples.rotations[solid.joint, row], samples.origins[solid.joint, row])
            for solid in (first, second)
        ]
        return solid_distance(first, poses[0], second, poses[1])

    def _first_contact(
        self, samples: _Samples, motion: _Motion, margin: Array, bounds: _Bounds
    ) -> tuple[int, int] | None:
        """Sample and pair of the first contact."""
        near = bounds.values < margin[bounds.pairs]
        rows = bounds.rows[near]
        pairs = bounds.pairs[near]
        found: tuple[int, int] | None = None
        for pair in np.unique(pairs).tolist():
            waiting = np.sort(rows[pairs == pair])
            if found is not None:
                waiting = waiting[waiting < found[0]]
            while len(waiting):
                row = int(waiting[0])
                distance = self._distance(samples, row, pair)[0]
                if distance < margin[pair]:
                    found = (row, pair)
                    break
                # As far as the distance reaches, the pair cannot meet.
                free = motion.since(pair, waiting, row) < distance - margin[pair]
                free[0] = True
                waiting = waiting[~free]
        return found

    def _nearest(
        self, samples: _Samples, motion: _Motion, bounds: _Bounds, end: int, chosen: Flags
    ) -> Clearance | None:
        """The least distance of some pairs up to sample `end`, to within STEP."""
        if not chosen.any():
            return None
        kept = np.flatnonzero(chosen[bounds.pairs] & (bounds.rows <= end))
        values = bounds.values[kept]
        rows = bounds.rows[kept]
        pairs = bounds.pairs[kept]
        settled = self.model.pairs.exact[pairs]
        for _ in range(QUERIES):
            k = int(np.argmin(values))
            if settled[k] or values[k] > SHOWN_WITHIN:
                break
            pair = int(pairs[k])
            distance = self._distance(samples, int(rows[k]), pair)[0]
            if motion.columns[pair] >= 0:
                same = pairs == pair
                away = motion.since(pair, rows[same], int(rows[k]))
                values[same] = np.maximum(values[same], distance - away)
            values[k] = distance
            settled[k] = True
        k = int(np.argmin(values))
        at_least = not settled[k] or values[k] > SHOWN_WITHIN
        first, second = self._bodies(int(pairs[k]))
        seconds = float(samples.times_ns[rows[k]] - samples.times_ns[0]) / NANOSECONDS
        return Clearance(first, second, min(float(values[k]), SHOWN_WITHIN), seconds, at_least)

    def _bodies(self, pair: int) -> tuple[str, str]:
        solids = self.model.solids
        pairs = self.model.pairs
        return solids[pairs.first[pair]].body, solids[pairs.second[pair]].body

    def _contact(self, samples: _Samples, margin: float, row: int, pair: int) -> Contact:
        distance, point = self._distance(samples, row, pair)
        base = self.model.base
        first, second = self._bodies(pair)
        return Contact(
            first,
            second,
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
    s = _to_unit((b * f - c * e) / np.maximum(a * e - b * b, TINY * TINY))
    t = _to_unit((b * s + f) / e)
    s = _to_unit((b * t - c) / a)
    apart = w + s[:, None] * u - t[:, None] * v
    return np.sqrt(np.einsum("ij,ij->i", apart, apart))


def _to_unit(values: Array) -> Array:
    """Values clipped to 0 to 1; np.clip takes three times as long on so few."""
    return np.minimum(np.maximum(values, 0.0), 1.0)
