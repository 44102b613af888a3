"""Perceiver resampler and gated cross attention, as in Flamingo (arXiv 2204.14198) and
open_flamingo's key layout."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def feed_forward(dim: int, mult: int = 4) -> nn.Sequential:
    """LayerNorm, expansion by `mult`, GELU (erf), projection; the linear layers carry no bias."""
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, dim * mult, bias=False),
        nn.GELU(),
        nn.Linear(dim * mult, dim, bias=False),
    )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., N, heads * c) to (..., heads, N, c)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """(..., heads, N, c) to (..., N, heads * c)."""
    return x.transpose(-3, -2).flatten(-2)


class PerceiverAttention(nn.Module):
    """Latents attend to the media tokens and to themselves."""

    def __init__(self, dim: int, dim_head: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, heads * dim_head * 2, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        """media (..., V, dim), latents (..., N, dim) to (..., N, dim)."""
        media = self.norm_media(media)
        latents = self.norm_latents(latents)
        query = self.to_q(latents)
        key, value = self.to_kv(torch.cat((media, latents), dim=-2)).chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(
            split_heads(query, self.heads), split_heads(key, self.heads), split_heads(value, self.heads)
        )  # (..., heads, N, dim_head)
        return self.to_out(merge_heads(attended))


class PerceiverResampler(nn.Module):
    """Any number of media tokens in, `num_latents` tokens out."""

    def __init__(
        self, dim: int, depth: int = 6, dim_head: int = 64, heads: int = 8, num_latents: int = 64, ff_mult: int = 4
    ):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, dim_head, heads), feed_forward(dim, ff_mult)]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, media: Tensor) -> Tensor:
        """media (..., V, dim) to (..., num_latents, dim)."""
        latents = self.latents.expand(*media.shape[:-2], -1, -1)
        for layer in self.layers:
            attention, mlp = layer.children()
            latents = attention(media, latents) + latents
            latents = mlp(latents) + latents
        return self.norm(latents)


class MaskedCrossAttention(nn.Module):
    """Text attends to the tokens of the latest medium before it, or to all media where no locations
    are given."""

    def __init__(self, dim: int, dim_visual: int, dim_head: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim_visual, heads * dim_head * 2, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, x: Tensor, media: Tensor, media_locations: Tensor | None = None) -> Tensor:
        """x (B, L, dim), media (B, M, N, dim_visual), media_locations (B, L) bool to (B, L,
        dim)."""
        query = self.to_q(self.norm(x))
        # (B, M * N, heads * dim_head)
        key, value = self.to_kv(media.flatten(1, 2)).chunk(2, dim=-1)
        mask = None
        before_any = None
        if media_locations is not None:
            latest = media_locations.cumsum(dim=-1)  # (B, L), 0 before the first medium
            medium = torch.arange(1, media.shape[1] + 1, device=x.device).repeat_interleave(media.shape[2])
            before_any = latest == 0
            # A row with nothing to attend to would be NaN: it attends to all and is zeroed below.
            # (B, 1, L, M * N)
            mask = (latest[:, None, :, None] == medium) | before_any[:, None, :, None]
        attended = functional.scaled_dot_product_attention(
            split_heads(query, self.heads), split_heads(key, self.heads), split_heads(value, self.heads), mask
        )  # (B, heads, L, dim_head)
        merged = merge_heads(attended)
        if before_any is not None:
            merged = merged.masked_fill(before_any[..., None], 0.0)
        return self.to_out(merged)


class GatedCrossAttention(nn.Module):
    """x + tanh(attn_gate) attn(x) and x + tanh(ff_gate) ff(x). Gates start at 0: the language model
    is untouched."""

    def __init__(self, dim: int, dim_visual: int, dim_head: int = 64, heads: int = 8, ff_mult: int = 4):
        super().__init__()
        self.attn = MaskedCrossAttention(dim, dim_visual, dim_head, heads)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = feed_forward(dim, ff_mult)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, media: Tensor, media_locations: Tensor | None = None) -> Tensor:
        """x (B, L, dim), media (B, M, N, dim_visual), media_locations (B, L) bool to (B, L,
        dim)."""
        x = self.attn(x, media, media_locations) * self.attn_gate.tanh() + x
        return self.ff(x) * self.ff_gate.tanh() + x
