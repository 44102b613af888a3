"""Slowing a motion down to what the joints may do: a bounded tracker of a curve.

Starting from a given position and velocity, each joint follows the curve with bounded speed and acceleration, always
able to stop before its position limit. The curve's time advances more slowly where it is too fast for some joint, so
that the path is kept, and waits for joints that lag. Points lie STEP apart and acceleration is constant between them:
cubic interpolation of them reproduces the motion exactly.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.runtime.limits import JointBounds
from robovlms_ros.runtime.spline import Spline
from robovlms_ros.types import NANOSECONDS

Array = NDArray[np.float64]

STEP_NS = 20_000_000
STEP = STEP_NS / NANOSECONDS
GRID = 4  # samples of the followed curve per step
STIFFNESS = 15.0  # 1/s: how fast small tracking errors are taken back
LAG = 0.03  # rad: where the curve begins to wait for the joints; at twice that it stands still
OVERTIME_NS = 1_000_000_000  # so long after the curve's own end the tracker stops where it is
SETTLED = 1e-4  # rad, rad/s
MARGIN = 0.98  # part of the acceleration limit that the braking laws count on


def limit(
    curve: Spline,
    position: Array,
    velocity: Array,
    bounds: JointBounds,
    authority: Callable[[int], float],
    pace: float = 1.0,
) -> Spline:
    """The motion (M points) from `position`, `velocity` (J,) at the curve's first time that follows it within bounds.

    authority(time ns): 0 to 1, scales the speed bounds. pace: 0 to 1, the fastest the curve's time may run. A start
    outside the position bounds may move inwards only; a start above the speed bounds slows down at the acceleration
    bound. Ends at rest.
    """
    # Turning round within one step, a joint goes this much further than its points.
    inset = bounds.acceleration * STEP**2 / 8
    inner_lower, inner_upper = bounds.lower + inset, bounds.upper - inset
    lower, upper = np.minimum(inner_lower, position), np.maximum(inner_upper, position)
    begin_ns = int(curve.times_ns[0])
    count = int(np.ceil((curve.end_ns - begin_ns) / STEP_NS)) * GRID + 1
    targets, slopes = curve(begin_ns + np.arange(count) * (STEP_NS // GRID))
    targets = np.clip(targets, inner_lower, inner_upper)
    budget = count // GRID + OVERTIME_NS // STEP_NS
    positions, velocities = [position], [velocity]
    p, v, phase = position, velocity, 0.0  # phase counts grid samples
    for step in range(budget):
        index = int(phase)
        error, slope = targets[index] - p, slopes[index]
        if index >= count - 1 and np.abs(error).max() < SETTLED and np.abs(v).max() < SETTLED:
            break
        ceiling = bounds.velocity * max(0.0, min(1.0, authority(begin_ns + step * STEP_NS)))
        speed = min(pace, _pace(slope, error, ceiling))
        back = np.sign(error) * np.minimum(STIFFNESS * np.abs(error), np.sqrt(bounds.acceleration * np.abs(error)))
        p, v = _advance(p, v, speed * slope + back, ceiling, bounds.acceleration, lower, upper)
        phase = min(phase + speed * GRID, float(count - 1))
        positions.append(p)
        velocities.append(v)
    while np.any(v != 0.0) or len(positions) < 2:
        slower = v - np.clip(v, -bounds.acceleration * STEP, bounds.acceleration * STEP)
        p, v = p + (v + slower) * (STEP / 2), slower
        positions.append(p)
        velocities.append(v)
    times_ns = begin_ns + STEP_NS * np.arange(len(positions), dtype=np.int64)
    return Spline(times_ns, np.array(positions), np.array(velocities))


def _pace(slope: Array, error: Array, ceiling: Array) -> float:
    """How fast the curve's time may advance, 0 to 1: no joint above its ceiling, none left behind."""
    fastest = float(np.max(np.abs(slope) / np.maximum(ceiling, 1e-9)))
    waiting = float(np.clip(2.0 - np.abs(error).max() / LAG, 0.0, 1.0))
    return min(1.0, waiting) if fastest <= 1.0 else min(1.0 / fastest, waiting)


def _advance(
    p: Array, v: Array, wish: Array, ceiling: Array, acceleration: Array, lower: Array, upper: Array
) -> tuple[Array, Array]:
    """Position and velocity (J,) one step later, as near to the wished velocity as the bounds allow."""
    wish = np.clip(wish, -ceiling, ceiling)
    wish = np.minimum(wish, _braking(upper - p, v, acceleration))
    wish = np.maximum(wish, -_braking(p - lower, -v, acceleration))
    after = np.clip(wish, v - acceleration * STEP, v + acceleration * STEP)
    return p + (v + after) * (STEP / 2), after


def _braking(room: Array, v: Array, acceleration: Array) -> Array:
    """The greatest velocity after the next step from which the joint still stops within `room`."""
    a = MARGIN * acceleration
    under = (a * STEP / 2) ** 2 + 2 * a * (room - v * (STEP / 2))
    return np.sqrt(np.maximum(under, 0.0)) - a * STEP / 2
