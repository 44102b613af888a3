"""The scripted expert: its chunk is what its own law does step by step; it approaches from above with open fingers,
closes at the cube, lifts what it holds, opens again after a miss; and it lifts the named cube in the closed loop.
"""

import numpy as np
import pytest

from robovlms_ros.control.planner import compose_targets
from robovlms_ros.core.types import ActionChunk
from robovlms_ros.sim.rollout import ExpertSession, build_loop
from robovlms_ros.sim.tasks.expert import (
    ACTION_SPEC,
    HAND_DOWN,
    HORIZON,
    MAX_SPEED,
    SIMPLE,
    STEP,
    ExpertPolicy,
)
from robovlms_ros.sim.tasks.language import INSTRUCTIONS, Goal
from robovlms_ros.sim.tasks.objects import TABLE_Z, TableObject, TableTruth
from robovlms_ros.sim.world import SimWorld

pytestmark = pytest.mark.sim

REST_Z = TABLE_Z + 0.02
CUBE = np.array((0.5, 0.05, REST_Z))


def expert_chunk(pose, opening, cube):
    truth = TableTruth({"red cube": TableObject("red cube", cube)}, {})
    return ExpertPolicy(Goal("lift", "red cube"), truth, pose, opening, SIMPLE).chunk()


def pose(x, y, z):
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = HAND_DOWN, (x, y, z)
    return result


def targets(start, values):
    return compose_targets(ActionChunk(0, values, ACTION_SPEC, "lift the red cube", "expert"), start)


def test_chunk_is_the_law_followed_step_by_step():
    """The rest of a chunk from its first target on is the chunk from there: what is learned is what is executed."""
    start = pose(0.45, -0.1, 0.1)
    whole = expert_chunk(start, 1.0, CUBE)
    rest = expert_chunk(targets(start, whole)[0], 1.0, CUBE)
    assert whole.shape == (HORIZON, 7)
    assert np.allclose(whole[1:], rest[:-1], atol=1e-9)


def test_approach_is_open_bounded_and_from_above():
    start = pose(0.4, -0.15, 0.1)
    values = expert_chunk(start, 1.0, CUBE)
    assert (values[:, 6] == 1).all()
    assert np.linalg.norm(values[:, :3], axis=1).max() <= MAX_SPEED * STEP + 1e-12
    heights = targets(start, values)[:, 2, 3]
    assert heights.min() > REST_Z + 0.04


def test_closes_at_the_cube_and_lifts_what_it_holds():
    at_cube = pose(*CUBE)
    assert expert_chunk(at_cube, 1.0, CUBE)[0, 6] == 0
    lifting = expert_chunk(at_cube, 0.5, CUBE)
    assert (lifting[:, 6] == 0).all() and lifting[:, 2].sum() > 0.05


def test_opens_again_after_a_miss():
    missed = expert_chunk(pose(0.5, 0.09, REST_Z), 0.1, CUBE)
    assert missed[0, 6] == 1 and missed[0, 2] > 0


def test_tilted_hand_is_set_upright():
    tilted = pose(0.5, 0.05, 0.1)
    tilted[:3, :3] = np.array(((1, 0, 0), (0, np.cos(0.1), -np.sin(0.1)), (0, np.sin(0.1), np.cos(0.1)))) @ HAND_DOWN
    last = targets(tilted, expert_chunk(tilted, 1.0, CUBE))[-1]
    assert np.arccos((np.trace(last[:3, :3] @ HAND_DOWN.T) - 1) / 2) < 0.02


def test_lifts_the_named_cube_in_the_closed_loop():
    """Through the executor and the trajectory controllers of the live node, with a latency."""
    world = SimWorld(0, blank_cameras=True)
    loop, agent = build_loop(world), ExpertSession(world)
    for seed in range(3):
        for instruction in INSTRUCTIONS:
            world.reset(seed)
            outcome = loop.run(agent, [(0.0, instruction)], np.random.default_rng(seed))
            assert outcome.success and not outcome.wrong and outcome.refusals == 0, (seed, outcome)
            assert world.ground_truth().lifted() == (INSTRUCTIONS[instruction].thing,)


def test_a_changed_instruction_takes_effect_on_the_way():
    world = SimWorld(7, blank_cameras=True)
    loop, agent = build_loop(world), ExpertSession(world)
    first, second = INSTRUCTIONS
    outcome = loop.run(agent, [(0.0, first), (0.8, second)], np.random.default_rng(0))
    assert outcome.success and not outcome.wrong and outcome.instruction == second


def test_episodes_repeat():
    def run():
        world = SimWorld(11, blank_cameras=True)
        world.time_ns = 1_000_000_000
        loop = build_loop(world)
        outcome = loop.run(ExpertSession(world), [(0.0, "lift the red cube")], np.random.default_rng(3))
        return outcome, world.joint_state().positions

    (first, a), (second, b) = run(), run()
    assert first == second and np.array_equal(a, b)
