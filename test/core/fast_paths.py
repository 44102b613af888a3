"""Livelier tiny policies and frames, for the tests of the fast path."""

from typing import Any

import numpy as np
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.types import NANOSECONDS, Observation, RobotState
from robovlms_ros.inference.optimized.options import FastPathOptions
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.vla_policy import VLAPolicy

# Every family, and what differs within one: grouped keys, capped attention, ALiBi, DeepStack, rotary Flamingo.
LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "paligemma": ("paligemma", {}),
    "paligemma2": ("paligemma", {"settings": {"text_config": {"model_type": "gemma2"}}}),
    "llava": ("llava", {}),
    "llava-mistral": ("llava", {"settings": {"text_config": {"model_type": "mistral"}}}),
    "llava_next": ("llava", {"settings": {"model_type": "llava_next"}, "image_size": 56}),
    "kosmos": ("kosmos", {}),
    "qwen2_5_vl": ("qwen", {}),
    "qwen3_vl": ("qwen", {"settings": {"model_type": "qwen3_vl"}}),
    "smolvlm": ("smolvlm", {}),
    "flamingo-mpt": ("flamingo", {}),
    "flamingo-qk-norm": ("flamingo", {"settings": {"text_config": {"attn_config": {"qk_ln": True}}}}),
    "flamingo-llama": ("flamingo", {"settings": {"text_config": LLAMA}}),
}


def lively(config: PolicyConfig) -> VLAPolicy:
    """A policy with larger weights than transformers' initialisation (small ones hide errors), gates open."""
    policy = build_policy(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            elif name.endswith(("_gate", "action_token")):
                parameter.normal_(0, 0.7, generator=generator)
    return policy


def frame(
    index: int, step: float = 0.1, words: str = "lift the red cube", size: tuple[int, int] = (40, 60)
) -> Observation:
    """The frame at `index` steps; both cameras, and a gripper that moves."""
    rng = np.random.default_rng(index)
    images = {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name in ("static", "wrist")}
    state = RobotState(0, np.zeros(7), gripper=float(index % 5) / 4)
    return Observation(round(index * step * NANOSECONDS), images, words, state)


def largest_difference(policy: VLAPolicy, options: FastPathOptions, frames: list[Observation]) -> float:
    """Between the two paths' normalised answers to the same frames, one session each."""
    plain, fast = PolicySession(policy), PolicySession(policy, fast=options)
    worst = 0.0
    for observation in frames:
        plain.predict_action_chunk(observation)
        fast.predict_action_chunk(observation)
        worst = max(worst, float(np.abs(plain.normalised - fast.normalised).max()))
    assert fast.path == "fast", fast.path_reason
    return worst
