"""The token sequence of the language model: text with images, proprioception and action tokens
spliced in.

RoboVLMs' rule (merge_multi_modal_input): every camera's tokens go in at `bos_offset`, one camera
after the other, so the last camera comes first; then the proprioception token, then the action
tokens, each before the last `eos_offset` columns.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

TEXT, MARGIN, IMAGE, WRAP, STATE, ACTION, PAD = range(7)


@dataclass(frozen=True)
class VisualTokens:
    """One camera's visual features for N frames.

    tokens: (N, n, d), in the scale of unscaled word embeddings. layers: DeepStack features added to
    the first decoder layers, each (N, n, d). grid: (1, h, w) of the tokens, for multi-axis
    positions.
    """

    tokens: Tensor
    layers: tuple[Tensor, ...] = ()
    grid: tuple[int, int, int] | None = None

    def frames(self, start: int, stop: int) -> "VisualTokens":
        return replace(self, tokens=self.tokens[start:stop], layers=tuple(x[start:stop] for x in self.layers))

    @staticmethod
    def join(parts: list["VisualTokens"]) -> "VisualTokens":
        """Frames of equal kind, one after the other."""
        layers = tuple(torch.cat(group) for group in zip(*(p.layers for p in parts), strict=True))
        return replace(parts[0], tokens=torch.cat([p.tokens for p in parts]), layers=layers)


@dataclass(frozen=True)
class TokenSequence:
    """Input of the language model.

    embeds: (N, L, d), unscaled. mask: (N, L) bool, True where attended. kinds: (N, L) int64, one of
    this module's constants. layers: DeepStack features, each (N, image tokens, d) in sequence
    order. grids: one per image, in order.
    media: (N, M, tokens, d_visual) for cross attention.
    """

    embeds: Tensor
    mask: Tensor
    kinds: Tensor
    layers: tuple[Tensor, ...] = ()
    grids: tuple[tuple[int, int, int], ...] = ()
    media: Tensor | None = None

    def select(self, hidden: Tensor, kinds: tuple[int, ...]) -> Tensor:
        """The (N, tokens, d) columns of hidden (N, L, d) of the given kinds; every row has equally
        many."""
        chosen = torch.isin(self.kinds, torch.tensor(kinds, device=self.kinds.device))
        return hidden[chosen].unflatten(0, (hidden.shape[0], -1))


@dataclass(frozen=True)
class TokenBlock:
    """Columns to splice in: embeds (N, k, d), one kind and one mask value for all of them."""

    embeds: Tensor
    kind: int
    attended: bool = True


def text_block(embeds: Tensor, mask: Tensor, bos_offset: int, eos_offset: int, row_end: bool) -> TokenSequence:
    """The text alone: embeds (N, L, d), mask (N, L). Margins (bos, eos) and padding have kinds of
    their own.

    row_end: every row's own last `eos_offset` tokens come last, its padding before them, so that
    what is spliced in before the last columns lies where it would in the row alone. Otherwise
    columns stay as they are (RoboVLMs).
    """
    mask = mask.bool()
    if row_end:
        rank = mask.cumsum(1)
        length = mask.sum(1, keepdim=True)
        tail = mask & (rank > length - eos_offset)
        order = torch.argsort(tail.int() * 2 + (~mask).int(), dim=1, stable=True)  # (N, L)
        embeds = _reorder(embeds, order)
        mask = mask.gather(1, order)
    kinds = torch.full(mask.shape, TEXT, device=mask.device)
    kinds[:, :bos_offset] = MARGIN
    if eos_offset:
        kinds[:, -eos_offset:] = MARGIN
    if row_end:
        kinds[~mask] = PAD
    return TokenSequence(embeds, mask, kinds)


def insert(sequence: TokenSequence, block: TokenBlock, index: int) -> TokenSequence:
    """`block` before column `index` of every row."""
    shape = block.embeds.shape[:2]
    embeds = block.embeds.to(sequence.embeds.dtype)
    mask = torch.full(shape, block.attended, device=sequence.mask.device)
    kinds = torch.full(shape, block.kind, device=sequence.kinds.device)

    def splice(old: Tensor, new: Tensor) -> Tensor:
        return torch.cat((old[:, :index], new, old[:, index:]), dim=1)

    return replace(
        sequence,
        embeds=splice(sequence.embeds, embeds),
        mask=splice(sequence.mask, mask),
        kinds=splice(sequence.kinds, kinds),
    )


def fold_time(sequence: TokenSequence, frames: int) -> TokenSequence:
    """(B * T, L) sequences of single frames into (B, T * L) interleaved ones."""

    def fold(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, frames)).flatten(1, 2)

    return replace(
        sequence,
        embeds=fold(sequence.embeds),
        mask=fold(sequence.mask),
        kinds=fold(sequence.kinds),
        layers=tuple(fold(x) for x in sequence.layers),
        grids=sequence.grids * frames,
    )


def pads_last(sequence: TokenSequence) -> TokenSequence:
    """Every row's padding behind its last token, so that a padded row computes what it would
    compute alone: positions count from the front, and nothing causal attends to what follows."""
    order = torch.argsort((sequence.kinds == PAD).int(), dim=1, stable=True)  # (N, L)
    return replace(
        sequence,
        embeds=_reorder(sequence.embeds, order),
        mask=sequence.mask.gather(1, order),
        kinds=sequence.kinds.gather(1, order),
    )


def frames_adjacent(visual: VisualTokens, window: int) -> VisualTokens:
    """(B * W, n, d) frames as (B, W * n, d)."""

    def fold(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, window)).flatten(1, 2)

    return VisualTokens(fold(visual.tokens), tuple(fold(x) for x in visual.layers), visual.grid)


def without_pads(hidden: Tensor, sequence: TokenSequence) -> Tensor:
    """Padding columns replaced by the row's first text column, which a maximum over the tokens does
    not notice."""
    pads = sequence.kinds == PAD
    if not pads.any():
        return hidden
    first = (sequence.kinds == TEXT).int().argmax(1)  # (N,)
    neutral = hidden[torch.arange(len(hidden), device=hidden.device), first]  # (N, d)
    return torch.where(pads[..., None], neutral[:, None], hidden)


def _reorder(embeds: Tensor, order: Tensor) -> Tensor:
    return embeds.gather(1, order[..., None].expand_as(embeds))
