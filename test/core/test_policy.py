"""The policy as a module.

- every continuous head takes one action token or several, and tokens pooled or resampled, with every history it has;
- a forward pass trains: every parameter that should has a gradient, the action token among them;
- proprioception reaches the features, normalised by the policy itself; two instructions give two features;
- `vlm.temperature` with a continuous head is accepted, and the log says that it has no effect.
"""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.models.vla_policy import VLAPolicy

MakeConfig = Callable[..., PolicyConfig]


def batch_of(policy: VLAPolicy, words: str = "lift the red cube") -> dict[str, Any]:
    size = policy.vlm.image_size
    generator = torch.Generator().manual_seed(1)
    images = {name: torch.randn(1, 3, 3, size, size, generator=generator) for name in policy.config.cameras}
    return {"images": images, **policy.tokenize([words])}


@pytest.mark.parametrize("head", ["lstm", "gpt", "fc"])
@pytest.mark.parametrize("history", ["post", "pre", "video"])
@pytest.mark.parametrize(
    "tokens",
    [
        {"latent": 3},
        {"action_space": "down_sample", "down_sample": "pooling", "latent": 2},
        {"action_space": "down_sample", "down_sample": "resampler", "latent": 2, "token_source": "text"},
        {"action_space": "down_sample", "down_sample": "pooling", "token_source": "vision"},
    ],
    ids=["three-tokens", "pooled", "resampled-text", "pooled-vision"],
)
@torch.no_grad()
def test_heads_tokens_and_histories(make_config: MakeConfig, head: str, history: str, tokens: dict[str, Any]) -> None:
    if history == "video" and head != "fc":
        return  # refused by the configuration, see test_config.py
    if history == "video" and tokens.get("token_source") == "vision":
        tokens = {**tokens, "latent": 2}
    block = {"type": head, "hidden_size": 16, "num_layers": None if head == "fc" else 1, **tokens}
    config = make_config("smolvlm", model={"history_type": history}, action_head=block, cameras=["static", "wrist"])
    policy = build_policy(config)
    output = policy(batch_of(policy))
    frames = 1 if history == "video" else 3
    assert output.arm.shape == (1, frames, 4, 6) and output.gripper_logits.shape == (1, frames, 4, 1)
    assert torch.isfinite(output.arm).all()


def test_it_trains(make_config: MakeConfig) -> None:
    policy = build_policy(make_config(proprioception={"names": ["gripper"]})).train()
    output = policy({**batch_of(policy), "proprioception": torch.rand(1, 3, 1)})
    (output.arm.square().mean() + output.gripper_logits.mean()).backward()
    without = [name for name, p in policy.named_parameters() if p.grad is None]
    assert not without and policy.vlm.action_token.grad.abs().max() > 0


@torch.no_grad()
def test_state_and_words_reach_the_features(make_config: MakeConfig) -> None:
    state = {"names": ["gripper"], "mean": [0.5], "std": [0.25]}
    policy = build_policy(make_config(proprioception=state))
    normalised: list[torch.Tensor] = []
    policy.vlm.state_embedding.register_forward_pre_hook(lambda module, inputs: normalised.append(inputs[0]))
    features = []
    for gripper, words in ((0.0, "lift the red cube"), (1.0, "lift the red cube"), (0.0, "lift the green cube")):
        batch = {**batch_of(policy, words), "proprioception": torch.full((1, 3, 1), gripper)}
        features.append(policy.action_features(batch))
    assert torch.equal(normalised[0], torch.full((3, 1), -2.0)) and torch.equal(normalised[1], torch.full((3, 1), 2.0))
    assert not torch.equal(features[0], features[1]) and not torch.equal(features[0], features[2])


def test_temperature_with_a_continuous_head(make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        build_policy(make_config(vlm={"temperature": 0.7}))
    assert "vlm.temperature = 0.7 has no effect with a continuous action head" in caplog.text
