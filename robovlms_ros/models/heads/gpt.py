"""The GPT policy head: a small GPT-2 over the window of features, keys as in the published
layout."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.models.heads.base import DownSample, HeadError, PolicyHead
from robovlms_ros.models.perceiver import merge_heads, split_heads

ATTENTION_HEADS = 8


class Conv1D(nn.Module):
    """x W + b with W stored as (in, out), the layout of GPT-2's checkpoints."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class CausalSelfAttention(nn.Module):
    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.c_attn = Conv1D(dim, 3 * dim)
        self.c_proj = Conv1D(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (split_heads(t, ATTENTION_HEADS) for t in self.c_attn(x).chunk(3, dim=-1))
        attended = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout.p if self.training else 0.0, is_causal=True
        )  # (B, heads, W, c)
        return self.dropout(self.c_proj(merge_heads(attended)))


class FeedForward(nn.Module):
    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.c_fc = Conv1D(dim, 4 * dim)
        self.c_proj = Conv1D(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh")))


class GPTBlock(nn.Module):
    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = CausalSelfAttention(dim, dropout)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """(B, W, dim) to (B, W, dim), causal, with learned positions 0..W-1."""

    def __init__(self, dim: int, window: int, num_layers: int, dropout: float):
        super().__init__()
        self.wpe = nn.Embedding(window, dim)
        self.dropout = nn.Dropout(dropout)
        self.h = nn.ModuleList(GPTBlock(dim, dropout) for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x + self.wpe.weight[: x.shape[1]])
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class GPTHead(PolicyHead):
    """A GPT-2 of 8 layers and 8 attention heads over at most `window` frames."""

    ignored_keys: ClassVar[tuple[str, ...]] = (r"gpt\.h\.\d+\.attn\.(bias|masked_bias)",)

    def __init__(
        self,
        in_features: int,
        horizon: int,
        window: int,
        hidden_size: int = 1024,
        num_layers: int = 8,
        dropout: float = 0.1,
        down_sample: DownSample = "none",
        latent: int = 1,
        arm_dims: int = 6,
    ):
        super().__init__(in_features, horizon, hidden_size, down_sample, latent, arm_dims)
        dim = hidden_size * latent
        if dim % ATTENTION_HEADS:
            raise HeadError(
                f"action_head: hidden_size * latent = {dim}: the gpt head needs a multiple of {ATTENTION_HEADS}."
            )
        self.window = window
        self.fc = nn.Identity() if in_features == hidden_size else nn.Linear(in_features, hidden_size)
        self.gpt = GPT(dim, window, num_layers, dropout)

    def aggregate(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > self.window:
            raise HeadError(
                f"head input has {tokens.shape[1]} frames, the gpt head knows {self.window} positions (history_length)."
            )
        return self.gpt(self.fc(tokens).flatten(2))
