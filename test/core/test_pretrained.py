"""From a pretrained VLM to a policy.

- for every family, a tiny VLM written by transformers' save_pretrained (one file, or shards) gives the backbone's
  weights exactly; head and action token are new and seeded; the policy still counts as random;
- OpenFlamingo in parts: language model, CLIP in open_clip's layout, perceiver and gated layers all arrive; the keys and
  shapes of the published 3B checkpoint are those of its architecture here;
- missing and unexpected tensors are refused with a listing; nothing at hand is refused by name.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.checkpoints.pretrained import policy_from_vlm
from robovlms_ros.checkpoints.weights import CheckpointError
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.registry import resolve
from robovlms_ros.models.backbones.flamingo import OPEN_CLIP
from robovlms_ros.models.backbones.hf_config import build_hf_config
from robovlms_ros.models.backbones.meta_parameters import parameters_on_meta
from robovlms_ros.models.tokenization import build_word_tokenizer
from robovlms_ros.models.vla_policy import VLAPolicy

MakeConfig = Callable[..., PolicyConfig]
FAMILIES = [
    ("paligemma", "paligemma"),
    ("kosmos", "kosmos-2"),
    ("llava", "llava"),
    ("llava", "llava_next"),
    ("qwen", "qwen2_5_vl"),
    ("qwen", "qwen3_vl"),
    ("smolvlm", "smolvlm"),
]


def write_vlm(backbone: str, model_type: str, folder: Path, make_config: MakeConfig, shards: bool = False) -> Any:
    """A tiny random VLM and a tokenizer, as transformers writes them. Returns the model."""
    from transformers import AutoModelForImageTextToText

    config = make_config(backbone, vlm={"settings": {"model_type": model_type}})
    adapter = resolve("backbone", backbone)
    hf_config = build_hf_config(adapter.spec, config.vlm, None, None, adapter.complete_config)
    model = AutoModelForImageTextToText.from_config(hf_config)
    model.save_pretrained(folder, max_shard_size="100KB" if shards else "5GB")
    build_word_tokenizer(["lift", "the", "cube"], adapter.spec.prompt).save_pretrained(folder)
    return model


def full_config(make_config: MakeConfig, backbone: str, folder: Path) -> PolicyConfig:
    return make_config(backbone, vlm={"size": "full", "model_name": str(folder), "vocabulary": []})


@pytest.mark.parametrize("shards", [False, True], ids=["one-file", "shards"])
@pytest.mark.parametrize("family", FAMILIES, ids=[f[1] for f in FAMILIES])
def test_backbone_from_vlm(make_config: MakeConfig, tmp_path: Path, family: tuple[str, str], shards: bool) -> None:
    model = write_vlm(*family, tmp_path, make_config, shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    config = full_config(make_config, family[0], tmp_path)
    policy = policy_from_vlm(config, seed=5)
    assert policy.is_random and (policy.vlm.action_token == 0).all()
    theirs = model.state_dict()
    ours = policy.vlm.backbone.state_dict()
    assert ours.keys() == {k for k in theirs if "lm_head" not in k}
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    again, other = policy_from_vlm(config, seed=5), policy_from_vlm(config, seed=6)
    head = policy.head.state_dict()
    assert all(torch.equal(v, again.head.state_dict()[k]) for k, v in head.items())
    assert not all(torch.equal(v, other.head.state_dict()[k]) for k, v in head.items())
    size = policy.vlm.image_size
    output = policy({"images": {"static": torch.randn(1, 3, 3, size, size)}, **policy.tokenize(["lift the cube"])})
    assert torch.isfinite(output.arm).all() and not policy.vlm.word_embedding.weight.is_meta


def test_open_flamingo_in_parts(make_config: MakeConfig, tmp_path: Path) -> None:
    source = build_policy(make_config("flamingo", vlm={"vocabulary": []}), seed=7)
    backbone = source.vlm.backbone
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.3)
    state = backbone.state_dict()
    config = {**source.vlm.hf_config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    source.prompt.tokenizer.save_pretrained(tmp_path)
    for part in ("lang_encoder", "vision_encoder"):
        (tmp_path / part).mkdir()
    language = {
        k.removeprefix("lang_encoder.").replace(".decoder_layer.", "."): v.clone()
        for k, v in state.items()
        if k.startswith("lang_encoder.") and "gated" not in k
    }
    base_words = torch.zeros_like(state["lang_encoder.transformer.wte.weight"])
    language["transformer.wte.weight"] = base_words  # the checkpoint's own words replace the base model's
    save_file(language, tmp_path / "lang_encoder" / "model.safetensors")
    vision = {k.removeprefix("vision_encoder."): v for k, v in state.items() if k.startswith("vision_encoder.")}
    save_file(as_open_clip(vision), tmp_path / "vision_encoder" / "model.safetensors")
    trained = [k for k in state if k.startswith("perceiver.") or "gated" in k or k.endswith("wte.weight")]
    torch.save({f"module.{k}": state[k].clone() for k in trained}, tmp_path / "checkpoint.pt")

    policy = policy_from_vlm(full_config(make_config, "flamingo", tmp_path))
    ours = policy.vlm.backbone.state_dict()
    assert ours.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(ours[key], value), key


def published_open_flamingo() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of OpenFlamingo-3B-vitl-mpt1b: its trained parts and words, as its training code saves them."""
    table: dict[str, tuple[int, ...]] = {"perceiver.latents": (64, 1024)}
    for name in ("perceiver.norm.weight", "perceiver.norm.bias"):
        table[name] = (1024,)
    for i in range(6):
        attention, mlp = f"perceiver.layers.{i}.0.", f"perceiver.layers.{i}.1."
        for name in ("norm_media.weight", "norm_media.bias", "norm_latents.weight", "norm_latents.bias"):
            table[attention + name] = (1024,)
        table |= {f"{attention}to_q.weight": (512, 1024), f"{attention}to_kv.weight": (1024, 1024)}
        table |= {f"{attention}to_out.weight": (1024, 512)}
        table |= {f"{mlp}0.weight": (1024,), f"{mlp}0.bias": (1024,)}
        table |= {f"{mlp}1.weight": (4096, 1024), f"{mlp}3.weight": (1024, 4096)}
    table["lang_encoder.transformer.wte.weight"] = (50280, 2048)
    for i in range(24):
        gated = f"lang_encoder.transformer.blocks.{i}.gated_cross_attn_layer."
        table |= {f"{gated}attn_gate": (1,), f"{gated}ff_gate": (1,)}
        table |= {f"{gated}attn.norm.weight": (2048,), f"{gated}attn.norm.bias": (2048,)}
        table |= {f"{gated}attn.to_q.weight": (512, 2048), f"{gated}attn.to_kv.weight": (1024, 1024)}
        table |= {f"{gated}attn.to_out.weight": (2048, 512)}
        table |= {f"{gated}ff.0.weight": (2048,), f"{gated}ff.0.bias": (2048,)}
        table |= {f"{gated}ff.1.weight": (8192, 2048), f"{gated}ff.3.weight": (2048, 8192)}
    return table


def test_published_open_flamingo_keys(make_config: MakeConfig) -> None:
    name = "openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct"
    head = {"type": "lstm", "action_space": "down_sample", "down_sample": "pooling"}
    config = make_config("flamingo", vlm={"size": "full", "model_name": name, "vocabulary": []}, action_head=head)
    with parameters_on_meta():
        policy = VLAPolicy(config)
    wanted = {k: tuple(v.shape) for k, v in policy.vlm.backbone.state_dict().items()}
    table = published_open_flamingo()
    assert all(wanted.get(key) == shape for key, shape in table.items())
    elsewhere = {key for key in wanted if key not in table}
    assert all(k.startswith("vision_encoder.") or ".decoder_layer." in k or "norm_f" in k for k in elsewhere)


def as_open_clip(vision: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' CLIP vision tensors under open_clip's names, q, k and v in one."""
    renamed: dict[str, torch.Tensor] = {}
    for key, value in vision.items():
        key = key.removeprefix("vision_model.")
        for old, new in reversed(OPEN_CLIP):
            if new in key and (key.startswith(new) or new[0] == "."):
                key = key.replace(new, old)
        renamed[f"visual.{key}"] = value
    for key in [k for k in renamed if ".q_proj." in k]:
        parts = [renamed.pop(key.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        renamed[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return renamed


def test_faults_are_listed(make_config: MakeConfig, tmp_path: Path) -> None:
    write_vlm("paligemma", "paligemma", tmp_path, make_config)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    lost = next(k for k in tensors if "q_proj" in k)
    del tensors[lost]
    tensors["model.stranger"] = torch.zeros(1)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing: .*q_proj.*1 unexpected: model.stranger"):
        policy_from_vlm(full_config(make_config, "paligemma", tmp_path))


def test_nothing_at_hand(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        policy_from_vlm(full_config(make_config, "paligemma", tmp_path / "absent"))
