"""The estimate of a training step's memory, against what the allocator really handed out (within 10 %).

- Every backbone in its tiny size, and a mid-size PaliGemma of which activations are the most; full, with gradient
  checkpointing, with adapters.
- PaliGemma 3B is estimated without its weights: the numbers that follow from its parameters, and that checkpointing and
  adapters save what they should.
"""

import dataclasses
import json

import pytest
import torch

from robovlms_ros.config_training import LoraConfig
from robovlms_ros.policy.checkpoint import build_policy
from robovlms_ros.training.engine.memory import GIB, compare, estimate, example, table
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


def allocated(config, folder):
    """Bytes at the worst moment of a forward and backward pass, by torch's profiler, gradients included."""
    policy = prepare(build_policy(config), config.training).train()
    batch = {k: _filled(v) for k, v in example(policy, config.training.batch_size).items()}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        Objective(policy)(batch)["loss"].backward()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = [e for e in json.loads((folder / "trace.json").read_text())["traceEvents"] if e.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


def _filled(value):
    if isinstance(value, dict):
        return {k: _filled(v) for k, v in value.items()}
    return torch.rand(value.shape) if value.is_meta else value


def check(config, folder):
    memory = estimate(config)
    real = build_policy(config)
    everything = sum(p.numel() for p in prepare(real, config.training).parameters())
    assert memory.parameters == everything
    measured = allocated(config, folder)
    assert memory.activations + memory.gradients == pytest.approx(measured, rel=0.1)
    total = measured + memory.weights + memory.moments
    assert memory.total == pytest.approx(total, rel=0.1)


@pytest.mark.parametrize("backbone", ["paligemma", "kosmos", "flamingo", "llava", "qwen", "smolvlm"])
def test_every_backbone_is_estimated(make_training_config, tmp_path, backbone):
    check(make_training_config(backbone, training={"batch_size": 8}), tmp_path)


@pytest.mark.parametrize("training", [
    {}, {"gradient_checkpointing": True}, {"lora": {"rank": 8}}, {"freeze": ["backbone"]},
], ids=["full", "checkpointing", "lora", "frozen"])
def test_activations_are_estimated(make_training_config, tmp_path, training):
    check(make_training_config(vlm=MID, training={"batch_size": 3, **training}), tmp_path)


def test_paligemma_3b_is_estimated_without_its_weights(make_training_config):
    config = make_training_config(
        model={"history_length": 2}, action_head={"hidden_size": 1024, "num_layers": 4},
        vlm={"size": "full", "model_name": "google/paligemma-3b-pt-224", "vocabulary": []}, training={"batch_size": 1},
    )
    half = dataclasses.replace(config.training, gradient_checkpointing=True, precision="bfloat16")
    rows = {"full": estimate(dataclasses.replace(config, training=dataclasses.replace(half, precision="float32"))),
            "lora": estimate(dataclasses.replace(config, training=dataclasses.replace(half, lora=LoraConfig())))}
    full, lora = rows["full"], rows["lora"]
    # 2.92 billion in the VLM (the published count), 41 million in the head.
    assert full.parameters / 1e9 == pytest.approx(2.965, abs=0.005)
    assert full.gradients / GIB == pytest.approx(4 * 2.965e9 / GIB, rel=0.01) and full.moments == 2 * full.gradients
    assert lora.trained < 0.05 * full.trained and lora.total < full.total / 2
    assert "2,96" in table(rows)


def test_checkpointing_and_adapters_save(make_training_config):
    rows = compare(make_training_config(vlm=MID, training={"lora": {"rank": 4}}))
    full, saving = rows["full fine-tuning"], rows["full fine-tuning, gradient checkpointing"]
    assert saving.total < full.total and saving.weights == full.weights
    assert rows["LoRA, rank 4, gradient checkpointing"].total < rows["LoRA, rank 4"].total < full.total
    assert rows["as configured"] == rows["LoRA, rank 4"]
