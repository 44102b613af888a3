"""The scripted expert: how to lift a cube, as a chunk of actions computed from where everything is now.

It has no memory: the law below is followed from the measured pose, step by step, on a small forward model of the hand.
So the label of a frame has exactly the meaning that the chunk has when it is executed, and any frame can be labelled,
also one that a policy led to (dataset aggregation, Ross et al. 2011).

The law: fly above the cube, come down a funnel, close, lift. Which part applies follows from pose and opening alone.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.rotations import vector_from_matrix
from robovlms_ros.core.types import ActionSpec
from robovlms_ros.sim.scene import CUBE_SIZE, TABLE_HEIGHT
from robovlms_ros.sim.task import FINGER_OPEN

Array = NDArray[np.float64]

STEP = 0.05
"""Seconds a step: 20 Hz."""
HORIZON = 16

ACTION_SPEC = ActionSpec(
    space="eef_delta", frame="base", rotation="rotation_vector", composition="chained", step_duration=STEP
)

BASE_HEIGHT = 0.912
"""Height of the robot's base frame above the floor (m)."""
REST_Z = TABLE_HEIGHT + CUBE_SIZE / 2 - BASE_HEIGHT
LIFT_Z = REST_Z + 0.14
"""Where a held cube is carried: z of the hand in the base frame (m)."""

HAND_DOWN = np.array(((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)))
"""Rotation of the grip site: as at HOME, pointing straight down."""

# Speeds: 1/s per metre and per radian of error, and the most of each in m/s and rad/s.
GAIN, TURN_GAIN = 5.0, 4.0
MAX_SPEED, MAX_TURN = 0.25, 0.6

# The funnel above a thing, in metres: its height far away, its rise per metre outside its mouth, the mouth's radius.
HOVER, FUNNEL_SLOPE, FUNNEL_MOUTH = 0.09, 2.2, 0.008
GRASP_OFFSET = -0.002
"""Height of the grip above the thing's centre (m)."""

# How near the hand must be, in metres, before the fingers begin to close, and while they do.
CLOSE_RADIUS, CLOSING_RADIUS = 0.009, 0.016
CLOSE_HEIGHT, CLOSING_HEIGHT = 0.008, 0.014
GRIP_SLACK = 0.05
"""A thing is held when the opening is less than this above its grip."""
FINGER_STEP = 0.07
"""How far the opening moves in one step: slower than it does, so that no chunk lifts before the fingers hold."""


@dataclass
class HandPose:
    """The forward model that a law is followed on: the hand, and the thing that it is to take.

    position, thing (3,): the grip and the thing's centre in the base frame (m). tilt: the rotation vector that brings
    the hand to where it is wanted; its axis stays while the hand turns along it. opening: 0 to 1; grip: the one at
    which the fingers touch the thing. turn_gain (1/s), max_turn (rad/s): how it turns. close_radius: how near it must
    be beside the thing before the fingers close (m).
    """

    position: Array
    tilt: Array
    opening: float
    thing: Array
    grip: float
    turn_gain: float
    max_turn: float
    close_radius: float

    @property
    def held_below(self) -> float:
        """The opening below which closed fingers hold the thing."""
        return self.grip + GRIP_SLACK

    @property
    def closing(self) -> bool:
        return self.opening < 0.93

    def offset(self) -> tuple[float, float]:
        """How far it is beside the thing, and above where the thing is gripped (m)."""
        offset = self.position - self.thing
        return math.hypot(offset[0], offset[1]), float(offset[2]) - GRASP_OFFSET

    def at_grip(self) -> bool:
        """Whether it is where the fingers close, or may go on closing."""
        radius, height = self.offset()
        near = radius < (CLOSING_RADIUS if self.closing else self.close_radius)
        return near and abs(height) < (CLOSING_HEIGHT if self.closing else CLOSE_HEIGHT)

    def funnel(self, away: float, mouth: float) -> float:
        """How high above the grip it stays (m), `away` beside it; higher until the fingers are open."""
        rise = min(max(FUNNEL_SLOPE * (away - mouth), 0.0), HOVER)
        return max(rise, 0.05) if self.opening < 0.75 else rise

    def step(self, target: Array, closed: bool, top: float = MAX_SPEED) -> Array:
        """Go towards `target` (3,), m, for one step of at most `top` m/s; returns that action (7,)."""
        move = (target - self.position) * (1 - math.exp(-GAIN * STEP))
        move *= min(1.0, top * STEP / max(norm(move), 1e-9))
        turn = self.tilt * (1 - math.exp(-self.turn_gain * STEP))
        turn *= min(1.0, self.max_turn * STEP / max(norm(turn), 1e-9))
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


def expert_chunk(pose: Array, opening: float, cube: Array, horizon: int = HORIZON) -> Array:
    """The steps that lift `cube`, per ACTION_SPEC.

    pose: (4, 4) base_T_eef measured. opening: the gripper's, measured. cube: (3,) centre in the base frame (m).
    Returns (horizon, 7) float64: translation (m) and rotation vector (rad) in the base frame, chained; opening 0 or 1.
    """
    tilt = vector_from_matrix(HAND_DOWN @ pose[:3, :3].T)
    hand = HandPose(pose[:3, 3].copy(), tilt, float(opening), np.array(cube, np.float64), 0.5 * CUBE_SIZE / FINGER_OPEN,
                TURN_GAIN, MAX_TURN, CLOSE_RADIUS)
    return np.stack([hand.step(*_goal(hand)) for _ in range(horizon)])


def _goal(hand: HandPose) -> tuple[Array, bool]:
    """Where the law sends the hand, and whether the fingers close."""
    grasp = hand.thing + np.array((0.0, 0.0, GRASP_OFFSET))
    if hand.at_grip():
        held = hand.opening < hand.held_below
        return (np.array((hand.position[0], hand.position[1], LIFT_Z)) if held else grasp), True
    return grasp + np.array((0.0, 0.0, hand.funnel(hand.offset()[0], FUNNEL_MOUTH))), False
