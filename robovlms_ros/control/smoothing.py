"""Steps that no arm could follow exactly become steps that it can, as little changed as possible."""

import numpy as np

from robovlms_ros.control.spline import Array, Spline
from robovlms_ros.core.types import NANOSECONDS

SHARE = 0.4  # of the acceleration limit: the rest is for joining the running plan, and for the cubics between steps
PASSES = 40


def within_acceleration(curve: Spline, acceleration: Array) -> Spline:
    """The curve with its corners and its jitter rounded where they ask for more than the limits (J,), rad/s^2.

    Around each step that does, steps move towards their neighbours' mean (binomial smoothing) until it does not. All
    joints move together, so that the path keeps its shape; everything else stays as it is. Steps are taken as evenly
    spaced, and the first one never moves.
    """
    if len(curve.times_ns) < 3 or not np.isfinite(acceleration).all():
        return curve
    step = float(np.diff(curve.times_ns).mean()) / NANOSECONDS
    positions, allowed = curve.positions.copy(), SHARE * acceleration * step**2
    for _ in range(PASSES):
        bends = np.diff(positions, n=2, axis=0)  # (N - 2, J)
        sharp = np.logical_or.reduce(np.abs(bends) > allowed, axis=1)
        if not sharp.any():
            break
        near = sharp.copy()
        near[1:] |= sharp[:-1]
        near[:-1] |= sharp[1:]
        positions[1:-1][near] += bends[near] / 4
        if near[-1]:
            positions[-1] -= bends[-1] / 4
    changed = np.flatnonzero((positions != curve.positions).any(axis=1))
    if not len(changed):
        return curve
    velocities = curve.velocities.copy()
    begin, end = max(1, changed[0] - 1), min(len(positions) - 1, changed[-1] + 2)
    velocities[begin:end] = (positions[begin + 1 : end + 1] - positions[begin - 1 : end - 1]) / (2 * step)
    velocities[-1] = (positions[-1] - positions[-2]) / step
    return Spline(curve.times_ns, positions, velocities)


def joining_time(gap: Array, drift: Array, acceleration: Array, shortest: float) -> float:
    """Seconds in which a gap (J,) and a difference of velocity (J,) can be taken back within SHARE of the limits (J,).

    For an offset that falls as gap (1 - a)^3 (1 + 3 a) + drift T / 3 (1 - (1 - a)^3): at first by
    12 gap / T^2 + 2 drift / T. At least `shortest`, at most four times that.
    """
    near, slow = 12 * np.abs(gap) / (SHARE * acceleration), np.abs(drift) / (SHARE * acceleration)  # s^2, s
    needed = float(np.max(slow + np.sqrt(slow**2 + near), initial=0.0))
    return min(max(shortest, needed), 4 * shortest)
