"""Tiny policies and made-up windows for the tests of training."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from robovlms_ros.config.policy import PolicyConfig, config_from_mapping

TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


class SyntheticWindows(Dataset):
    """Episodes in which the chunk follows from the image's colour and the word: `brightness` moves x, `red` closes."""

    def __init__(self, config: PolicyConfig, episodes: int = 4, length: int = 6, size: int = 28, seed: int = 0):
        rng, model = np.random.default_rng(seed), config.model
        self.config, self.items = config, []
        window, chunk, dims = model.history_length, model.action_chunk_size, config.action_head.action_dim
        for episode in range(episodes):
            colour = rng.uniform(0.2, 1.0, 3)
            red = episode % 2 == 0
            for step in range(length):
                images = np.tile((255 * colour).astype(np.uint8), (window, size, size, 1))
                actions = np.zeros((window, chunk, dims), np.float32)
                actions[..., : min(3, dims - 1)] = (2 * colour - 1)[: min(3, dims - 1)]
                actions[..., -1] = 0.0 if red else 1.0
                mask = np.ones((window, chunk), bool)
                mask[:, max(1, length - step) :] = False
                item: dict[str, Any] = {
                    "images": dict.fromkeys(config.cameras, images),
                    "instruction": f"lift the {'red' if red else 'green'} cube",
                    "actions": actions,
                    "mask": mask,
                }
                if config.proprioception is not None:
                    item["proprioception"] = rng.normal(size=(window, config.proprioception.size)).astype(np.float32)
                self.items.append(item)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.items[index]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_training_config() -> Callable[..., PolicyConfig]:
    """A runnable configuration of a tiny policy; each keyword is laid on the block of its name."""

    def make(backbone: str = "paligemma", **blocks: Any) -> PolicyConfig:
        mapping: dict[str, Any] = {
            "model": {"backbone": backbone, "history_length": 2, "action_chunk_size": 3, "history_step": 0.1},
            "action_head": {"type": "lstm", "hidden_size": 16, "num_layers": 1},
            "vlm": {"size": "tiny", "vocabulary": ["lift", "the", "red", "green", "cube"]},
            "cameras": ["static"],
            "training": {
                "batch_size": 4, "epochs": 1, "learning_rate": 1e-3, "warmup_ratio": 0.0, "workers": 0,
                "augmentation": dict.fromkeys(("shift", "brightness", "contrast", "saturation", "hue"), 0.0),
            },
            "action": {
                "space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
                "step_duration": 0.05, "units": {"translation": 0.02, "rotation": 0.05}, "gripper": {"open_value": 1},
            },
        }
        for name, block in blocks.items():
            inner = mapping.get(name)
            mapping[name] = {**inner, **block} if isinstance(inner, dict) and isinstance(block, dict) else block
        return config_from_mapping(mapping, "test")

    return make


@pytest.fixture
def make_windows() -> Callable[..., SyntheticWindows]:
    return SyntheticWindows
