"""Trainable parameters: freezing, adapters, gradient checkpointing, for every backbone.

- Every backbone and head trains a step in its tiny size: vision, language model, head and action token move.
- What is frozen does not move, bit for bit; the last N layers of a frozen language model do.
- LoRA: the policy answers as before until it is trained; the base stays; merged into the saved checkpoint it answers
  the same; the adapters lie beside it; nothing to adapt is refused by name.
- Gradient checkpointing computes the layers twice and the same gradients.
- Small initial weights: images reach the action feature of every family at once.
- Training JSON of a RoboVLMs run and our YAML name the same settings; wrong ones are refused.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy
from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.config.robovlms_import import read_reference
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.training.engine.batches import Collate, TrainingError, model_batch
from robovlms_ros.training.engine.fit import fit
from robovlms_ros.training.engine.objective import Objective
from robovlms_ros.training.engine.trainable import count, initialise, prepare

BACKBONES = ["paligemma", "kosmos", "flamingo", "llava", "qwen", "smolvlm"]


def parts_of(policy):
    """Parameters by part; tied and never used ones with the others of their part."""
    vlm = policy.vlm
    parts = {"vision": list(vlm.vision_tower.parameters()), "text": list(vlm.text_tower.parameters()),
             "head": list(policy.head.parameters())}
    if hasattr(vlm, "action_token"):
        parts["action token"] = [vlm.action_token]
    return parts


def moved(policy, windows, config, folder):
    """The share of each part's tensors that a run changes."""
    before = {name: [p.detach().clone() for p in part] for name, part in parts_of(policy).items()}
    fit(policy, windows, None, config, folder)
    after = parts_of(policy)
    changed = {name: [not torch.equal(a, b) for a, b in zip(part, after[name], strict=True)]
               for name, part in before.items()}
    return {name: sum(flags) / len(flags) if flags else None for name, flags in changed.items()}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_trains_a_step(make_training_config, make_windows, tmp_path, backbone):
    config = make_training_config(backbone, training={"max_steps": 2, "batch_size": 2})
    shares = moved(build_policy(config), make_windows(config, episodes=1), config, tmp_path)
    # Some towers hold parameters that features do not pass through, and Flamingo's gates let nothing in at first.
    assert shares["action token"] == 1 and shares["head"] > 0.9 and shares["text"] > 0.8 and shares["vision"] > 0.5


@pytest.mark.parametrize("head", ["gpt", "fc", "discrete"])
def test_every_head_trains_a_step(make_training_config, make_windows, tmp_path, head):
    block = {"type": head, "num_layers": None, "hidden_size": 16}
    if head == "discrete":
        block |= {"action_space": "discrete", "n_bin": 16}
    config = make_training_config(
        action_head=block, vlm={"vocabulary": []}, training={"max_steps": 2, "batch_size": 2},
    )
    shares = moved(build_policy(config), make_windows(config, episodes=1), config, tmp_path)
    assert shares["text"] > 0.8 and shares["vision"] > 0.5 and (head == "discrete" or shares["head"] > 0.9)


@pytest.mark.parametrize(("settings", "still", "moving"), [
    ({"freeze": ["vision"]}, ["vision"], ["text", "head", "action token"]),
    ({"freeze": ["text"]}, ["text"], ["vision", "head", "action token"]),
    ({"freeze": ["backbone"]}, ["vision", "text"], ["head", "action token"]),
], ids=["vision", "text", "backbone"])
def test_frozen_parts_do_not_move(make_training_config, make_windows, tmp_path, settings, still, moving):
    config = make_training_config(training={"max_steps": 2, "weight_decay": 0.1, **settings})
    shares = moved(build_policy(config), make_windows(config, episodes=1), config, tmp_path)
    assert [shares[name] for name in still] == [0] * len(still)
    assert all(shares[name] > 0.5 for name in moving)


def test_last_layers_of_a_frozen_language_model_train(make_training_config, make_windows, tmp_path):
    config = make_training_config(training={"max_steps": 2, "freeze": ["backbone"], "train_last_layers": 1})
    policy = build_policy(config)
    layers = policy.vlm.text_tower.layers
    before = [{n: p.detach().clone() for n, p in layer.named_parameters()} for layer in layers]
    words = policy.vlm.word_embedding.weight.detach().clone()
    fit(policy, make_windows(config, episodes=1), None, config, tmp_path)
    same = [[torch.equal(p, before[i][n]) for n, p in layer.named_parameters()] for i, layer in enumerate(layers)]
    assert all(same[0]) and not any(same[-1]) and torch.equal(words, policy.vlm.word_embedding.weight)
    config = make_training_config(training={"freeze": ["text"], "train_last_layers": 9})
    with pytest.raises(TrainingError, match="the language model has 2 layers"):
        prepare(build_policy(config), config.training)


def answer(policy):
    batch = {"images": {"static": torch.randn(2, 2, 3, 28, 28, generator=torch.Generator().manual_seed(1))},
             **policy.tokenize(["lift the red cube", "lift the green cube"])}
    with torch.no_grad():
        output = policy.eval()(batch)
    return torch.cat([output.arm, output.gripper_logits], dim=-1)


@pytest.mark.parametrize("backbone", ["paligemma", "flamingo"])
def test_lora_merges_to_the_same_answers(make_training_config, make_windows, tmp_path, backbone):
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.1}
    training = {"epochs": 2, "lora": lora, "learning_rate": 1e-2}
    config = make_training_config(backbone, training=training, action_head={"action_space": "continuous"})
    policy = build_policy(config)
    untouched = answer(policy)
    base = {n: p.detach().clone() for n, p in policy.vlm.backbone.named_parameters()}
    prepare(build_policy(config), config.training)
    place = fit(policy, make_windows(config, episodes=2), None, config, tmp_path)
    everything, trained = count(policy.vlm.backbone)
    assert 0 < trained < everything / 4
    kept = {n.replace(".base_layer.", "."): p for n, p in policy.vlm.backbone.named_parameters() if ".lora_" not in n}
    assert kept.keys() == base.keys() and all(torch.equal(p, base[n]) for n, p in kept.items())
    trained_answer = answer(policy)
    assert (trained_answer - untouched).abs().max() > 1e-3
    merged = load_policy(place)
    torch.testing.assert_close(answer(merged), trained_answer, atol=1e-5, rtol=0)
    assert any(not torch.equal(p, base[n]) for n, p in merged.vlm.backbone.named_parameters())
    adapters = load_file(place / "adapters.safetensors")
    assert adapters and all(".lora_A.weight" in k or ".lora_B.weight" in k for k in adapters)


def test_fresh_adapters_change_nothing(make_training_config):
    config = make_training_config(training={"lora": {"rank": 2, "targets": ["q_proj", "v_proj"]}})
    policy = build_policy(config)
    before = answer(policy)
    prepare(policy, config.training)
    torch.testing.assert_close(answer(policy), before)
    names = {n.split(".lora_")[0].rpartition(".")[2] for n, p in policy.named_parameters() if ".lora_" in n}
    assert names == {"q_proj", "v_proj"}
    config = make_training_config(training={"lora": {"targets": ["query"]}})
    with pytest.raises(TrainingError, match=r"\['query'\].*has .*q_proj"):
        prepare(build_policy(config), config.training)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_checkpointing_computes_twice_and_the_same(make_training_config, make_windows, backbone):
    gradients, calls = [], []
    for checkpointing in (False, True):
        config = make_training_config(backbone, training={"gradient_checkpointing": checkpointing})
        policy = build_policy(config, seed=4)
        prepare(policy, config.training)
        times = []
        tower = policy.vlm.text_tower
        layer = tower.blocks[0].decoder_layer if backbone == "flamingo" else tower.layers[0]
        inner = next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))
        inner.register_forward_pre_hook(lambda *_, times=times: times.append(1))
        windows = make_windows(config, episodes=1)
        batch = model_batch(policy, Collate(config, policy.vlm.image_size)([windows[0], windows[1]]))
        policy.train()
        torch.manual_seed(0)  # Kosmos has dropout
        Objective(policy)(batch)["loss"].backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
        calls.append(len(times))
    assert calls[1] == 2 * calls[0]
    assert len(gradients[0]) == len(gradients[1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_reference_json_says_how_to_train():
    data = {
        "robovlm_name": "RoboKosMos", "window_size": 8, "fwd_pred_next_n": 10, "scheduler": "half-cosine",
        "act_head": {"type": "LSTMDecoder"}, "vlm": {"pretrained_model_name_or_path": "kosmos"},
        "trainer": {"precision": "16-mixed", "accumulate_grad_batches": 4, "max_epochs": 3, "max_steps": -1},
        "train_setup": {"train_vision": False, "train_text_embedding": False, "lora_enable": True, "lora_r": 8,
                        "gradient_checkpointing": True},
    }
    training = config_from_mapping(json.loads(json.dumps(data)), "run.json").training
    assert (training.precision, training.accumulation, training.schedule) == ("float16", 4, "cosine")
    assert training.freeze == ("vision", "word_embedding") and training.lora.rank == 8 and training.epochs == 3
    assert training.gradient_checkpointing and training.max_steps is None and training.gradient_clip == 0
    frozen = read_reference({**data, "train_setup": {"freeze_backbone": True}}, "run.json")["training"]
    assert frozen["freeze"] == ["backbone"] and "lora" not in frozen


@pytest.mark.parametrize(("block", "message"), [
    ({"learning_rat": 1e-4}, "unknown key 'learning_rat'. Did you mean 'learning_rate'"),
    ({"freeze": ["visoin"]}, "Did you mean 'vision'"),
    ({"lora": {"rank": 0}}, "training.lora.rank = 0: must be 1 to 4096"),
    ({"schedule": "linear"}, "schedule = 'linear': not allowed"),
    ({"train_last_layers": 2}, "it names what trains of a frozen part"),
    ({"validation_fraction": 1.0}, "0 \\(none held out\\) or more, and below 1"),
    ({"augmentation": {"shift": 2}}, "augmentation.shift = 2.0: must be 0 to 0.5"),
])
def test_wrong_settings_are_refused(make_training_config, block, message):
    with pytest.raises(ConfigError, match=message):
        make_training_config(training=block)


def test_nothing_left_to_train_is_refused(make_training_config, make_windows, tmp_path):
    block = {"type": "discrete", "action_space": "discrete", "n_bin": 16}
    config = make_training_config(action_head=block, vlm={"vocabulary": []}, training={"freeze": ["backbone"]})
    with pytest.raises(TrainingError, match="nothing is left to train"):
        fit(build_policy(config), make_windows(config), None, config, tmp_path)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_images_reach_a_new_small_policy(make_training_config, backbone):
    """Flamingo's own gates are closed, and an image then changes nothing."""
    policy = build_policy(make_training_config(backbone), seed=1)
    initialise(policy, 1)
    vlm = policy.vlm
    size = vlm.image_size
    generator = torch.Generator().manual_seed(2)
    frames = torch.randn(2, 3, size, size, generator=generator)
    words = policy.tokenize(["lift the red cube"] * 2)
    with torch.no_grad():
        visual = vlm.encode_frames({name: frames for name in policy.config.cameras})
        first, second = vlm.forward_features(visual, words["input_ids"], words["attention_mask"])
    assert (first - second).abs().mean() > 1e-3 * first.abs().mean()
