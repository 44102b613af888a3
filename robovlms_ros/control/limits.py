"""What a cubic curve asks of the joints: its exact extremes in position, speed and acceleration, against limits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.robot import JointLimits
from robovlms_ros.control.spline import SEPARATION_NS, Spline
from robovlms_ros.core.types import NANOSECONDS

Array = NDArray[np.float64]

# Part of a speed or acceleration limit that rounding may use up: planning limits lie further than that from the arm's.
TOLERANCE = 0.01
POSITION_TOLERANCE = 1e-6  # rad


@dataclass(frozen=True)
class JointBounds:
    """Bounds that hold for one curve, (J,) each: positions rad, speeds rad/s, accelerations rad/s^2."""

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
    """Bounds (J,) that give way just so far that a motion already outside them, or faster, may continue."""
    return JointBounds(
        np.minimum(bounds.lower, position),
        np.maximum(bounds.upper, position),
        np.maximum(bounds.velocity, np.abs(velocity)),
        bounds.acceleration,
    )


@dataclass(frozen=True)
class Extremes:
    """Per segment (S) and joint (J) of a curve: lowest and highest position, greatest speed and acceleration."""

    starts_ns: NDArray[np.int64]
    lowest: Array
    highest: Array
    speed: Array
    acceleration: Array


@dataclass(frozen=True)
class Violation:
    """The worst break of one kind of limit; ratio is what was asked over what is allowed (speed, acceleration)."""

    kind: str
    text: str
    ratio: float


def cut(curve: Spline, begin_ns: int) -> Spline:
    """The curve from `begin_ns` on: the same motion, with a first point there. At least two points."""
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
    p0, p1 = curve.positions[:-1], curve.positions[1:]
    v0, v1 = curve.velocities[:-1] * h, curve.velocities[1:] * h
    # p(s) = p0 + v0 s + c2 s^2 + c3 s^3, s from 0 to 1.
    c2, c3 = 3 * (p1 - p0) - 2 * v0 - v1, 2 * (p0 - p1) + v0 + v1
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
    """The breaks of position, speed and acceleration bounds on a curve, at most one of each kind."""
    found, here = [], extremes(curve)
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
