"""OpenFlamingo's architecture on transformers' parts: CLIP, perceiver resampler, gated cross
attention in a decoder.

Sources: arXiv 2204.14198, arXiv 2308.01390. Every decoder layer is wrapped; every n-th wrapper
carries a gated cross attention that runs before it.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robovlms_ros.models.perceiver import GatedCrossAttention, PerceiverResampler

PERCEIVER = {"depth": 6, "dim_head": 64, "heads": 8, "num_latents": 64}
CROSS_ATTENTION = {"dim_head": 64, "heads": 8}
"""OpenFlamingo's sizes of the resampler and of every gated cross attention."""


@dataclass
class FlamingoConfig:
    """text_config, vision_config: transformers' (MPT or LLaMA, CLIP vision). media_column: where
    the prompt's image token lies; columns before it attend to no image. perceiver, cross_attention:
    sizes, with the keys of PERCEIVER and CROSS_ATTENTION."""

    text_config: Any
    vision_config: Any
    cross_attn_every_n_layers: int = 1
    media_column: int = 0
    perceiver: Mapping[str, int] = field(default_factory=lambda: dict(PERCEIVER))
    cross_attention: Mapping[str, int] = field(default_factory=lambda: dict(CROSS_ATTENTION))

    def get_text_config(self) -> Any:
        return self.text_config

    def to_dict(self) -> dict[str, Any]:
        parts = {"text_config": self.text_config.to_dict(), "vision_config": self.vision_config.to_dict()}
        numbers = {"cross_attn_every_n_layers": self.cross_attn_every_n_layers, "media_column": self.media_column}
        sizes = {"perceiver": dict(self.perceiver), "cross_attention": dict(self.cross_attention)}
        return {"model_type": "open_flamingo", **parts, **numbers, **sizes}


@dataclass(frozen=True)
class Media:
    """Cross-attention inputs of the decoder layers in one pass: tokens (B, M, N, d_vis), locations
    (B, L) bool."""

    tokens: Tensor
    locations: Tensor


# The layers' signature is transformers' own and has no place for media. A context variable is
# private to the thread.
_media: ContextVar[Media | None] = ContextVar("media", default=None)


@contextmanager
def attending(media: Media) -> Iterator[None]:
    """Within the block, gated layers attend to `media`."""
    token = _media.set(media)
    try:
        yield
    finally:
        _media.reset(token)


class FlamingoLayer(nn.Module):
    """A decoder layer with its gated cross attention, where it has one."""

    def __init__(self, decoder_layer: nn.Module, gated: nn.Module | None):
        super().__init__()
        self.gated_cross_attn_layer = gated
        self.decoder_layer = decoder_layer

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        media = _media.get()
        if self.gated_cross_attn_layer is not None and media is not None:
            hidden_states = self.gated_cross_attn_layer(hidden_states, media.tokens, media.locations)
        return self.decoder_layer(hidden_states, *args, **kwargs)


class QKNormAttention(nn.Module):
    """MPT's attention with layer norm on queries and keys (`qk_ln`), which transformers leaves
    out."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.Wqkv = inner.Wqkv
        self.out_proj = inner.out_proj
        self.n_heads = inner.n_heads
        self.scale = inner.softmax_scale
        width = inner.hidden_size
        self.q_ln, self.k_ln = (nn.LayerNorm(width, bias=False) for _ in range(2))

    def forward(
        self, hidden_states: Tensor, position_bias: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if kwargs.get("past_key_values") is not None:
            raise NotImplementedError("MPT with qk_ln runs without a key-value cache.")
        query, key, value = self.Wqkv(hidden_states).chunk(3, dim=-1)
        heads = [x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for x in (self.q_ln(query), self.k_ln(key), value)]
        query, key, value = heads  # (B, heads, L, c)
        scores = query @ key.transpose(-1, -2) * self.scale + position_bias[:, -query.shape[2] :, -key.shape[2] :]
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask, torch.finfo(scores.dtype).min)
        weights = scores.float().softmax(dim=-1).to(value.dtype)
        attended = (weights @ value).transpose(1, 2).flatten(2)  # (B, L, d)
        return self.out_proj(attended), weights


class FlamingoModel(nn.Module):
    """vision_encoder, perceiver and lang_encoder, named as in OpenFlamingo's checkpoints."""

    def __init__(self, config: FlamingoConfig, attention: str):
        super().__init__()
        from transformers import AutoModelForCausalLM, CLIPVisionModel

        vision = copy.deepcopy(config.vision_config)
        text = copy.deepcopy(config.text_config)
        self.vision_encoder = CLIPVisionModel._from_config(vision, attn_implementation=attention)
        self.perceiver = PerceiverResampler(vision.hidden_size, **config.perceiver)
        # MPT's mask handling is written for eager attention alone.
        implementation = "eager" if text.model_type == "mpt" else attention
        self.lang_encoder = AutoModelForCausalLM.from_config(text, attn_implementation=implementation)
        layers = self.decoder_layers
        if text.model_type == "mpt" and text.attn_config.qk_ln:
            for layer in layers:
                layer.attn = QKNormAttention(layer.attn)
        every = config.cross_attn_every_n_layers
        for i, layer in enumerate(layers):
            gated = None
            if (i + 1) % every == 0:
                gated = GatedCrossAttention(
                    text.hidden_size, vision.hidden_size, **config.cross_attention
                )
            layers[i] = FlamingoLayer(layer, gated)

    @property
    def decoder(self) -> nn.Module:
        """The decoder without its output matrix."""
        return self.lang_encoder.base_model

    @property
    def decoder_layers(self) -> nn.ModuleList:
        return self.decoder.blocks if hasattr(self.decoder, "blocks") else self.decoder.layers

    def get_output_embeddings(self) -> nn.Module:
        return self.lang_encoder.get_output_embeddings()
