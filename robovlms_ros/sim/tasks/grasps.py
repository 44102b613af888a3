"""Turn of the hand about the vertical, so that its fingers fit beside what lies close by.

A yaw of 0 is the hand as at home; the fingers then close along the base frame's y axis.
"""

import math
from collections.abc import Iterable, Sequence

from robovlms_ros.core.types import Array
from robovlms_ros.sim.tasks.objects import WIDTH, TableObject

FINGER_MIDDLE = 0.0515
FINGER_LENGTH = 0.0115
FINGER_WIDTH = 0.0105
"""An open finger beside the grip, m: the distance of its middle, and its half sizes along and
across the closing direction; those of the model's collision mesh, below a neighbour's top."""
CLEARANCE = 0.004
"""What must be left between a finger and a neighbour (m)."""
ROOM_MIDDLE = 0.053
ROOM_LENGTH = 0.014
ROOM_WIDTH = 0.012
"""The finger that a scene leaves room for, where it asks for a goal: a little more than there
is."""


def fold(angle: float) -> float:
    """The same hand within half a turn: -pi/2 to pi/2."""
    return (angle + math.pi / 2) % math.pi - math.pi / 2


def hand_yaw(rotation: Array) -> float:
    """The yaw of a measured hand, from its rotation (3, 3); -pi to pi, for a hand that points about
    down."""
    return math.atan2(-float(rotation[0, 0]), float(rotation[1, 0]))


def clearance(place: Array, yaw: float, neighbours: Iterable[TableObject]) -> float:
    """The least distance (m) between an open hand's fingers about `place` (2,) and the neighbours;
    below 0 they hit."""
    sine = math.sin(yaw)
    cosine = math.cos(yaw)
    least = 1.0
    for thing in neighbours:
        x = float(thing.position[0] - place[0])
        y = float(thing.position[1] - place[1])
        along = y * cosine - x * sine
        across = x * cosine + y * sine
        for middle in (FINGER_MIDDLE, -FINGER_MIDDLE):
            least = min(least, _gap(along - middle, across, thing, thing.yaw - yaw))
    return least


def _gap(along: float, across: float, thing: TableObject, turn: float) -> float:
    """From a finger to a thing that lies there from the finger's middle, turned so against it
    (m)."""
    beside = abs(across) - FINGER_WIDTH
    ahead = abs(along) - FINGER_LENGTH
    if thing.shape != "cube":
        return math.hypot(max(beside, 0.0), max(ahead, 0.0)) + min(max(beside, ahead), 0.0) - thing.radius
    # Of two rectangles: the widest gap that any of their sides' directions shows (separating axes).
    half = WIDTH["cube"] / 2
    sine = math.sin(turn)
    cosine = math.cos(turn)
    s = abs(sine)
    c = abs(cosine)
    return max(
        beside - half * (s + c),
        ahead - half * (s + c),
        abs(across * cosine + along * sine) - half - FINGER_WIDTH * c - FINGER_LENGTH * s,
        abs(along * cosine - across * sine) - half - FINGER_WIDTH * s - FINGER_LENGTH * c,
    )


def has_room(thing: TableObject, neighbours: Sequence[TableObject], place: Array | None = None) -> bool:
    """True if some yaw leaves the ROOM finger CLEARANCE, where the thing lies and at `place` (2,),
    however the
    neighbours are turned: so much a scene leaves to a hand that is less exact than the expert's."""
    spots = [thing.position[:2]] if place is None else [thing.position[:2], place]
    return any(all(leaves_room(spot, yaw, neighbours) for spot in spots) for yaw in candidates(thing))


def leaves_room(spot: Array, yaw: float, neighbours: Iterable[TableObject]) -> bool:
    """`has_room` for one yaw at one spot (2,)."""
    sine = math.sin(yaw)
    cosine = math.cos(yaw)
    for thing in neighbours:
        x = float(thing.position[0] - spot[0])
        y = float(thing.position[1] - spot[1])
        along = abs(y * cosine - x * sine)
        across = abs(x * cosine + y * sine)
        outside = math.hypot(max(abs(along - ROOM_MIDDLE) - ROOM_LENGTH, 0.0), max(across - ROOM_WIDTH, 0.0))
        if outside - thing.radius < CLEARANCE:
            return False
    return True


def candidates(thing: TableObject, now: float = 0.0) -> list[float]:
    """Yaws at which the fingers lie flat against it, the nearest to a hand turned by `now` first.

    From where the hand is, not from home: what imitates the expert gives the mean of two turns that
    are hardly distinguishable (a cube turned by 45 degrees), and a hand that went neither way would
    stand there for good. So a hand that has begun to turn is to go on.
    """
    if thing.shape == "cube":
        turns = [fold(thing.yaw + k * math.pi / 2) for k in range(2)]
    else:
        turns = [fold(now), *(k * math.pi / 6 for k in (0, 1, -1, 2, -2))]
    return sorted(turns, key=lambda turn: abs(turn - now))


def best_yaw(
    thing: TableObject, neighbours: Sequence[TableObject], place: Array | None = None, now: float = 0.0
) -> tuple[float, float]:
    """The smallest turn of a hand turned by `now` that leaves CLEARANCE where the thing lies and at
    `place` (2,), and what it leaves (m); without one, the turn that leaves most."""
    best = (0.0, -1.0)
    for yaw in candidates(thing, now):
        left = clearance(thing.position[:2], yaw, neighbours)
        if place is not None:
            left = min(left, clearance(place, yaw, neighbours))
        if left >= CLEARANCE:
            return yaw, left
        if left > best[1]:
            best = yaw, left
    return best


def push_yaw(thing: Array, place: Array) -> float:
    """The yaw whose fingers close along the way from thing (2,) to place (2,)."""
    way = place - thing
    return fold(math.atan2(-float(way[0]), float(way[1])))
