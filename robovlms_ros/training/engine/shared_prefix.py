"""Action features of the same frames under several instructions, the images' part of the sequence
computed once.

The language model is causal and the images stand before the words, so what it makes of them does
not depend on the words. One sequence holds the images and, one after the other, what follows under
each instruction; a mask keeps these from seeing each other, and each counts its positions from
where the images end. Equal to `BaseRoboVLM.forward_features` on the repeated batch, at little more
than half of its cost.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robovlms_ros.models.backbones import sequence as seq
from robovlms_ros.models.backbones.base import BaseRoboVLM

TextModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From embeddings (N, L, d), an additive mask (1, 1, L, L) and positions (1, L) to hidden states
(N, L, d)."""


def text_model(vlm: BaseRoboVLM) -> TextModel:
    """The backbone's language model as a function that may be compiled."""

    def run(embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = vlm.text_tower(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
        return output.last_hidden_state

    return run


def features_under_instructions(
    vlm: BaseRoboVLM,
    visual: dict[str, Any],
    input_ids: Tensor,
    attention_mask: Tensor,
    state: Tensor | None,
    window: int,
    text: TextModel | None = None,
) -> Tensor:
    """visual: per camera B * W frames. input_ids, attention_mask: (C, L), the same C instructions
    for every window, or (C, B, L), C of each window's own; padded on the right. state: (B, W, P).
    text: in the place of `text_model(vlm)`.

    Returns (C * B, W, latent, d), the instructions outermost. For history `post` with action
    tokens, padding `row_end` and families without per-layer features and with one axis of
    positions.
    """
    frames = len(next(iter(visual.values())).tokens)
    batch = frames // window
    if input_ids.ndim == 2:
        input_ids, attention_mask = (x[:, None].expand(-1, batch, -1) for x in (input_ids, attention_mask))
    sequences = [
        vlm.build_sequence(visual, ids, mask, state, window)
        for ids, mask in zip(input_ids, attention_mask, strict=True)
    ]
    begin = int((sequences[0].kinds[0] == seq.TEXT).int().argmax())
    tails = torch.cat([s.embeds[:, begin:] for s in sequences], dim=1)  # (B W, C tail, d)
    embeds = torch.cat((sequences[0].embeds[:, :begin], tails), dim=1) * vlm.input_scale
    mask, positions = _layout(begin, tails.shape[1] // len(sequences), len(sequences), embeds)
    hidden = (text or text_model(vlm))(embeds, mask, positions)[:, begin:]
    kinds = torch.cat([s.kinds[:, begin:] for s in sequences], dim=1)
    # (B, W, C, latent, d)
    chosen = hidden[kinds == seq.ACTION].unflatten(0, (batch, window, len(sequences), -1))
    return chosen.movedim(2, 0).flatten(0, 1)


def _layout(prefix: int, tail: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The additive mask (1, 1, L, L) and the positions (1, L) of `count` tails of `tail` tokens
    behind a prefix. What pads a tail comes behind its tokens, so that causality alone keeps it
    from being seen."""
    length = prefix + tail * count
    index = torch.arange(length, device=like.device)
    part = torch.where(index < prefix, -1, (index - prefix) // tail)  # -1 is the prefix
    seen = (index[None] <= index[:, None]) & ((part[None] == -1) | (part[None] == part[:, None]))
    mask = torch.zeros(length, length, device=like.device, dtype=like.dtype)
    mask = mask.masked_fill(~seen, torch.finfo(like.dtype).min)
    positions = torch.where(index < prefix, index, prefix + (index - prefix) % tail)
    return mask[None, None], positions[None]
