"""The scripted expert: a goal, as a chunk of actions computed from where everything is now.

It has no memory: the phase follows from pose, opening and the objects' places alone, step by step
on a small forward model of the hand. So the label of a frame has exactly the meaning that the chunk
has when it is executed, and every frame can be labelled with every goal that fits its scene, also a
frame that another goal, a disturbance or a policy led to (dataset aggregation, Ross et al. 2011).
The hand comes down a funnel, turned so that its fingers fit between the neighbours; carries over
them; releases the thing where it rests; and rises. To push, it straddles the thing with open
fingers and takes it along on the table. Two cubes without neighbours need less: `SIMPLE`.
"""

import math
from dataclasses import dataclass

import numpy as np

from robovlms_ros.core.rotations import vector_from_matrix
from robovlms_ros.core.types import ActionSpec, Array
from robovlms_ros.sim.tasks.grasps import best_yaw, candidates, fold, hand_yaw, push_yaw
from robovlms_ros.sim.tasks.language import Goal
from robovlms_ros.sim.tasks.objects import TABLE_Z, TableObject, TableTruth

STEP = 0.05
"""Seconds a step: 20 Hz."""
HORIZON = 16

ACTION_SPEC = ActionSpec(
    space="eef_delta", frame="base", rotation="rotation_vector", composition="chained", step_duration=STEP
)

HAND_DOWN = np.array(((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)))
"""Rotation of the grip site: as at HOME, pointing straight down."""

GAIN = 5.0
"""1/s per metre of error."""
MAX_SPEED = 0.25
"""m/s."""

# The funnel above a thing, in metres: its height far away, its rise per metre outside its mouth.
HOVER = 0.09
FUNNEL_SLOPE = 2.2
GRASP_OFFSET = -0.002
"""Height of the grip above the thing's centre (m)."""

# How near the hand must be, in metres, before the fingers begin to close (beside the thing:
# `ExpertStyle`), and while they do.
CLOSING_RADIUS = 0.016
CLOSE_HEIGHT = 0.008
CLOSING_HEIGHT = 0.014
GRIP_SLACK = 0.05
"""A thing is held when the opening is less than this above its grip."""
FINGER_STEP = 0.07
"""How far the opening moves in one step: slower than it does, so that no chunk lifts before the
fingers hold."""
PUSH_SPEED = 0.12
"""m/s."""
LIFT_HEIGHT = 0.14
CARRY = {"stack": 0.055, "put": 0.065}
"""How far a thing is carried above its place, until it is over it (m)."""
RELEASE_RADIUS = 0.008
RELEASE_HEIGHT = 0.006
DROP = 0.002
PLACED = {"stack": 0.02, "put": 0.03, "push": 0.015}
"""A thing that is this near to its place, and not held, has arrived (m)."""
RETREAT = 0.10
PUSH_LEAD = 0.02
"""How far the hand is ahead of a thing that its finger pushes (m)."""


@dataclass(frozen=True)
class ExpertStyle:
    """Parameters of the law. turn_gain (1/s), max_turn (rad/s): of the hand about its axes. mouth:
    radius of the funnel's (m). close_radius: how near it must be beside the thing before the
    fingers close (m). turn_as_way: metres beside the thing that a radian of wrong turn counts as.
    close_turn: wrong turn at which the fingers still close (rad). chooses_yaw: the hand turns to
    the thing and its neighbours, and rises before it moves sideways when it is too low.
    """

    turn_gain: float = 5.0
    max_turn: float = 1.2
    mouth: float = 0.007
    close_radius: float = 0.008
    turn_as_way: float = 0.03
    close_turn: float = 0.15
    chooses_yaw: bool = True


CAREFUL = ExpertStyle()
SIMPLE = ExpertStyle(4.0, 0.6, 0.008, 0.009, 0.0, math.inf, chooses_yaw=False)
"""For the two cubes: without neighbours the hand stays as at home, and its funnel is wider."""


@dataclass
class HandPose:
    """The forward model that a law is followed on: the hand, and the thing that it is to take.

    position, thing (3,): the grip and the thing's centre in the base frame (m). tilt: the rotation
    vector that brings the hand to where it is wanted; its axis stays while the hand turns along it.
    opening: 0 to 1; grip: the one at which the fingers touch the thing.
    """

    position: Array
    tilt: Array
    opening: float
    thing: Array
    grip: float
    style: ExpertStyle

    @property
    def held_below(self) -> float:
        """The opening below which closed fingers hold the thing."""
        return self.grip + GRIP_SLACK

    @property
    def closing(self) -> bool:
        return self.opening < 0.93

    def offset(self) -> tuple[float, float]:
        """Distance beside the object, and above its grip (m)."""
        offset = self.position - self.thing
        return math.hypot(offset[0], offset[1]), float(offset[2]) - GRASP_OFFSET

    def at_grip(self) -> bool:
        """True if it is where the fingers close, or may go on closing."""
        radius, height = self.offset()
        near = radius < (CLOSING_RADIUS if self.closing else self.style.close_radius)
        return near and abs(height) < (CLOSING_HEIGHT if self.closing else CLOSE_HEIGHT)

    def funnel(self, away: float) -> float:
        """Height kept above the grip (m), `away` beside it; higher until the fingers are
        open."""
        rise = min(max(FUNNEL_SLOPE * (away - self.style.mouth), 0.0), HOVER)
        return max(rise, 0.05) if self.opening < 0.75 else rise

    def step(self, target: Array, closed: bool, top: float = MAX_SPEED) -> Array:
        """Go towards `target` (3,), m, for one step of at most `top` m/s; returns that action
        (7,)."""
        move = (target - self.position) * (1 - math.exp(-GAIN * STEP))
        move *= min(1.0, top * STEP / max(norm(move), 1e-9))
        turn = self.tilt * (1 - math.exp(-self.style.turn_gain * STEP))
        turn *= min(1.0, self.style.max_turn * STEP / max(norm(turn), 1e-9))
        self._advance(move, turn, closed)
        return np.concatenate((move, turn, (0.0 if closed else 1.0,)))

    def _advance(self, move: Array, turn: Array, closed: bool) -> None:
        offset = self.position - self.thing
        around = math.hypot(offset[0], offset[1]) < 0.02 and abs(offset[2]) < 0.02
        if closed:
            held = around and self.opening < self.held_below
            floor = self.grip if around else 0.0
            self.opening = max(min(self.opening, max(floor, self.opening - FINGER_STEP)), 0.0)
            if held:
                self.thing = self.thing + move
        else:
            self.opening = min(1.0, self.opening + FINGER_STEP)
        self.position = self.position + move
        self.tilt = self.tilt - turn


def norm(vector: Array) -> float:
    """The length of a vector (3,); NumPy's takes several times as long."""
    return math.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2])


class ExpertPolicy:
    """One goal in one scene, by the law of the module: the hand's yaw once, and from there step by
    step.

    pose: (4, 4) base_T_eef measured. opening: the gripper's, measured.
    """

    def __init__(
        self,
        goal: Goal,
        truth: TableTruth,
        pose: Array,
        opening: float,
        style: ExpertStyle = CAREFUL,
    ) -> None:
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
            style,
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
        if not self._hand.style.chooses_yaw:
            return 0.0
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

    def chunk(self) -> Array:
        """(HORIZON, 7) float64, the next steps per ACTION_SPEC: translation (m) and rotation
        vector (rad) in the base frame, chained; opening 0 or 1."""
        return np.stack([self._step() for _ in range(HORIZON)])

    def _step(self) -> Array:
        action = self._hand.step(*self._goal())
        if self.goal.task == "push":
            self._drag()
        return action

    def _goal(self) -> tuple[Array, bool, float]:
        """Target of the hand, True if the fingers close, and the speed limit."""
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
        if (
            self.goal.task != "push"
            and at_grip
            and (hand.closing or wrong_turn < hand.style.close_turn)
        ):
            return grasp, True, MAX_SPEED
        return (
            self._above(grasp, hand.funnel(radius + hand.style.turn_as_way * wrong_turn)),
            False,
            MAX_SPEED,
        )

    def _above(self, target: Array, rise: float) -> Array:
        """`target` raised; a hand that is too low for where it is goes up before it goes
        sideways."""
        hand = self._hand
        goal = target + np.array((0.0, 0.0, rise))
        if not hand.style.chooses_yaw:
            return goal
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
        apart = math.hypot(way[0], way[1])
        above = -float(way[2])
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
        """True if the open fingers stand on both sides of the thing, on the line that it shall
        take."""
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
        ahead = float(offset[:2] @ along)
        beside = abs(float(offset[0] * along[1] - offset[1] * along[0]))
        if abs(offset[2]) < 0.02 and beside < 0.013 and PUSH_LEAD < abs(ahead) < 0.045:
            hand.thing = hand.thing.copy()
            hand.thing[:2] += (ahead - math.copysign(PUSH_LEAD, ahead)) * along
