"""Moments on the way of a goal: hand and thing are put where an episode might have brought them,
without running it.

A glimpse costs one picture of each camera, an episode eighty; but hands that merely hang somewhere
above the table never show the last centimetres. So a glimpse's hand hangs anywhere, or is about to
take a goal's thing, or is at it: the thing is held on the way, let down, just released, released
beside its place, or pushed. What to do next follows from that picture alone, as the expert has no
memory.
"""

import math

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.core.rotations import matrix_from_vector
from robovlms_ros.sim.tasks.expert import (
    CARRY,
    DROP,
    FUNNEL_SLOPE,
    GRASP_OFFSET,
    HAND_DOWN,
    LIFT_HEIGHT,
    PLACED,
    PUSH_LEAD,
    RETREAT,
    ExpertPolicy,
)
from robovlms_ros.sim.tasks.language import Goal
from robovlms_ros.sim.tasks.objects import RADIUS, TABLE_Z, TableTruth
from robovlms_ros.sim.world import SimWorld

Array = NDArray[np.float64]

AFAR = 0.3
BEFORE = 0.3
"""Parts of the moments: the hand is anywhere; it is about to take the thing. In the others it is
at it."""
ANY_TURN = 1.0
"""How far a hand that is about to take the thing may be turned, whatever the thing's turn (rad)."""
ATTEMPTS = 20


def put_moment(
    world: SimWorld, kinematics: Kinematics, goal: Goal, rng: np.random.Generator
) -> bool:
    """Put the arm, and what it holds, into a moment of `goal`, which fits the world's scene, within
    reach.

    False, and nothing is changed, for a hand that is to be anywhere, or when no moment drawn could
    be reached.
    """
    kind = rng.uniform()
    if kind < AFAR:
        return False
    now = world.joint_state().positions
    truth = world.ground_truth()
    law = ExpertPolicy(goal, truth, kinematics.forward(now), 1.0)
    for _ in range(ATTEMPTS):
        moment = _before(law, rng) if kind < AFAR + BEFORE else _at_it(law, truth, rng)
        if moment is None:
            continue
        result = kinematics.inverse(moment.hand[None], now)
        if result.reached[0]:
            if moment.thing is not None:
                world.put_thing(goal.thing, moment.thing, moment.yaw)
            world.set_arm(result.positions[0], moment.opening)
            return True
    return False


class _Moment:
    """hand: (4, 4) base_T_eef; thing: (3,) where it is by then, None for where it lies; yaw: the
    hand's, and then the thing's, unless it is set."""

    def __init__(self, position: Array, yaw: float, tilt: Array, opening: float, thing: Array | None = None) -> None:
        turned = matrix_from_vector(np.array((0.0, 0.0, yaw))) @ matrix_from_vector(np.array((*tilt, 0.0)))
        self.hand = np.eye(4)
        self.hand[:3, 3], self.hand[:3, :3] = position, turned @ HAND_DOWN
        self.opening = opening
        self.thing = thing
        self.yaw = yaw


def _before(law: ExpertPolicy, rng: np.random.Generator) -> _Moment:
    """Above the thing, in a cone that is wider than the expert's funnel; the fingers closed only
    where that is free."""
    height = 0.11 * rng.uniform() ** 2
    beside = _disc(rng, 0.004 + 0.45 * height)
    opening = rng.uniform(law.thing.grip, 1.0) if height > 0.05 and rng.uniform() < 0.25 else 1.0
    # Now and then turned anyhow: so a hand is turned that could not decide between two turns.
    yaw = rng.uniform(-ANY_TURN, ANY_TURN) if rng.uniform() < 0.3 else law.yaw + rng.normal() * (0.08 + 3.0 * height)
    position = law.thing.position + np.array((*beside, GRASP_OFFSET + height + rng.uniform(-0.004, 0.0)))
    return _Moment(position, yaw, rng.uniform(-0.06, 0.06, 2), opening)


def _at_it(law: ExpertPolicy, truth: TableTruth, rng: np.random.Generator) -> _Moment | None:
    """None where other things are in the way of what was drawn."""
    if law.goal.task == "push":
        return _pushed(law, rng)
    kind = rng.uniform()
    if kind < 0.15:  # the fingers are closing, or have closed
        return _held(law, law.thing.position, rng, rng.uniform(0.9 * law.thing.grip, 1.0))
    if law.place is None or kind < 0.25:
        rise = rng.uniform(0.0, LIFT_HEIGHT if law.place is None else CARRY[law.goal.task])
        return _held(law, law.thing.position + np.array((*_disc(rng, 0.01), rise)), rng)
    start = law.thing.position
    end = law.place
    carry = CARRY[law.goal.task]
    if kind < 0.4:  # on the way
        position = start + rng.uniform() * (end - start)
        position[:2] += _disc(rng, 0.02)
        position[2] = end[2] + carry + rng.uniform(-0.015, 0.025)
        return _held(law, position, rng)
    if kind < 0.75:  # let down: by the funnel, or too soon
        beside = _disc(rng, 0.035) * rng.uniform()
        away = max(math.hypot(*beside) - 0.005, 0.0)
        funnel = min(FUNNEL_SLOPE * away, carry) * (rng.uniform() if rng.uniform() < 0.4 else 1.0)
        rise = DROP + funnel + rng.uniform(-0.002, 0.02 * rng.uniform())
        return _held(law, end + np.array((*beside, rise)), rng)
    if kind < 0.87:
        return _missed(law, truth, rng)
    # Released: the fingers are opening, or the hand rises.
    lies = end + np.array((*_disc(rng, 0.007), 0.0))
    if rng.uniform() < 0.5:
        return _held(law, lies, rng, rng.uniform(0.9 * law.thing.grip, 1.0))
    moment = _held(law, lies, rng, 1.0)
    moment.hand[2, 3] += rng.uniform(0.0, RETREAT)
    return moment


def _missed(law: ExpertPolicy, truth: TableTruth, rng: np.random.Generator) -> _Moment | None:
    """The thing lies on the table beside its place, where it was released or fell, and the hand is
    still above it."""
    assert law.place is not None
    # Clear of a cube that it was to stand on; off the plate's middle.
    least = law.thing.radius + RADIUS["cube"] if law.goal.task == "stack" else PLACED["put"]
    angle = rng.uniform(0.0, 2 * math.pi)
    away = least + rng.uniform(0.002, 0.03)
    lies = np.array((*law.place[:2], TABLE_Z + law.thing.half_height))
    lies[:2] += away * np.array((math.cos(angle), math.sin(angle)))
    others = truth.others(law.goal.thing)
    if any(math.hypot(*(lies - other.position)[:2]) < law.thing.radius + other.radius for other in others):
        return None
    above = np.array((*_disc(rng, 0.02), GRASP_OFFSET + rng.uniform(0.04, 0.15)))
    moment = _Moment(lies + above, law.yaw + rng.normal() * 0.3, rng.uniform(-0.03, 0.03, 2), 1.0, lies)
    moment.yaw = rng.uniform(-math.pi / 4, math.pi / 4)
    return moment


def _held(law: ExpertPolicy, thing: Array, rng: np.random.Generator, opening: float | None = None) -> _Moment:
    """The fingers about the thing, which lies flat against them."""
    yaw = law.yaw + rng.normal() * 0.08
    across = rng.uniform(-0.005, 0.005) * np.array((math.cos(yaw), math.sin(yaw)))
    position = thing + np.array((*across, GRASP_OFFSET + rng.uniform(-0.003, 0.003)))
    closed = law.thing.grip + rng.uniform(-0.015, 0.005)
    return _Moment(position, yaw, rng.uniform(-0.03, 0.03, 2), closed if opening is None else opening, thing)


def _pushed(law: ExpertPolicy, rng: np.random.Generator) -> _Moment:
    """The open fingers on both sides of a thing somewhere on its way, one of them mostly
    touching it."""
    assert law.place is not None
    way = law.place[:2] - law.thing.position[:2]
    along = way / np.linalg.norm(way)
    across = np.array((-along[1], along[0]))
    thing = law.thing.position.copy()
    thing[:2] += rng.uniform(0.0, 1.03) * way + rng.uniform(-0.008, 0.008) * across
    ahead = PUSH_LEAD if rng.uniform() < 0.7 else rng.uniform(-PUSH_LEAD, PUSH_LEAD)
    position = np.array((*thing[:2], TABLE_Z + law.thing.half_height + GRASP_OFFSET + rng.uniform(-0.004, 0.006)))
    position[:2] += ahead * along + rng.uniform(-0.012, 0.012) * across
    moment = _Moment(position, law.yaw + rng.normal() * 0.06, rng.uniform(-0.04, 0.04, 2), 1.0, thing)
    moment.yaw = law.thing.yaw + rng.normal() * 0.2
    return moment


def _disc(rng: np.random.Generator, radius: float) -> Array:
    """(2,) uniform in a disc."""
    angle = rng.uniform(0.0, 2 * math.pi)
    away = radius * math.sqrt(rng.uniform())
    return away * np.array((math.cos(angle), math.sin(angle)))
