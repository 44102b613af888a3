"""Moments: all of a goal's phases come, the seed decides them, nothing is changed without one, and the physics agree:
from almost every moment the expert brings the goal to its end."""

from collections import Counter

import numpy as np
import pytest

from robovlms_ros.sim.rollout import EpisodeSettings, ExpertSession, build_loop
from robovlms_ros.sim.tasks.base import TRAINING_SEEDS
from robovlms_ros.sim.tasks.expert import ExpertPolicy
from robovlms_ros.sim.tasks.language import instructions
from robovlms_ros.sim.training.state_sampling import put_moment
from robovlms_ros.sim.world import SimWorld

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def loop():
    world = SimWorld(TRAINING_SEEDS[0], blank_cameras=True, task="all")
    return build_loop(world, "panda", EpisodeSettings(limit=10.0))


def moments(loop, task, count):
    """(goal, whether one was put, the arm's joints before) of the first scenes that a goal of the task fits."""
    found = 0
    for seed in TRAINING_SEEDS:
        loop.world.reset(seed)
        goals = [goal for goal in loop.world.goals if goal.task == task]
        if goals:
            rng = np.random.default_rng((seed, 5))
            before = loop.world.joint_state().positions
            goal = goals[int(rng.integers(len(goals)))]
            yield goal, put_moment(loop.world, loop.kinematics, goal, rng), before
            found += 1
        if found == count:
            return


@pytest.mark.parametrize("task", ["lift", "stack", "put", "push"])
def test_every_phase_comes_and_nothing_is_changed_without_one(loop, task):
    phases = Counter()
    for goal, put, before in moments(loop, task, 80):
        state, truth = loop.world.joint_state(), loop.world.ground_truth()
        if not put:
            assert np.array_equal(state.positions, before)
            phases["anywhere"] += 1
            continue
        pose = loop.kinematics.forward(state.positions)
        apart = pose[:3, 3] - truth.things[goal.thing].position
        law = ExpertPolicy(goal, truth, pose, state.gripper)
        actions = law.chunk()[:4]
        if np.linalg.norm(apart[:2]) > 0.055 or abs(apart[2]) > 0.16:
            pytest.fail(f"{goal}: the hand is {apart} m from the thing")
        if law.place is not None and np.linalg.norm(truth.things[goal.thing].position - law.place) < 0.009:
            phases["at its place"] += 1
        elif truth.things[goal.thing].height > 0.01:
            phases["raised"] += 1
            assert state.gripper < truth.things[goal.thing].grip + 0.05, "what is in the air is held"
        elif actions[0, 6] == 0:
            phases["grasping"] += 1
        elif actions[:, 6].all() and actions[:, 2].sum() < -0.01:
            phases["coming down"] += 1
        else:
            phases["other"] += 1
    assert 12 <= phases["anywhere"] <= 40
    wanted = {"anywhere", "coming down"} | (set() if task == "push" else {"raised", "grasping"})
    assert all(phases[phase] >= 4 for phase in wanted), phases


@pytest.mark.parametrize("task", ["lift", "stack", "put", "push"])
def test_expert_goes_on_from_a_moment(loop, task):
    agent, told = ExpertSession(loop.world), []
    for goal, put, _ in moments(loop, task, 24):
        if put:
            sentence = instructions(goal)[0]
            outcome = loop.run(agent, [(0.0, sentence)], np.random.default_rng(0))
            told.append((sentence, outcome.success, outcome.why))
    assert len(told) > 8
    assert sum(success for _, success, _ in told) >= 0.9 * len(told), told
