"""The shipped checkpoints: small enough and fit for the demo. The easy one is obedient: it lifts the cube that is
named, the same scene's other cube when that is named, and does not succeed with black images. That of the tabletop
tasks knows their words and drives, not always in vain.
"""

import numpy as np
import pytest

from robovlms_ros.checkpoints.checkpoint import load_policy
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.types import Observation, ObservationError, RobotState
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.sim.scenes import evaluate_task
from robovlms_ros.sim.tasks.language import goals, instructions

pytestmark = pytest.mark.sim

CHECKPOINT = share_directory() / "config" / "checkpoints" / "demo"
TASKS = CHECKPOINT.parent / "tasks"
SCENES = range(100, 102)
LIFTED_AND_MOVED = ("lift", "put")


@pytest.mark.parametrize("checkpoint", [CHECKPOINT, TASKS])
def test_is_small_and_predicts_far_enough(checkpoint):
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert size <= 25e6
    config = load_policy(checkpoint).config
    assert config.model.action_chunk_size >= 16 and config.action.step_duration == 0.05
    assert config.cameras == ("static", "wrist")
    assert set(config.proprioception.names) <= {"eef_position", "gripper", "joint_positions"}, "nothing about objects"


def test_unknown_words_are_refused():
    session = PolicySession(load_policy(CHECKPOINT))
    images = {name: np.zeros((96, 96, 3), np.uint8) for name in ("static", "wrist")}
    state = RobotState(0, np.zeros(7), None, np.eye(4), 1.0)
    with pytest.raises(ObservationError, match="blue"):
        session.predict_action_chunk(Observation(0, images, "lift the blue cube", state))


def test_tabletop_policy_knows_every_sentence_and_drives():
    policy = load_policy(TASKS)
    policy.tokenize([s for goal in goals() for unseen in (False, True) for s in instructions(goal, unseen)])
    done = [e.result for task in LIFTED_AND_MOVED for e in evaluate_task(task, TASKS, SCENES)]
    assert all(e.chunks > 10 for e in done), done
    assert sum(e.success for e in done) >= 1, done


def test_lifts_what_is_named_and_needs_its_eyes():
    named = [e.result for e in evaluate_task("cubes", CHECKPOINT, SCENES, limit=8.0)]
    assert sum(e.success for e in named) >= len(named) - 1, named
    assert not any(e.wrong for e in named), named
    blanked = [e.result for e in evaluate_task("cubes", CHECKPOINT, SCENES, limit=8.0, blank=True)]
    assert sum(e.success for e in blanked) <= 1, blanked
