"""Slowing a motion down to what the joints may do: a bounded tracker of a curve.

Starting from a given position and velocity, each joint follows the curve with bounded speed and acceleration, always
able to stop before its position limit. The curve's time advances more slowly where it is too fast for some joint, so
that the path is kept, and waits for joints that lag. Points lie STEP apart and acceleration is constant between them:
cubic interpolation of them reproduces the motion exactly.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.limits import JointBounds
from robovlms_ros.control.spline import Spline
from robovlms_ros.core.types import NANOSECONDS

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
    speed_scaling: Callable[[int], float],
    pace: float = 1.0,
) -> Spline:
    """The motion (M points) from `position`, `velocity` (J,) at the curve's first time that follows it within bounds.

    speed_scaling(time ns): 0 to 1, scales the speed bounds. pace: 0 to 1, the fastest the curve's time may run. A start
    outside the position bounds may move inwards only; a start above the speed bounds slows down at the acceleration
    bound. Ends at rest.
    """
    # Turning round within one step, a joint goes this much further than its points.
    inset = bounds.acceleration * STEP**2 / 8
    inner_lower, inner_upper = bounds.lower + inset, bounds.upper - inset
    joints = list(
        zip(
            bounds.velocity.tolist(),
            bounds.acceleration.tolist(),
            np.minimum(inner_lower, position).tolist(),
            np.maximum(inner_upper, position).tolist(),
        )
    )
    begin_ns = int(curve.times_ns[0])
    count = int(np.ceil((curve.end_ns - begin_ns) / STEP_NS)) * GRID + 1
    samples, sample_slopes = curve(begin_ns + np.arange(count) * (STEP_NS // GRID))
    targets, slopes = np.clip(samples, inner_lower, inner_upper).tolist(), sample_slopes.tolist()
    # Plain floats from here: on seven numbers NumPy takes ten times as long.
    p, v, phase = position.tolist(), velocity.tolist(), 0.0  # phase counts grid samples
    positions, velocities = [p], [v]
    for step in range(count // GRID + OVERTIME_NS // STEP_NS):
        target, slope = targets[int(phase)], slopes[int(phase)]
        lag = max(abs(t - x) for t, x in zip(target, p))
        if phase >= count - 1 and lag < SETTLED and max(map(abs, v)) < SETTLED:
            break
        share = max(0.0, min(1.0, speed_scaling(begin_ns + step * STEP_NS)))
        fastest = max(abs(s) / max(share * joint[0], 1e-9) for s, joint in zip(slope, joints))
        speed = min(pace, max(0.0, min(1.0, 2.0 - lag / LAG)), 1.0 / max(1.0, fastest))
        moved = [advance(*each, speed, share) for each in zip(p, v, target, slope, joints)]
        p, v = [m[0] for m in moved], [m[1] for m in moved]
        phase = min(phase + speed * GRID, float(count - 1))
        positions.append(p)
        velocities.append(v)
    while any(v) or len(positions) < 2:
        slower = [x - max(-joint[1] * STEP, min(joint[1] * STEP, x)) for x, joint in zip(v, joints)]
        p, v = [x + (a + b) * (STEP / 2) for x, a, b in zip(p, v, slower)], slower
        positions.append(p)
        velocities.append(v)
    times_ns = begin_ns + STEP_NS * np.arange(len(positions), dtype=np.int64)
    return Spline(times_ns, np.array(positions), np.array(velocities))


def advance(
    p: float,
    v: float,
    target: float,
    slope: float,
    joint: tuple[float, float, float, float],
    speed: float,
    share: float,
    step: float = STEP,
) -> tuple[float, float]:
    """One joint's position and velocity `step` seconds later, as near to the curve's as its bounds allow.

    slope: the curve's velocity, run at `speed`. joint: its speed, acceleration, lowest and highest position.
    """
    ceiling, acceleration, lower, upper = joint
    ceiling *= share
    error = target - p
    back = math.copysign(min(STIFFNESS * abs(error), math.sqrt(acceleration * abs(error))), error)
    wish = max(-ceiling, min(ceiling, speed * slope + back))
    wish = min(wish, _braking(upper - p, v, acceleration, step))
    wish = max(wish, -_braking(p - lower, -v, acceleration, step))
    after = max(v - acceleration * step, min(v + acceleration * step, wish))
    return p + (v + after) * (step / 2), after


def _braking(room: float, v: float, acceleration: float, step: float) -> float:
    """The greatest velocity after the next step from which a joint still stops within `room`."""
    a = MARGIN * acceleration
    under = (a * step / 2) ** 2 + 2 * a * (room - v * (step / 2))
    return math.sqrt(max(under, 0.0)) - a * step / 2
