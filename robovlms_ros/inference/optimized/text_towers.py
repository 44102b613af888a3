"""The language model with a last layer that answers for a few columns only.

Keys and values of the last layer need every column; queries, the output projection and the MLP do
not: nobody reads the other columns. The model itself is left as it is: a second module object
shares every weight with it and has another last layer.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.inference.optimized.options import FastPathError
from robovlms_ros.models.backbones.flamingo_model import FlamingoLayer, QKNormAttention

Module = TypeVar("Module", bound=nn.Module)

LLAMA = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
GEMMA2 = LLAMA | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
KOSMOS = {"self_attn", "self_attn_layer_norm", "ffn", "final_layer_norm"}
MPT = {"norm_1", "attn", "norm_2", "ffn", "resid_attn_dropout"}
QKVO = {"q_proj", "k_proj", "v_proj", "o_proj"}
# Class of a decoder layer: its children, its attention's children. Anything else is not known, and
# refused.
KNOWN: dict[str, tuple[set[str], set[str]]] = {
    "GemmaDecoderLayer": (LLAMA, QKVO),
    "Gemma2DecoderLayer": (GEMMA2, QKVO),
    "LlamaDecoderLayer": (LLAMA, QKVO),
    "MistralDecoderLayer": (LLAMA, QKVO),
    "Qwen2_5_VLDecoderLayer": (LLAMA, QKVO),
    "Qwen3VLTextDecoderLayer": (LLAMA, QKVO | {"q_norm", "k_norm"}),
    "Kosmos2TextBlock": (KOSMOS, {"q_proj", "k_proj", "v_proj", "out_proj", "inner_attn_ln"}),
    "MptBlock": (MPT, {"Wqkv", "out_proj"}),
}
STACKS = ("layers", "blocks")


def shallow(module: Module) -> Module:
    """A second object of `module`'s class with the same parameters, buffers and children, whose
    children and hooks can be set."""
    clone: Module = object.__new__(type(module))
    clone.__dict__ = dict(module.__dict__)
    for name, value in module.__dict__.items():
        if name == "_modules" or (name.endswith("_hooks") and isinstance(value, dict)):
            clone.__dict__[name] = value.copy()
    return clone


def stack_of(tower: nn.Module) -> str:
    """Name of the attribute that holds the decoder layers. Raises FastPathError where there is
    none."""
    for name in STACKS:
        if isinstance(getattr(tower, name, None), nn.ModuleList):
            return name
    raise FastPathError(f"last layer: {type(tower).__name__} has no list of layers named {' or '.join(STACKS)}.")


def prune_last_layer(tower: Module, columns: Tensor) -> Module:
    """`tower` answering for `columns` (k,) int64 alone: its `last_hidden_state` is (N, k, d).

    The tensor is read at every call, so its values may change between calls. Shares all weights
    with `tower`. Raises FastPathError where the last layer is not of a structure that is known.
    """
    name = stack_of(tower)
    layers = list(getattr(tower, name))
    layers[-1] = _pruned(layers[-1], columns)
    clone = shallow(tower)
    setattr(clone, name, nn.ModuleList(layers))
    return clone


def plainly_causal(tower: Module, length: int) -> Module:
    """`tower` whose layers are given no mask, so that sdpa masks by itself and runs its fastest
    kernel.

    For sequences of `length` columns without padding before a column that is read. Where that
    differs (attention that is not sdpa, sliding windows, unknown layers) `tower` itself.
    """
    config = tower.config
    window = getattr(config, "sliding_window", None)
    if config._attn_implementation != "sdpa" or (window is not None and length >= window):
        return tower
    name = stack_of(tower)
    layers = list(getattr(tower, name))
    for i, layer in enumerate(layers):
        inner = layer.decoder_layer if isinstance(layer, FlamingoLayer) else layer
        pruned = isinstance(inner, PrunedLayer)
        if not pruned and not (type(inner).__name__ in KNOWN and getattr(inner.self_attn, "is_causal", False)):
            return tower
        layers[i] = MasklessLayer(layer)
    clone = shallow(tower)
    setattr(clone, name, nn.ModuleList(layers))
    # Kosmos-2 builds a mask whatever it is given.
    clone.__dict__["_prepare_decoder_attention_mask"] = lambda *args, **kwargs: None
    return clone


def prepared_mask(tower: nn.Module, embeds: Tensor) -> Any:
    """`attention_mask` for a sequence (N, L, d) without padding that keeps the model from building
    one: an empty tensor where no layer reads it (`plainly_causal`), else as the family's layers
    take it; None for families that need the model's own."""
    if isinstance(getattr(tower, stack_of(tower))[0], MasklessLayer):
        return embeds.new_empty((0, 1, 1, 1))
    length = embeds.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=embeds.device).triu(1)[None, None]
    kind = type(tower).__name__
    if kind == "MptModel":
        return later  # True where masked
    if kind == "Gemma2Model" and tower.config._attn_implementation == "eager":
        far = ~torch.ones_like(later).triu(1 - tower.config.sliding_window)
        low = torch.finfo(embeds.dtype).min
        full, sliding = (torch.zeros_like(x, dtype=embeds.dtype).masked_fill(x, low) for x in (later, later | far))
        return {"full_attention": full, "sliding_attention": sliding}
    return None


class MasklessLayer(nn.Module):
    """A layer that receives no mask, whatever the model computes."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.__dict__["layer"] = layer

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's output in the form that its model expects."""
        if args:  # Kosmos-2 gives the mask by its place
            return self.layer(hidden_states, None, *args[1:], **kwargs)
        return self.layer(hidden_states, **{**kwargs, "attention_mask": None})


def _pruned(layer: nn.Module, columns: Tensor) -> nn.Module:
    if isinstance(layer, FlamingoLayer):
        # The gated cross attention before the layer feeds keys and values: it runs for every
        # column.
        return FlamingoLayer(_pruned(layer.decoder_layer, columns), layer.gated_cross_attn_layer)
    kind = type(layer).__name__
    if kind not in KNOWN:
        raise FastPathError(f"last layer: {kind} is not known; known are {', '.join(KNOWN)}.")
    children, inner = KNOWN[kind]
    attention = layer.attn if "attn" in children else layer.self_attn
    if isinstance(attention, QKNormAttention):
        inner = inner | {"q_ln", "k_ln"}
    for module, expected in ((layer, children), (attention, inner)):
        found = {name for name, child in module.named_children() if child is not None}
        if found != expected:
            raise FastPathError(
                f"last layer: {type(module).__name__} holds {', '.join(sorted(found))}; known with "
                f"{', '.join(sorted(expected))}."
            )
    if "Wqkv" in inner:
        return PrunedMptLayer(layer, columns)
    return PrunedKosmosLayer(layer, columns) if "inner_attn_ln" in inner else PrunedRotaryLayer(layer, columns)


class PrunedLayer(nn.Module):
    """Base: holds the layer without owning it (its weights belong to the model), and where to
    answer."""

    def __init__(self, layer: nn.Module, columns: Tensor):
        super().__init__()
        self.__dict__["layer"] = layer
        self.columns = columns

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cap: float | None = None
    ) -> Tensor:
        """query (N, H, k, c), key and value (N, G, L, c), mask as transformers gives it to its
        layers, for all columns (N, 1, L, L) or None for plain causality. Returns (N, k, H * c)."""
        count, heads, k, width = query.shape
        length = key.shape[2]
        if mask is None:
            rows = torch.arange(length, device=key.device) <= self.columns[:, None]  # (k, L)
            rows = rows[None, None]
        else:
            rows = mask[..., :length].index_select(2, self.columns)
        # Query heads that share keys stand side by side, so that keys need not be repeated.
        groups = key.shape[1]
        grouped = query.reshape(count, groups, heads // groups * k, width)
        rows = rows.repeat(1, 1, heads // groups, 1)
        if cap is None:
            attended = functional.scaled_dot_product_attention(grouped, key, value, rows, scale=scale)
        else:
            scores = torch.tanh(grouped @ key.transpose(-1, -2) * scale / cap) * cap
            low = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~rows, low) if rows.dtype == torch.bool else scores + rows
            attended = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
        return attended.reshape(count, heads, k, width).transpose(1, 2).flatten(2)


class PrunedRotaryLayer(PrunedLayer):
    """LLaMA, Mistral, Gemma 1 and 2, Qwen's text models: rotary positions, grouped keys, optional
    norms."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (N, L, d) to (N, k, d)."""
        if past_key_values is not None or position_embeddings is None:
            raise FastPathError("last layer: called with a key-value cache or without rotary positions.")
        layer = self.layer
        attn = self.layer.self_attn
        residual = hidden_states.index_select(1, self.columns)  # (N, k, d)
        normed = layer.input_layernorm(hidden_states)
        query = self._heads(attn.q_proj(normed.index_select(1, self.columns)), getattr(attn, "q_norm", None))
        key = self._heads(attn.k_proj(normed), getattr(attn, "k_norm", None))
        value = self._heads(attn.v_proj(normed), None)
        cos, sin = position_embeddings  # (N, L, c)
        query = rotate(query, cos.index_select(1, self.columns), sin.index_select(1, self.columns))
        key = rotate(key, cos, sin)
        cap = getattr(attn, "attn_logit_softcapping", None)
        attended = attn.o_proj(self.attend(query, key, value, attention_mask, attn.scaling, cap))
        if not hasattr(layer, "pre_feedforward_layernorm"):
            hidden = residual + attended
            return hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        hidden = residual + layer.post_attention_layernorm(attended)
        return hidden + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(hidden)))

    def _heads(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """(N, L, H * c) to (N, H, L, c)."""
        x = x.unflatten(-1, (-1, self.layer.self_attn.head_dim))
        return (x if norm is None else norm(x)).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x (N, H, L, c), cos and sin (N, L, c), halves rotated (arXiv
    2104.09864)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


class PrunedKosmosLayer(PrunedLayer):
    """Kosmos-2's text block, without cross attention."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """hidden_states (N, L, d) to (N, k, d)."""
        if kwargs.get("past_key_values") is not None:
            raise FastPathError("last layer: called with a key-value cache.")
        layer = self.layer
        attn = self.layer.self_attn
        residual = hidden_states.index_select(1, self.columns)
        normed = layer.self_attn_layer_norm(hidden_states)
        chosen = normed.index_select(1, self.columns)
        query, key, value = (
            project(x).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
            for project, x in ((attn.q_proj, chosen), (attn.k_proj, normed), (attn.v_proj, normed))
        )
        attended = self.attend(query, key, value, attention_mask, attn.scaling)
        hidden = residual + attn.out_proj(attn.inner_attn_ln(attended))
        return hidden + layer.ffn(layer.final_layer_norm(hidden))


class PrunedMptLayer(PrunedLayer):
    """MPT's block with ALiBi: `position_bias` (H, 1, S) is added, `attention_mask` is True where
    masked."""

    def forward(
        self, hidden_states: Tensor, position_bias: Tensor, attention_mask: Tensor, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """hidden_states (N, L, d) to (N, k, d), as the first of a pair."""
        if kwargs.get("layer_past") is not None:
            raise FastPathError("last layer: called with a key-value cache.")
        layer = self.layer
        attn = self.layer.attn
        residual = hidden_states.index_select(1, self.columns)
        normed = layer.norm_1(hidden_states)
        width = normed.shape[-1]
        query = functional.linear(normed.index_select(1, self.columns), attn.Wqkv.weight[:width])
        key, value = functional.linear(normed, attn.Wqkv.weight[width:]).chunk(2, dim=-1)
        if isinstance(attn, QKNormAttention):
            query = attn.q_ln(query)
            key = attn.k_ln(key)
        elif attn.clip_qkv:
            query, key, value = (x.clamp(min=-attn.clip_qkv, max=attn.clip_qkv) for x in (query, key, value))
        scale = attn.scale if isinstance(attn, QKNormAttention) else attn.softmax_scale
        query, key, value = (x.unflatten(-1, (attn.n_heads, -1)).transpose(1, 2) for x in (query, key, value))
        scores = query @ key.transpose(-1, -2) * scale  # (N, H, k, L)
        scores = scores + position_bias[:, -1:, -key.shape[2] :]
        rows = attention_mask[..., : key.shape[2]].index_select(2, self.columns)
        weights = scores.masked_fill(rows, torch.finfo(scores.dtype).min).float().softmax(-1).to(value.dtype)
        hidden = residual + attn.out_proj((weights @ value).transpose(1, 2).flatten(2))
        return layer.ffn(layer.norm_2(hidden), hidden), None
