"""Small policies for the tests of this folder."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robovlms_ros.config.policy import PolicyConfig, config_from_mapping

ACTION = {
    "space": "eef_delta",
    "frame": "base",
    "rotation": "rotation_vector",
    "composition": "chained",
    "step_duration": 0.05,
    "units": {"translation": 0.02, "rotation": 0.05},
    "gripper": {"open_value": 1},
}


def policy_mapping(backbone: str = "paligemma", **blocks: Any) -> dict[str, Any]:
    """A runnable configuration of a tiny policy; each keyword is laid on the block of its name."""
    mapping: dict[str, Any] = {
        "model": {"backbone": backbone, "history_length": 3, "action_chunk_size": 4, "history_step": 0.1},
        "action_head": {"type": "lstm", "hidden_size": 16, "num_layers": 1},
        "vlm": {"size": "tiny", "vocabulary": ["lift", "the", "red", "green", "cube"]},
        "cameras": ["static"],
        "action": ACTION,
    }
    for name, block in blocks.items():
        inner = mapping.get(name)
        mapping[name] = {**inner, **block} if isinstance(inner, dict) and isinstance(block, dict) else block
    return mapping


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_mapping() -> Callable[..., dict[str, Any]]:
    return policy_mapping


@pytest.fixture
def make_config() -> Callable[..., PolicyConfig]:
    def make(backbone: str = "paligemma", **blocks: Any) -> PolicyConfig:
        return config_from_mapping(policy_mapping(backbone, **blocks), "test")

    return make
