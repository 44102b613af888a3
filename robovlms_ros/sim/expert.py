"""The scripted expert: how to lift a cube, as a chunk of actions computed from where everything is now.

It has no memory: the law below is followed from the measured pose, step by step, on a small forward model of the hand.
So the label of a frame has exactly the meaning that the chunk has when it is executed, and any frame can be labelled,
also one that a policy led to (dataset aggregation, Ross et al. 2011).

The law: fly above the cube, come down a funnel, close, lift. Which part applies follows from pose and opening alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.processing.rotations import vector_from_matrix
from robovlms_ros.sim.scene import CUBE_SIZE, TABLE_HEIGHT
from robovlms_ros.sim.task import FINGER_OPEN
from robovlms_ros.types import ActionSpec

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

# The funnel above a cube, in metres: its height far away, its rise per metre outside its mouth, the mouth's radius.
HOVER, FUNNEL_SLOPE, FUNNEL_MOUTH = 0.09, 2.2, 0.008
GRASP_OFFSET = -0.002
"""Height of the grip above the cube's centre (m)."""

# How near the hand must be, in metres, before the fingers begin to close, and while they do.
CLOSE_RADIUS, CLOSING_RADIUS = 0.009, 0.016
CLOSE_HEIGHT, CLOSING_HEIGHT = 0.008, 0.014
HELD_OPENING = 0.5 * CUBE_SIZE / FINGER_OPEN + 0.05
FINGER_STEP = 0.07
"""How far the opening moves in one step: slower than it does, so that no chunk lifts before the fingers hold."""


@dataclass
class _Hand:
    """tilt: the rotation vector that brings the hand to HAND_DOWN; its axis stays while the hand turns along it."""

    position: Array
    tilt: Array
    opening: float
    cube: Array


def expert_chunk(pose: Array, opening: float, cube: Array, horizon: int = HORIZON) -> Array:
    """The steps that lift `cube`, per ACTION_SPEC.

    pose: (4, 4) base_T_eef measured. opening: the gripper's, measured. cube: (3,) centre in the base frame (m).
    Returns (horizon, 7) float64: translation (m) and rotation vector (rad) in the base frame, chained; opening 0 or 1.
    """
    tilt = vector_from_matrix(HAND_DOWN @ pose[:3, :3].T)
    hand = _Hand(pose[:3, 3].copy(), tilt, float(opening), np.array(cube, np.float64))
    return np.stack([_step(hand) for _ in range(horizon)])


def _step(hand: _Hand) -> Array:
    """One action from the hand's state, which it advances."""
    target, closed = _goal(hand)
    move = (target - hand.position) * (1 - np.exp(-GAIN * STEP))
    speed = float(np.linalg.norm(move)) / STEP
    move *= min(1.0, MAX_SPEED / max(speed, 1e-9))
    turn = hand.tilt * (1 - np.exp(-TURN_GAIN * STEP))
    turn *= min(1.0, MAX_TURN * STEP / max(float(np.linalg.norm(turn)), 1e-9))
    _advance(hand, move, turn, closed)
    return np.concatenate((move, turn, (0.0 if closed else 1.0,)))


def _goal(hand: _Hand) -> tuple[Array, bool]:
    """Where the law sends the hand, and whether the fingers close."""
    offset = hand.position - hand.cube
    radius, height = float(np.hypot(offset[0], offset[1])), float(offset[2]) - GRASP_OFFSET
    closing = hand.opening < 0.93
    near = radius < (CLOSING_RADIUS if closing else CLOSE_RADIUS)
    low = abs(height) < (CLOSING_HEIGHT if closing else CLOSE_HEIGHT)
    if near and low and hand.opening < HELD_OPENING:
        return np.array((hand.position[0], hand.position[1], LIFT_Z)), True
    grasp = hand.cube + np.array((0.0, 0.0, GRASP_OFFSET))
    if near and low:
        return grasp, True
    rise = np.clip(FUNNEL_SLOPE * (radius - FUNNEL_MOUTH), 0.0, HOVER)
    if hand.opening < 0.75:
        rise = max(rise, 0.05)
    return grasp + np.array((0.0, 0.0, rise)), False


def _advance(hand: _Hand, move: Array, turn: Array, closed: bool) -> None:
    offset = hand.position - hand.cube
    around = float(np.hypot(offset[0], offset[1])) < 0.02 and abs(offset[2]) < 0.02
    if closed:
        floor = 0.5 * CUBE_SIZE / FINGER_OPEN if around else 0.0
        held = around and hand.opening < HELD_OPENING
        hand.opening = max(min(hand.opening, max(floor, hand.opening - FINGER_STEP)), 0.0)
        if held:
            hand.cube = hand.cube + move
    else:
        hand.opening = min(1.0, hand.opening + FINGER_STEP)
    hand.position = hand.position + move
    hand.tilt = hand.tilt - turn
