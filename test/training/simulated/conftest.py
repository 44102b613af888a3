"""A small tabletop plan, and two recorded episodes of it."""

import pytest
import yaml

from robovlms_ros.resources import share_directory
from robovlms_ros.sim.rollout import ExpertSession, build_loop
from robovlms_ros.sim.task import TRAINING_SEEDS
from robovlms_ros.sim.tasks.world import TaskWorld
from robovlms_ros.training.simulated.demonstrations import record_shard
from robovlms_ros.training.simulated.task_demonstrations import SETTINGS, TaskRecording


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
    world = TaskWorld(0)
    shard = tmp_path_factory.mktemp("shards") / "0"
    outcomes = record_shard(shard, TRAINING_SEEDS[:2], build_loop(world), ExpertSession(world), SETTINGS,
                            recording=TaskRecording(world))
    assert len(outcomes) == 2
    return shard.parent
