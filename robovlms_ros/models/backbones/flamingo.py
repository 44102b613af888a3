"""OpenFlamingo: cross attention instead of image tokens in the sequence (the tutorial's
encoder-decoder pattern)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robovlms_ros.core.schema import ConfigError, did_you_mean
from robovlms_ros.models.backbones.base import BaseRoboVLM, part
from robovlms_ros.models.backbones.flamingo_model import (
    CROSS_ATTENTION,
    PERCEIVER,
    FlamingoConfig,
    FlamingoModel,
    Media,
    attending,
)
from robovlms_ros.models.backbones.hf_config import check_sizes, merge_settings, raw_config
from robovlms_ros.models.backbones.sequence import TokenSequence
from robovlms_ros.models.backbones.spec import BackboneSpec
from robovlms_ros.models.tokenization import TEMPLATES

TINY_MPT = {"model_type": "mpt", "d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 512, "max_seq_len": 512}
TINY_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
CLIP_L14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
ROOT = "vlm.backbone."


class RoboFlamingo(BaseRoboVLM):
    """The perceiver's latents of every camera stand side by side as one medium, which all words
    after the image token attend to."""

    spec = BackboneSpec(
        name="flamingo",
        model_types=("open_flamingo",),
        prompt=TEMPLATES["flamingo"],
        tiny={"open_flamingo": {"text_config": TINY_MPT, "vision_config": TINY_CLIP}},
        full={"OpenFlamingo-3B-vitl-mpt1b-langinstruct": "openflamingo-3b-vitl-mpt1b.json"},
        bos_offset=0,
        eos_offset=1,
        fusion="cross_attention",
        published_rules=(
            (r"^(model|backbone|lang_encoder)\.", f"{ROOT}lang_encoder."),
            (r"^(perceiver|vision_encoder)\.", rf"{ROOT}\1."),
        ),
        key_rules=(
            (r"^(lang_encoder\.)old_decoder_blocks\.(\d+)\.", r"\1blocks.\2.decoder_layer."),
            (r"^(lang_encoder\.)gated_cross_attn_layers\.(\d+)\.", r"\1blocks.\2.gated_cross_attn_layer."),
            (r"^(lang_encoder\.)(transformer|model)\.", r"\1"),
            (r"^(lang_encoder\.)layers\.", r"\1blocks."),
            (r"^(lang_encoder\.blocks\.\d+\.)(?!decoder_layer|gated_cross_attn_layer)", r"\1decoder_layer."),
            (r"\.decoder_layer\.ln_([12])\.", r".decoder_layer.norm_\1."),
            (r"\.decoder_layer\.mlp\.mlp_(up|down)\.", r".decoder_layer.ffn.\1_proj."),
            (r"^lang_encoder\.ln_f\.", "lang_encoder.norm_f."),
            (r"^vision_encoder\.vision_model\.", "vision_encoder."),
        ),
    )

    def build_config(self, vocab_size: int | None, folder: Path | None) -> FlamingoConfig:
        from transformers import AutoConfig

        data = merge_settings(_complete(raw_config(self.spec, self.config.vlm, folder)), self.config.vlm.settings)
        if self.config.vlm.image_size is not None:
            data["vision_config"]["image_size"] = self.config.vlm.image_size
        if vocab_size is not None:
            data["text_config"]["vocab_size"] = vocab_size
        text = dict(data["text_config"])
        given: dict[str, Any] = {
            "text_config": AutoConfig.for_model(text.pop("model_type", "mpt"), **text),
            "vision_config": AutoConfig.for_model("clip_vision_model", **_without_type(data["vision_config"])),
            "perceiver": _sizes(data, "perceiver", PERCEIVER),
            "cross_attention": _sizes(data, "cross_attention", CROSS_ATTENTION),
        }
        numbers = ("cross_attn_every_n_layers", "media_column")
        given |= {name: int(data[name]) for name in numbers if name in data}
        return FlamingoConfig(**given)

    def build_model(self) -> nn.Module:
        return FlamingoModel(self.hf_config, self.config.vlm.attention)

    @property
    def word_embedding(self) -> nn.Embedding:
        return self.backbone.lang_encoder.get_input_embeddings()

    text_tower = part("decoder")
    vision_tower = part("vision_encoder")

    def model_encode_images(self, images: Tensor) -> Tensor:
        # OpenFlamingo takes CLIP's patch tokens before the last norm, without the class token.
        tokens = self.vision_tower(images).last_hidden_state[:, 1:]
        return self.backbone.perceiver(tokens)

    def run_text_tower(self, sequence: TokenSequence, tower: nn.Module | None = None, **kwargs: Any) -> Any:
        assert sequence.media is not None
        locations = torch.zeros_like(sequence.mask)
        locations[:, self.hf_config.media_column] = True
        with attending(Media(sequence.media, locations)):
            return super().run_text_tower(sequence, tower, **kwargs)

    @staticmethod
    def adapt_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """open_clip's vision tower, where the file has that layout, as transformers'."""
        return dict(_clip_tensors(tensors))


def _complete(data: dict[str, Any]) -> dict[str, Any]:
    """RoboVLMs names the language model's folder: its configuration alone, with CLIP ViT-L/14
    understood."""
    if "text_config" not in data:
        data = {"text_config": data}
    return {"vision_config": dict(CLIP_L14), "cross_attn_every_n_layers": 1, "media_column": 0, **data}


def _sizes(data: Mapping[str, Any], name: str, usual: Mapping[str, int]) -> dict[str, int]:
    """The block `name` of `data` laid on the usual sizes. Raises ConfigError, BackboneError."""
    given = data.get(name, {})
    place = f"vlm.settings.{name}"
    if not isinstance(given, Mapping):
        raise ConfigError(f"{place} = {given!r}: must be a mapping with {', '.join(usual)}.")
    for key, value in given.items():
        if key not in usual:
            raise ConfigError(f"{place}: unknown key '{key}'.{did_you_mean(key, usual)}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{place}.{key} = {value!r}: must be a whole number above 0.")
    check_sizes(given, place)
    return {**usual, **given}


def _without_type(data: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in json.loads(json.dumps(data)).items() if k != "model_type"}


OPEN_CLIP = (
    ("class_embedding", "embeddings.class_embedding"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("conv1.", "embeddings.patch_embedding."),
    ("ln_pre.", "pre_layrnorm."),
    ("ln_post.", "post_layernorm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.", ".self_attn."),
)


def _clip_tensors(tensors: dict[str, Tensor]) -> Any:
    marker = "vision_encoder."
    open_clip = any("transformer.resblocks." in key for key in tensors)
    for key, tensor in tensors.items():
        head, _, tail = key.partition(marker)
        if not open_clip or marker not in key:
            yield key, tensor
            continue
        tail = tail.removeprefix("visual.")
        if tail == "proj":
            continue
        for old, new in OPEN_CLIP:
            tail = tail.replace(old, new) if not tail.startswith("encoder.") or old[0] == "." else tail
        if ".in_proj_" in tail:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{head}{marker}{tail.replace('in_proj_', f'{letter}_proj.')}", part
        else:
            yield f"{head}{marker}{tail}", tensor
