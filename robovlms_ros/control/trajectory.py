"""Joint trajectories as piecewise cubic curves: limits, and slowing down to them.

A curve passes through positions and velocities, as a joint_trajectory_controller interpolates them.
Its extremes in position, speed and acceleration are exact. A bounded tracker slows a motion down to
the joints' limits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.robot import JointLimits
from robovlms_ros.core.types import NANOSECONDS, Array, TrajectoryCommand

Stamps = NDArray[np.int64]

SEPARATION_NS = 2_000
"""Points nearer than this contain nothing that double precision could interpolate; the gate refuses
half of it."""


@dataclass(frozen=True)
class Spline:
    """Cubic Hermite segments, exact under the controller's interpolation; at rest outside.

    times_ns: (N,) int64, strictly increasing, absolute. positions, velocities: (N, J), rad and
        rad/s.
    """

    times_ns: Stamps
    positions: Array
    velocities: Array

    @property
    def end_ns(self) -> int:
        return int(self.times_ns[-1])

    def __call__(self, times_ns: Stamps) -> tuple[Array, Array]:
        """Positions and velocities (M, J) at absolute times (M,); the first or last position, at
        rest, outside."""
        if len(self.times_ns) == 1:
            shape = (len(times_ns), self.positions.shape[1])
            return np.broadcast_to(self.positions[0], shape).copy(), np.zeros(shape)
        i = np.clip(np.searchsorted(self.times_ns, times_ns, side="right") - 1, 0, len(self.times_ns) - 2)
        begin = self.times_ns[i]
        end = self.times_ns[i + 1]
        h = ((end - begin) / NANOSECONDS)[:, None]  # (M, 1)
        inside = np.clip(times_ns, begin, end)
        s = ((inside - begin) / NANOSECONDS)[:, None] / h
        p0 = self.positions[i]
        p1 = self.positions[i + 1]
        v0 = self.velocities[i] * h
        v1 = self.velocities[i + 1] * h
        c2 = 3 * (p1 - p0) - 2 * v0 - v1
        c3 = 2 * (p0 - p1) + v0 + v1
        positions = p0 + s * (v0 + s * (c2 + s * c3))
        velocities = (v0 + s * (2 * c2 + s * 3 * c3)) / h
        velocities[inside != times_ns] = 0.0
        return positions, velocities


def curve_of(command: TrajectoryCommand, now_ns: int = 0) -> Spline:
    """A command's points at absolute times; a stamp of 0 means now_ns."""
    times_ns = (command.stamp_ns or now_ns) + np.round(command.times * NANOSECONDS).astype(np.int64)
    return Spline(times_ns, command.positions, command.velocities)


def central_differences(times_ns: Stamps, positions: Array) -> Array:
    """Velocities (N, J), rad/s, of positions (N, J) at times (N,): second order, also at the ends
    from three points."""
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

    A point of `first` less than SEPARATION_NS before it is left out: what that changes is below
    1e-6 rad.
    """
    early = first.times_ns < then.times_ns[0] - SEPARATION_NS
    return Spline(
        np.concatenate([first.times_ns[early], then.times_ns]),
        np.concatenate([first.positions[early], then.positions]),
        np.concatenate([first.velocities[early], then.velocities]),
    )


# Part of a speed or acceleration limit that rounding may use up: planning limits lie further than
# that from the arm's.
TOLERANCE = 0.01
POSITION_TOLERANCE = 1e-6  # rad


@dataclass(frozen=True)
class JointBounds:
    """Bounds that hold for one curve, (J,) each: positions rad, speeds rad/s, accelerations
    rad/s^2."""

    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array


def bounds_of(limits: JointLimits | None, count: int) -> JointBounds:
    """A robot's limits as arrays; none at all for None."""
    if limits is None:
        unlimited = np.full(count, np.inf)
        return JointBounds(-unlimited, unlimited, unlimited, unlimited)
    return JointBounds(*(np.array(getattr(limits, name)) for name in
                         ("position_lower", "position_upper", "velocity", "acceleration")))


def relaxed(bounds: JointBounds, position: Array, velocity: Array) -> JointBounds:
    """Bounds (J,) that give way just so far that a motion already outside them, or faster, may
    continue."""
    return JointBounds(
        np.minimum(bounds.lower, position),
        np.maximum(bounds.upper, position),
        np.maximum(bounds.velocity, np.abs(velocity)),
        bounds.acceleration,
    )


@dataclass(frozen=True)
class Extremes:
    """Per segment (S) and joint (J) of a curve: lowest and highest position, greatest speed and
    acceleration."""

    starts_ns: NDArray[np.int64]
    lowest: Array
    highest: Array
    speed: Array
    acceleration: Array


@dataclass(frozen=True)
class Violation:
    """The worst break of one kind of limit; ratio is the required value over the allowed one
    (speed, acceleration)."""

    kind: str
    text: str
    ratio: float


def cut(curve: Spline, begin_ns: int) -> Spline:
    """The curve from `begin_ns` on: the same motion, with a first point there. At least two
    points."""
    later = curve.times_ns > begin_ns + SEPARATION_NS
    position, velocity = curve(np.array([begin_ns]))
    if not later.any():
        both = np.concatenate([position, position])
        return Spline(np.array([begin_ns, begin_ns + 1_000_000]), both, np.zeros_like(both))
    return Spline(
        np.concatenate([[begin_ns], curve.times_ns[later]]),
        np.concatenate([position, curve.positions[later]]),
        np.concatenate([velocity, curve.velocities[later]]),
    )


def extremes(curve: Spline) -> Extremes:
    """The exact extremes of every segment of a curve of two points or more."""
    h = (np.diff(curve.times_ns) / NANOSECONDS)[:, None]  # (S, 1)
    p0 = curve.positions[:-1]
    p1 = curve.positions[1:]
    v0 = curve.velocities[:-1] * h
    v1 = curve.velocities[1:] * h
    # p(s) = p0 + v0 s + c2 s^2 + c3 s^3, s from 0 to 1.
    c2 = 3 * (p1 - p0) - 2 * v0 - v1
    c3 = 2 * (p0 - p1) + v0 + v1
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(c2 * c2 - 3 * c3 * v0)
        # The form that does not cancel: s = q / (3 c3) and v0 / q.
        q = -(c2 + np.where(c2 < 0, -root, root))
        turns = np.stack([q / (3 * c3), v0 / q, np.zeros_like(p0), np.ones_like(p0)])
        flat = -c2 / (3 * c3)
    turns = np.where((turns > 0) & (turns <= 1), turns, 0.0)  # NaN compares false
    flat = np.where((flat > 0) & (flat < 1), flat, 0.0)
    places = p0 + turns * (v0 + turns * (c2 + turns * c3))
    speeds = np.stack([v0, v1, v0 + flat * (2 * c2 + flat * 3 * c3)]) / h
    accelerations = np.stack([2 * c2, 2 * c2 + 6 * c3]) / h**2
    return Extremes(
        curve.times_ns[:-1],
        places.min(axis=0),
        places.max(axis=0),
        np.abs(speeds).max(axis=0),
        np.abs(accelerations).max(axis=0),
    )


@dataclass(frozen=True)
class NearestLimit:
    """The limit that a curve comes nearest to. use: the part of it in use, 1 at the limit."""

    name: str
    use: float


def nearest_limit(curve: Spline, bounds: JointBounds, joints: tuple[str, ...]) -> NearestLimit:
    """The joint's position, velocity or acceleration limit of which a curve uses most.

    A position's part is the distance from the middle of its range, over half the range.
    """
    here = extremes(curve)
    middle = (bounds.lower + bounds.upper) / 2
    half = (bounds.upper - bounds.lower) / 2
    farthest = np.maximum(np.abs(here.lowest - middle), np.abs(here.highest - middle))
    uses = {
        "position": farthest / half,
        "velocity": here.speed / bounds.velocity,
        "acceleration": here.acceleration / bounds.acceleration,
    }
    kind = max(uses, key=lambda name: float(uses[name].max()))
    joint = int(np.argmax(uses[kind].max(axis=0)))
    return NearestLimit(f"{joints[joint]} {kind}", float(uses[kind].max()))


def violations(curve: Spline, bounds: JointBounds, joints: tuple[str, ...]) -> list[Violation]:
    """The breaks of position, speed and acceleration bounds on a curve, at most one of each
    kind."""
    found = []
    here = extremes(curve)
    out = np.maximum(bounds.lower - here.lowest, here.highest - bounds.upper)
    segment, joint = np.unravel_index(int(np.argmax(out)), out.shape)
    if out[segment, joint] > POSITION_TOLERANCE:
        low = bounds.lower[joint] - here.lowest[segment, joint] > here.highest[segment, joint] - bounds.upper[joint]
        value = (here.lowest if low else here.highest)[segment, joint]
        limit = (bounds.lower if low else bounds.upper)[joint]
        text = f"{joints[joint]} would go to {value:.3f} rad, its limit is {limit:.3f} rad"
        found.append(Violation("position", text, np.inf))
    kinds = (
        ("velocity", "a velocity", here.speed, bounds.velocity, "rad/s"),
        ("acceleration", "an acceleration", here.acceleration, bounds.acceleration, "rad/s^2"),
    )
    for kind, what, values, limits, unit in kinds:
        ratio = values / limits
        segment, joint = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        if ratio[segment, joint] > 1 + TOLERANCE:
            after = (here.starts_ns[segment] - curve.times_ns[0]) / NANOSECONDS
            text = (
                f"{joints[joint]} would reach {what} of {values[segment, joint]:.2f} {unit} after {after:.2f} s, its "
                f"limit is {limits[joint]:.2f} {unit}"
            )
            found.append(Violation(kind, text, float(ratio[segment, joint])))
    return found


STEP_NS = 20_000_000
STEP = STEP_NS / NANOSECONDS
GRID = 4  # samples of the followed curve per step
STIFFNESS = 15.0  # 1/s: how fast small tracking errors are taken back
LAG = 0.03  # rad: where the curve begins to wait for the joints; at twice that it is at rest
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
    """The motion (M points) from `position`, `velocity` (J,) at the curve's first time that follows
    it within bounds.

    speed_scaling(time ns): 0 to 1, scales the speed bounds. pace: 0 to 1, the fastest the curve's
    time may run. A start outside the position bounds may move inwards only; a start above the speed
    bounds slows down at the acceleration bound. Ends at rest.
    """
    # Turning round within one step, a joint goes this much further than its points.
    inset = bounds.acceleration * STEP**2 / 8
    inner_lower = bounds.lower + inset
    inner_upper = bounds.upper - inset
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
    targets = np.clip(samples, inner_lower, inner_upper).tolist()
    slopes = sample_slopes.tolist()
    # Plain floats from here: on seven numbers NumPy takes ten times as long.
    # phase counts grid samples
    p = position.tolist()
    v = velocity.tolist()
    phase = 0.0
    positions = [p]
    velocities = [v]
    for step in range(count // GRID + OVERTIME_NS // STEP_NS):
        target = targets[int(phase)]
        slope = slopes[int(phase)]
        lag = max(abs(t - x) for t, x in zip(target, p))
        if phase >= count - 1 and lag < SETTLED and max(map(abs, v)) < SETTLED:
            break
        share = max(0.0, min(1.0, speed_scaling(begin_ns + step * STEP_NS)))
        fastest = max(abs(s) / max(share * joint[0], 1e-9) for s, joint in zip(slope, joints))
        speed = min(pace, max(0.0, min(1.0, 2.0 - lag / LAG)), 1.0 / max(1.0, fastest))
        phase = min(phase + speed * GRID, float(count - 1))
        # The slope at the step's end: a command that is replaced after one step must turn, too.
        slope = slopes[int(phase)]
        moved = [advance(*each, speed, share) for each in zip(p, v, target, slope, joints)]
        p = [m[0] for m in moved]
        v = [m[1] for m in moved]
        positions.append(p)
        velocities.append(v)
    while any(v) or len(positions) < 2:
        slower = [x - max(-joint[1] * STEP, min(joint[1] * STEP, x)) for x, joint in zip(v, joints)]
        p = [x + (a + b) * (STEP / 2) for x, a, b in zip(p, v, slower)]
        v = slower
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
    """One joint's position and velocity `step` seconds later, as near to the curve's as its bounds
    allow.

    slope: the curve's velocity, run at `speed`. joint: its speed, acceleration, lowest and highest
        position.
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
