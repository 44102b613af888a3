"""The estimate of a training step's memory, against what the allocator really handed out (within 10 %).

- Every backbone in its tiny size, and a mid-size PaliGemma of which activations are the most; full, with gradient
  checkpointing, with adapters, in bfloat16; the discrete head.
- PaliGemma 3B is estimated without its weights: the numbers that follow from its parameters, and that checkpointing and
  adapters save what they should.
"""

import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.training.engine.devices import hold_frozen
from robovlms_ros.training.engine.memory import compare, estimate, example, table
from robovlms_ros.training.engine.objective import Objective
from robovlms_ros.training.engine.trainable import prepare

MID = {
    "size": "tiny", "image_size": 112,
    "settings": {
        "text_config": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
                        "head_dim": 48},
        "vision_config": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4},
    },
}


def allocated(config):
    """Bytes at the worst moment of a forward and backward pass, by torch's profiler, gradients included; and how many
    numbers the parameters are."""
    policy = hold_frozen(prepare(build_policy(config), config.training), config.training).train()
    batch = {k: _filled(v) for k, v in example(policy, config.training.batch_size).items()}
    half = config.training.precision == "bfloat16"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = Objective(policy)(batch)["loss"]
        loss.backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak, sum(p.numel() for p in policy.parameters())


def _filled(value):
    if isinstance(value, dict):
        return {k: _filled(v) for k, v in value.items()}
    return torch.rand(value.shape) if value.is_meta else value


def check(config):
    memory = estimate(config)
    measured, everything = allocated(config)
    assert memory.parameters == everything
    assert memory.activations + memory.gradients == pytest.approx(measured, rel=0.1)
    total = measured + memory.weights + memory.moments
    assert memory.total == pytest.approx(total, rel=0.1)


@pytest.mark.parametrize("backbone", ["paligemma", "kosmos", "flamingo", "llava", "qwen", "smolvlm"])
def test_every_backbone_is_estimated(make_training_config, backbone):
    check(make_training_config(backbone, training={"batch_size": 8}))


@pytest.mark.parametrize("training", [
    {}, {"gradient_checkpointing": True}, {"lora": {"rank": 8}}, {"freeze": ["backbone"]},
    {"precision": "bfloat16"}, {"precision": "bfloat16", "lora": {"rank": 8}, "gradient_checkpointing": True},
], ids=["full", "checkpointing", "lora", "frozen", "half", "half-lora"])
def test_activations_are_estimated(make_training_config, training):
    check(make_training_config(vlm=MID, training={"batch_size": 3, **training}))


def test_tokens_are_estimated(make_training_config):
    block = {"type": "discrete", "action_space": "discrete", "n_bin": 32}
    check(make_training_config(action_head=block, vlm={"vocabulary": []}, training={"batch_size": 4}))


def test_paligemma_3b_is_estimated_without_its_weights(make_training_config):
    """Of one step on its shapes: what full fine-tuning takes beside the activations follows from the parameters."""
    config = make_training_config(
        model={"history_length": 1}, action_head={"hidden_size": 1024, "num_layers": 4},
        vlm={"size": "full", "model_name": "google/paligemma-3b-pt-224", "vocabulary": []},
        training={"batch_size": 1, "precision": "bfloat16", "lora": {"rank": 64}},
    )
    lora = estimate(config)
    # 2.92 billion in the VLM (the published count), 41 million in the head, 78 million in the adapters.
    assert (lora.parameters - lora.trained) / 1e9 == pytest.approx(2.923, abs=0.005)
    assert lora.trained / 1e6 == pytest.approx(41 + 78, abs=2)
    assert lora.gradients == 4 * lora.trained and lora.moments == 8 * lora.trained
    # Matrices of the frozen VLM take 2 bytes a number; its word embedding (527 million) and what trains take 4.
    assert lora.weights / 1e9 == pytest.approx(2 * (2.923 - 0.527) + 4 * (0.527 + 0.119), rel=0.01)
    assert lora.total < 16 * lora.parameters / 2
    assert "3,04" in table({"LoRA": lora})


def test_checkpointing_and_adapters_save(make_training_config):
    rows = compare(make_training_config(vlm=MID, training={"lora": {"rank": 4}}))
    full, saving = rows["full fine-tuning"], rows["full fine-tuning, gradient checkpointing"]
    assert saving.total < full.total and saving.weights == full.weights
    assert rows["LoRA, rank 4, gradient checkpointing"].total < rows["LoRA, rank 4"].total < full.total
    assert rows["as configured"] == rows["LoRA, rank 4"]
