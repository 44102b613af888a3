"""A small tabletop plan and two recorded episodes of it; a small policy of the easy demo and
made-up frames for it."""

import numpy as np
import pytest
import yaml

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.core.resources import share_directory
from robovlms_ros.sim.rollout import ExpertSession, build_loop
from robovlms_ros.sim.tasks.base import TRAINING_SEEDS
from robovlms_ros.sim.tasks.objects import THINGS
from robovlms_ros.sim.training.demonstrations import TASK_SETTINGS, Recording, record_shard
from robovlms_ros.sim.training.objectives import CubeObjective
from robovlms_ros.sim.training.plans import Recipe
from robovlms_ros.sim.training.shards import CUBE_GOALS, ShardFrames, find_shards
from robovlms_ros.sim.world import SimWorld


@pytest.fixture(scope="session")
def small_mapping():
    """The shipped plan with a model that takes milliseconds."""
    plan = yaml.safe_load((share_directory() / "config" / "train" / "tasks.yaml").read_text(encoding="utf-8"))
    plan["policy"]["model"]["history_length"] = 2
    plan["policy"]["action_head"]["hidden_size"] = 16
    for tower in ("text_config", "vision_config"):
        plan["policy"]["vlm"]["settings"][tower].update(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4
        )
    plan["policy"]["vlm"]["settings"]["text_config"].update(head_dim=8, num_key_value_heads=4)
    plan["policy"]["vlm"]["settings"]["vision_config"]["patch_size"] = 24
    return plan


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two recorded episodes."""
    world = SimWorld(0, task="all")
    shard = tmp_path_factory.mktemp("shards") / "0"
    outcomes = record_shard(
        shard,
        TRAINING_SEEDS[:2],
        build_loop(world),
        ExpertSession(world),
        TASK_SETTINGS,
        Recording(world),
    )
    assert len(outcomes) == 2
    return shard.parent


@pytest.fixture(scope="module")
def policy_mapping():
    return {
        "model": {"backbone": "paligemma", "history_length": 2, "history_step": 0.1, "action_chunk_size": 4},
        "action_head": {"type": "lstm", "hidden_size": 16, "num_layers": 1},
        "vlm": {"size": "tiny", "image_size": 28, "vocabulary": ["lift", "the", "red", "green", "cube"]},
        "cameras": ["static", "wrist"],
        "proprioception": {"names": ["eef_position", "gripper"]},
        "action": {
            "space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
            "step_duration": 0.05, "units": {"translation": 1.0, "rotation": 1.0}, "gripper": {"open_value": 1},
            "normalization": [{"method": "min_max", "low": [-0.02], "high": [0.02]}],
        },
    }


@pytest.fixture
def policy(policy_mapping):
    return build_policy(config_from_mapping(policy_mapping))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two made-up shards of two episodes of nine frames: the labels follow from the cubes'
    places."""
    root, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    for shard in range(2):
        folder, frames = root / str(shard), 18
        folder.mkdir()
        cubes = rng.uniform(-0.1, 0.1, (frames, 2, 3)).astype(np.float32)
        labels = np.ones((frames, 2, 4, 7), np.float32)
        labels[..., :3] = 0.1 * cubes[:, :, None]
        labels[..., 3:6] = 0.0
        np.save(folder / "images.npy", rng.integers(0, 256, (frames, 2, 28, 28, 3), dtype=np.uint8))
        # The followed goal's label comes first.
        followed = rng.integers(0, 2, frames)
        order = np.stack((followed, 1 - followed), axis=1)
        things = np.full((frames, len(THINGS), 3), np.nan, np.float32)
        things[:, [THINGS.index("red cube"), THINGS.index("green cube")]] = cubes
        np.savez(
            folder / "frames.npz",
            poses=np.tile(np.eye(4), (frames, 1, 1)),
            joints=np.zeros((frames, 7)),
            openings=np.ones(frames, np.float32),
            things=things,
            labels=np.take_along_axis(labels, order[:, :, None, None], axis=1),
            goals=np.array(CUBE_GOALS)[order],
            episodes=np.repeat([2 * shard, 2 * shard + 1], 9),
            scenes=np.repeat([2 * shard, 2 * shard + 1], 9),
        )
    return find_shards(root)


@pytest.fixture
def frames(policy, shards):
    return ShardFrames(CubeObjective(policy, Recipe())).add(shards)
