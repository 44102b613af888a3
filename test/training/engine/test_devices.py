"""Precision and processes.

- In mixed precision, matrices that do not train are held in it: losses and gradients stay the same, bit for bit, for
  every backbone; a word embedding that is the output layer too stays float32. Adapters are added to them in float32.
- What a run cannot be resumed on (FSDP version 1, DeepSpeed, Megatron, XLA) is refused, with what to choose.
"""

from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType

from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy
from robovlms_ros.training.engine.batches import Collate, TrainingError, model_batch
from robovlms_ros.training.engine.devices import hold_frozen, require_supported
from robovlms_ros.training.engine.fit import fit
from robovlms_ros.training.engine.objective import Objective
from robovlms_ros.training.engine.trainable import prepare

BACKBONES = ["paligemma", "kosmos", "flamingo", "llava", "qwen", "smolvlm"]
HALF_LORA = {"precision": "bfloat16", "lora": {"rank": 2, "dropout": 0.0}}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_frozen_matrices_in_half_precision_change_no_number(make_training_config, make_windows, backbone):
    config = make_training_config(backbone, training=HALF_LORA)
    windows = make_windows(config, episodes=1)
    found = []
    for held in (False, True):
        policy = build_policy(config, seed=4)
        torch.manual_seed(0)
        prepare(policy, config.training)
        if held:
            hold_frozen(policy, config.training)
            kinds = {p.dtype for p in policy.parameters() if not p.requires_grad}
            assert torch.bfloat16 in kinds
        assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
        batch = model_batch(policy, Collate(config, policy.vlm.image_size)([windows[0], windows[1]]))
        policy.train()
        torch.manual_seed(0)  # Kosmos has dropout
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = Objective(policy)(batch)["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in policy.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_word_embedding_that_is_the_output_layer_stays(make_training_config):
    block = {"type": "discrete", "action_space": "discrete", "n_bin": 16}
    config = make_training_config(action_head=block, vlm={"vocabulary": []}, training=HALF_LORA)
    policy = hold_frozen(prepare(build_policy(config), config.training), config.training)
    output = policy.vlm.backbone.get_output_embeddings()
    assert output.weight is policy.vlm.word_embedding.weight and output.weight.dtype == torch.float32


def test_adapters_are_merged_in_float32(make_training_config, make_windows, tmp_path):
    training = {**HALF_LORA, "gradient_checkpointing": True, "max_steps": 2, "learning_rate": 1e-2}
    config = make_training_config(training=training)
    policy, windows = build_policy(config), make_windows(config, episodes=1)
    embedding = policy.vlm.word_embedding.weight.detach().clone()
    merged = load_policy(fit(policy, windows, windows, config, tmp_path))
    name = "layers.0.mlp.down_proj"
    layer = policy.vlm.text_tower.get_submodule(name)
    update = layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
    weight = merged.vlm.text_tower.get_submodule(name).weight
    assert layer.base_layer.weight.dtype == torch.bfloat16 and weight.dtype == torch.float32
    assert torch.equal(weight, layer.base_layer.weight.float() + update) and update.abs().max() > 0
    assert torch.equal(merged.vlm.word_embedding.weight, embedding)


@pytest.mark.parametrize(("kind", "message"), [
    ("FSDP", "FSDP version 1.*Set fsdp_version: 2"),
    ("DEEPSPEED", "DeepSpeed.*FSDP version 2"),
    ("MEGATRON_LM", "MEGATRON_LM.*FSDP version 2"),
    ("XLA", "XLA.*FSDP version 2"),
])
def test_what_a_run_cannot_be_resumed_on_is_refused(kind, message):
    with pytest.raises(TrainingError, match=message):
        require_supported(SimpleNamespace(distributed_type=DistributedType[kind], is_fsdp2=False))


def test_copies_and_fsdp_2_are_taken():
    for kind in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"):
        require_supported(SimpleNamespace(distributed_type=DistributedType[kind], is_fsdp2=kind == "FSDP"))
