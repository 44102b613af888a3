"""Motions that end at rest: after a plan's last step, by a smooth stop in its middle, or back to an
arm that did not move."""

import math
from collections.abc import Iterator

import numpy as np

from robovlms_ros.control.trajectory import (
    TOLERANCE,
    JointBounds,
    Spline,
    extremes,
    followed_by,
    limit,
)
from robovlms_ros.core.types import NANOSECONDS, Array

GAP_NS = 25_000_000  # between points
SHORT_STOPS = (0.02, 0.05, 0.08, 0.12, 0.18, 0.27)
"""s: durations of which the shortest within the bounds is taken."""
RESTING = 1e-3
"""rad/s: slower joints rest."""


def come_to_rest(plan: Spline, stop_time: float, bounds: JointBounds) -> Spline:
    """The plan and, after its last step, a stop: only executed when no further plan arrives in
    time.

    It takes stop_time (s), longer where the acceleration demands it, shorter where a position limit
    is near.
    """
    position = plan.positions[-1]
    velocity = plan.velocities[-1]
    speed = np.maximum(np.abs(velocity), 1e-9)
    room = np.where(velocity > 0, bounds.upper - position, position - bounds.lower)
    # The velocity falls as (1 - x)^2: at first by 2 v / T, and it covers v T / 3.
    duration = np.maximum(stop_time, 2 * speed / bounds.acceleration)
    duration = np.clip(duration, 1e-6, np.maximum(3 * room / speed, 1e-6))  # (J,)
    longest = float(duration.max())
    seconds = np.linspace(0, longest, max(1, math.ceil(longest * NANOSECONDS / GAP_NS)) + 1)[1:, None]
    left = 1 - np.clip(seconds / duration, 0.0, 1.0)  # (M, J)
    velocities = velocity * left**2
    velocities[-1] = 0.0
    return Spline(
        np.concatenate([plan.times_ns, plan.end_ns + np.round(seconds[:, 0] * NANOSECONDS).astype(np.int64)]),
        np.concatenate([plan.positions, position + velocity * duration / 3 * (1 - left**3)]),
        np.concatenate([plan.velocities, velocities]),
    )


def move_slowly(
    begin_ns: int, begin: Array, end: Array, bounds: JointBounds, share: float
) -> Spline:
    """A motion from rest to rest, (J,) to (J,) rad, on a straight line in joint space.

    share: the part of the speed bounds, above 0 to 1, that it uses at most; it uses half of the
    acceleration bounds at most.
    """
    distance = np.abs(end - begin)
    # A cubic from rest to rest reaches 1.5 d / T and 6 d / T^2.
    by_speed = 1.5 * distance / (share * bounds.velocity)
    by_acceleration = np.sqrt(12 * distance / bounds.acceleration)
    seconds = max(float(by_speed.max()), float(by_acceleration.max()), GAP_NS / NANOSECONDS)
    times_ns = np.array([begin_ns, begin_ns + round(seconds * NANOSECONDS)])
    positions = np.stack([begin, end])
    return Spline(times_ns, positions, np.zeros_like(positions))


def stop_within(
    plan: Spline, begin_ns: int, stop_time: float, bounds: JointBounds, speed_scaling: float = 1.0
) -> Spline:
    """The plan from begin_ns on, slowed down to rest within the bounds.

    On the plan's path (`slow_down`) where that is possible; where the plan turns so sharply that
    slowing down besides
    would exceed the acceleration bounds, as near to it as they allow: a joint that comes
    to rest too late goes back, no faster than speed_scaling (above 0 to 1) times its speed bound.
    """
    stop = slow_down(plan, begin_ns, stop_time, bounds.acceleration)
    if np.all(extremes(stop).acceleration <= bounds.acceleration * (1 + TOLERANCE)):
        return stop
    return limit(stop, stop.positions[0], stop.velocities[0], bounds, lambda _: speed_scaling)


def rests_before(
    plan: Spline, begin_ns: int, latest_ns: int, stop_time: float, bounds: JointBounds
) -> Iterator[Spline]:
    """Motions that follow the plan and rest at a point that it passes by latest_ns, gentlest first.

    begin_ns: from here on the plan may be slowed down. All but the last keep the plan's path.
    """
    for duration in (stop_time, 0.5 * stop_time):
        stop_ns = latest_ns - round(0.5 * duration * NANOSECONDS)
        for _ in range(3):
            if stop_ns < begin_ns:
                break
            stop = slow_down(plan, stop_ns, duration, bounds.acceleration)
            late_ns = stop_ns + (stop.end_ns - stop_ns) // 2 - latest_ns
            if late_ns <= 0:
                yield followed_by(plan, stop)
                break
            stop_ns -= late_ns
    position, velocity = plan(np.array([begin_ns]))
    if np.abs(velocity).max() <= RESTING:
        still = Spline(
            np.array([begin_ns, begin_ns + GAP_NS]),
            position.repeat(2, axis=0),
            np.zeros((2, position.shape[1])),
        )
        yield followed_by(plan, still)
    yield followed_by(plan, shortest_stop(plan, begin_ns, bounds))


def shortest_stop(
    plan: Spline, begin_ns: int, bounds: JointBounds, speed_scaling: float = 1.0
) -> Spline:
    """The plan from begin_ns on, slowed down to rest along its path as soon as the bounds allow.

    Where they allow no such stop: as in `stop_within`.
    """
    for duration in SHORT_STOPS:
        stop = slow_down(plan, begin_ns, duration, bounds.acceleration)
        if np.all(extremes(stop).acceleration <= bounds.acceleration * (1 + TOLERANCE)):
            return stop
    return stop_within(plan, begin_ns, SHORT_STOPS[-1], bounds, speed_scaling)


def slow_down(plan: Spline, begin_ns: int, stop_time: float, acceleration: Array) -> Spline:
    """The plan from begin_ns on, its pace falling smoothly to zero: the path is kept.

    The stop takes T, at least stop_time (s), and covers T / 2 of the plan's time.
    """
    duration = stop_time
    for _ in range(3):
        ahead = plan(begin_ns + np.linspace(0, duration / 2 * NANOSECONDS, 9).astype(np.int64))[1]
        # The pace 1 - 3 x^2 + 2 x^3 falls by 1.5 / T at most.
        duration = max(duration, float(np.max(1.5 * np.abs(ahead) / acceleration)))
    x = np.linspace(0, 1, max(2, math.ceil(duration * NANOSECONDS / GAP_NS) + 1))
    pace = 1 - x * x * (3 - 2 * x)
    travelled = duration * (x - x**3 + x**4 / 2)
    positions, velocities = plan(begin_ns + np.round(travelled * NANOSECONDS).astype(np.int64))
    times_ns = begin_ns + np.round(duration * x * NANOSECONDS).astype(np.int64)
    return Spline(times_ns, positions, velocities * pace[:, None])
