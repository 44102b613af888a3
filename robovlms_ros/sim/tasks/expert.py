"""The scripted expert of the tabletop tasks: a goal, as a chunk of actions computed from where everything is now.

As `sim.expert`, it has no memory: the phase follows from pose, opening and the things' places alone, so that every
frame can be labelled with every goal that fits its scene, also a frame that another goal, a disturbance or a policy
led to. The hand comes down a funnel, turned so that its fingers fit between the neighbours; carries over them; lets go
where the thing rests; and rises. To push, it straddles the thing with open fingers and takes it along on the table.
"""

import math

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.rotations import vector_from_matrix
from robovlms_ros.sim.expert import (
    FUNNEL_SLOPE,
    GRASP_OFFSET,
    HAND_DOWN,
    HORIZON,
    MAX_SPEED,
    HandPose,
    norm,
)
from robovlms_ros.sim.tasks.grasps import best_yaw, candidates, fold, hand_yaw, push_yaw
from robovlms_ros.sim.tasks.language import Goal
from robovlms_ros.sim.tasks.objects import TABLE_Z, TableObject, TableTruth

Array = NDArray[np.float64]

PUSH_SPEED = 0.12
"""m/s."""
TURN_GAIN, MAX_TURN = 5.0, 1.2
"""1/s and rad/s."""
FUNNEL_MOUTH, CLOSE_RADIUS = 0.007, 0.008
"""Metres; narrower than for the easy demo's cubes, which have no neighbours."""
TURN_AS_WAY = 0.03
"""Metres beside the thing that a radian of wrong turn counts as."""
LIFT_HEIGHT = 0.14
CARRY = {"stack": 0.055, "put": 0.065}
"""How far a thing is carried above its place, until it is over it (m)."""
RELEASE_RADIUS, RELEASE_HEIGHT, DROP = 0.008, 0.006, 0.002
PLACED = {"stack": 0.02, "put": 0.03, "push": 0.015}
"""A thing that is this near to its place, and not held, has arrived (m)."""
RETREAT = 0.10
PUSH_LEAD = 0.02
"""How far the hand is ahead of a thing that its finger pushes (m)."""


class ExpertPolicy:
    """One goal in one scene: which way the hand is turned, and from there step by step."""

    def __init__(self, goal: Goal, truth: TableTruth, pose: Array, opening: float) -> None:
        self.goal = goal
        self.thing: TableObject = truth.things[goal.thing]
        self._grasp = np.array((0.0, 0.0, GRASP_OFFSET))
        self.place = self._resting_place(truth)
        self._hand = HandPose(
            pose[:3, 3].copy(),
            np.zeros(3),
            float(opening),
            np.array(self.thing.position, np.float64),
            self.thing.grip,
            TURN_GAIN,
            MAX_TURN,
            CLOSE_RADIUS,
        )
        self.yaw = self._choose_yaw(truth, pose, opening)
        wanted = np.array(((math.cos(self.yaw), -math.sin(self.yaw), 0.0),
                           (math.sin(self.yaw), math.cos(self.yaw), 0.0), (0.0, 0.0, 1.0))) @ HAND_DOWN
        self._hand.tilt = vector_from_matrix(wanted @ pose[:3, :3].T)

    def _resting_place(self, truth: TableTruth) -> Array | None:
        """(3,) where the thing's centre shall come to rest; None to lift."""
        goal = self.goal
        if goal.task == "lift":
            return None
        if goal.task == "stack":
            below = truth.things[goal.place]
            return below.position + np.array((0.0, 0.0, below.half_height + self.thing.half_height))
        return np.array((*truth.plates[goal.place][:2], TABLE_Z + self.thing.half_height))

    def _choose_yaw(self, truth: TableTruth, pose: Array, opening: float) -> float:
        offset = pose[:3, 3] - self.thing.position
        now = hand_yaw(pose[:3, :3])
        around = math.hypot(offset[0], offset[1]) < 0.03 and abs(offset[2]) < 0.03
        if self.goal.task == "push":
            assert self.place is not None
            way = self.place[:2] - self.thing.position[:2]
            return now if around and np.hypot(*way) < 0.04 else push_yaw(self.thing.position[:2], self.place[:2])
        if around and opening < self._hand.held_below + 0.05:
            return now
        if around:
            return min((turn + k * math.pi for turn in candidates(self.thing, now) for k in (-1, 0, 1)),
                       key=lambda turn: abs(turn - now))
        if self._arrived(self.thing.position):
            return fold(now)
        spot = self.place[:2] if self.goal.task == "put" and self.place is not None else None
        return best_yaw(self.thing, truth.others(self.goal.thing), spot, now)[0]

    def chunk(self, horizon: int = HORIZON) -> Array:
        """(horizon, 7) steps per `sim.expert.ACTION_SPEC`."""
        return np.stack([self._step() for _ in range(horizon)])

    def _step(self) -> Array:
        action = self._hand.step(*self._goal())
        if self.goal.task == "push":
            self._drag()
        return action

    def _goal(self) -> tuple[Array, bool, float]:
        """Where the law sends the hand, whether the fingers close, and the speed limit."""
        hand = self._hand
        radius, height = hand.offset()
        if self.goal.task == "push" and self._straddles(radius, height):
            return self._push()
        at_grip = hand.at_grip()
        if at_grip and hand.opening < hand.held_below:
            return self._carry()
        if self._arrived(hand.thing):
            return self._retreat()
        grasp = hand.thing + self._grasp
        wrong_turn = norm(hand.tilt)
        if self.goal.task != "push" and at_grip and (hand.closing or wrong_turn < 0.15):
            return grasp, True, MAX_SPEED
        return self._above(grasp, hand.funnel(radius + TURN_AS_WAY * wrong_turn, FUNNEL_MOUTH)), False, MAX_SPEED

    def _above(self, target: Array, rise: float) -> Array:
        """`target` raised; a hand that is too low for where it is goes up before it goes sideways."""
        hand = self._hand
        goal = target + np.array((0.0, 0.0, rise))
        free = min(max((hand.position[2] - goal[2] + 0.03) / 0.015, 0.0), 1.0)
        goal[:2] = hand.position[:2] + free * (goal[:2] - hand.position[:2])
        return goal

    def _arrived(self, thing: Array) -> bool:
        if self.place is None:
            return False
        apart = thing - self.place
        return math.hypot(apart[0], apart[1]) < PLACED[self.goal.task] and abs(float(apart[2])) < 0.01

    def _carry(self) -> tuple[Array, bool, float]:
        hand = self._hand
        if self.place is None:
            top = TABLE_Z + self.thing.half_height + LIFT_HEIGHT
            return np.array((*hand.position[:2], top)), True, MAX_SPEED
        if self.goal.task == "push":
            return hand.position, False, MAX_SPEED
        way = self.place - hand.thing
        apart, above = math.hypot(way[0], way[1]), -float(way[2])
        if apart < RELEASE_RADIUS and above < RELEASE_HEIGHT:
            return hand.position, False, MAX_SPEED
        rise = DROP + min(max(FUNNEL_SLOPE * (apart - 0.005), 0.0), CARRY[self.goal.task])
        # Up first: the thing must not be dragged through what lies between.
        free = min(max((above - rise + 0.025) / 0.015, 0.0), 1.0)
        target = hand.position + np.array((free * way[0], free * way[1], way[2] + rise))
        return target, True, MAX_SPEED

    def _retreat(self) -> tuple[Array, bool, float]:
        hand = self._hand
        if hand.opening < 0.85:
            return hand.position, False, MAX_SPEED
        top = max(float(hand.position[2]), float(hand.thing[2]) + RETREAT)
        return np.array((*hand.position[:2], top)), False, MAX_SPEED

    def _straddles(self, radius: float, height: float) -> bool:
        """Whether the open fingers stand on both sides of the thing, on the line that it shall take."""
        hand = self._hand
        if self._arrived(hand.thing) or hand.opening < 0.85 or abs(height) > 0.012 or radius > 0.04:
            return False
        if norm(hand.tilt) > 0.25:
            return False
        offset = hand.position[:2] - hand.thing[:2]
        return abs(offset[0] * math.cos(self.yaw) + offset[1] * math.sin(self.yaw)) < 0.013

    def _push(self) -> tuple[Array, bool, float]:
        assert self.place is not None
        hand = self._hand
        way = self.place[:2] - hand.thing[:2]
        along = np.array((-math.sin(self.yaw), math.cos(self.yaw)))
        if float(way @ along) < 0:
            along = -along
        target = self.place[:2] + PUSH_LEAD * along
        height = TABLE_Z + self.thing.half_height + GRASP_OFFSET
        return np.array((*target, height)), False, PUSH_SPEED

    def _drag(self) -> None:
        """A straddled thing goes where a finger pushes it."""
        hand = self._hand
        offset = hand.position - hand.thing
        along = np.array((-math.sin(self.yaw), math.cos(self.yaw)))
        ahead, beside = float(offset[:2] @ along), abs(float(offset[0] * along[1] - offset[1] * along[0]))
        if abs(offset[2]) < 0.02 and beside < 0.013 and PUSH_LEAD < abs(ahead) < 0.045:
            hand.thing = hand.thing.copy()
            hand.thing[:2] += (ahead - math.copysign(PUSH_LEAD, ahead)) * along


def expert_chunk(goal: Goal, truth: TableTruth, pose: Array, opening: float, horizon: int = HORIZON) -> Array:
    """The steps that do `goal`, per `sim.expert.ACTION_SPEC`.

    pose: (4, 4) base_T_eef measured; opening: the gripper's, measured. Returns (horizon, 7) float64: translation (m)
    and rotation vector (rad) in the base frame, chained; opening 0 or 1.
    """
    return ExpertPolicy(goal, truth, pose, opening).chunk(horizon)
