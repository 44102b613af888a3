"""Piecewise cubic curves through positions and velocities: what a joint_trajectory_controller makes of such points."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.types import NANOSECONDS, TrajectoryCommand

Array = NDArray[np.float64]
Stamps = NDArray[np.int64]

SEPARATION_NS = 2_000
"""Points nearer than this say nothing that double precision could interpolate; the gate refuses half of it."""


@dataclass(frozen=True)
class Spline:
    """Cubic Hermite segments, exact under the controller's interpolation; at rest outside.

    times_ns: (N,) int64, strictly increasing, absolute. positions, velocities: (N, J), rad and rad/s.
    """

    times_ns: Stamps
    positions: Array
    velocities: Array

    @property
    def end_ns(self) -> int:
        return int(self.times_ns[-1])

    def __call__(self, times_ns: Stamps) -> tuple[Array, Array]:
        """Positions and velocities (M, J) at absolute times (M,); the first or last position, at rest, outside."""
        if len(self.times_ns) == 1:
            shape = (len(times_ns), self.positions.shape[1])
            return np.broadcast_to(self.positions[0], shape).copy(), np.zeros(shape)
        i = np.clip(np.searchsorted(self.times_ns, times_ns, side="right") - 1, 0, len(self.times_ns) - 2)
        begin, end = self.times_ns[i], self.times_ns[i + 1]
        h = ((end - begin) / NANOSECONDS)[:, None]  # (M, 1)
        inside = np.clip(times_ns, begin, end)
        s = ((inside - begin) / NANOSECONDS)[:, None] / h
        p0, p1 = self.positions[i], self.positions[i + 1]
        v0, v1 = self.velocities[i] * h, self.velocities[i + 1] * h
        c2, c3 = 3 * (p1 - p0) - 2 * v0 - v1, 2 * (p0 - p1) + v0 + v1
        positions = p0 + s * (v0 + s * (c2 + s * c3))
        velocities = (v0 + s * (2 * c2 + s * 3 * c3)) / h
        velocities[inside != times_ns] = 0.0
        return positions, velocities


def curve_of(command: TrajectoryCommand, now_ns: int = 0) -> Spline:
    """A command's points at absolute times; a stamp of 0 means now_ns."""
    times_ns = (command.stamp_ns or now_ns) + np.round(command.times * NANOSECONDS).astype(np.int64)
    return Spline(times_ns, command.positions, command.velocities)


def central_differences(times_ns: Stamps, positions: Array) -> Array:
    """Velocities (N, J), rad/s, of positions (N, J) at times (N,): second order, also at the ends from three points."""
    if len(times_ns) == 1:
        return np.zeros_like(positions)
    seconds = (times_ns - times_ns[0]) / NANOSECONDS
    return np.asarray(np.gradient(positions, seconds, axis=0, edge_order=2 if len(times_ns) > 2 else 1))


def resting_spline_velocities(
    times_ns: Stamps, positions: Array, first: Array | None = None
) -> Array:
    """Velocities (N, J), rad/s, of the cubic spline through positions (N, J) that ends at rest, N 2
    or more.

    Between the ends the acceleration is continuous. first: (J,) the velocity at the first point;
    None for rest.
    """
    count = len(times_ns)
    h = np.diff(times_ns) / NANOSECONDS  # (N - 1,)
    matrix = np.eye(count)
    right = np.zeros_like(positions)
    if first is not None:
        right[0] = first
    inner = np.arange(1, count - 1)
    matrix[inner, inner - 1] = 1 / h[:-1]
    matrix[inner, inner] = 2 * (1 / h[:-1] + 1 / h[1:])
    matrix[inner, inner + 1] = 1 / h[1:]
    slopes = np.diff(positions, axis=0) / h[:, None] ** 2
    right[1:-1] = 3 * (slopes[:-1] + slopes[1:])
    return np.asarray(np.linalg.solve(matrix, right))


def followed_by(first: Spline, then: Spline) -> Spline:
    """The points of `first` before `then` begins, and then `then`.

    A point of `first` less than SEPARATION_NS before it is left out: what that changes is below 1e-6 rad.
    """
    early = first.times_ns < then.times_ns[0] - SEPARATION_NS
    return Spline(
        np.concatenate([first.times_ns[early], then.times_ns]),
        np.concatenate([first.positions[early], then.positions]),
        np.concatenate([first.velocities[early], then.velocities]),
    )
