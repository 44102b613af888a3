"""Action features of the same frames under several instructions, the images' part of the sequence computed once.

The language model is causal and the images stand before the words, so what it makes of them does not depend on
the words. Equal to `BaseRoboVLM.forward_features` on the repeated batch, at little more than half of its cost.
"""

from typing import Any

import torch
from torch import Tensor

from robovlms_ros.backbones import sequence as seq
from robovlms_ros.backbones.base import BaseRoboVLM


def features_under_instructions(
    vlm: BaseRoboVLM,
    visual: dict[str, Any],
    input_ids: Tensor,
    attention_mask: Tensor,
    state: Tensor | None,
    window: int,
) -> Tensor:
    """visual: per camera B * W frames. input_ids, attention_mask: (C, L), the same C instructions for every window, or
    (C, B, L), C of each window's own; padded on the right. state: (B, W, P).

    Returns (C * B, W, latent, d), the instructions outermost. For history `post` with action tokens, padding
    `row_end` and families without per-layer features.
    """
    frames = len(next(iter(visual.values())).tokens)
    batch = frames // window
    if input_ids.ndim == 2:
        input_ids, attention_mask = (x[:, None].expand(-1, batch, -1) for x in (input_ids, attention_mask))
    sequences = [
        vlm.build_sequence(visual, ids, mask, state, window)
        for ids, mask in zip(input_ids, attention_mask, strict=True)
    ]
    kinds = torch.stack([s.kinds for s in sequences], dim=1).flatten(0, 1)  # (B W C, L), padding behind the tokens
    begin = int((kinds[0] == seq.TEXT).int().argmax())
    is_action = kinds == seq.ACTION
    end = int(is_action.any(dim=0).nonzero().max()) + 1
    prefix = vlm.text_tower(inputs_embeds=sequences[0].embeds[:, :begin] * vlm.input_scale, use_cache=True)
    cache = prefix.past_key_values
    cache.batch_repeat_interleave(len(sequences))  # row i becomes rows i * C ... i * C + C - 1
    tails = torch.stack([s.embeds[:, begin:end] for s in sequences], dim=1).flatten(0, 1)  # (B W C, tail, d)
    output = vlm.text_tower(inputs_embeds=tails * vlm.input_scale, past_key_values=cache, use_cache=True)
    chosen = output.last_hidden_state[is_action[:, begin:end]].unflatten(0, (len(tails), -1))  # (B W C, latent, d)
    return chosen.unflatten(0, (batch, window, len(sequences))).movedim(2, 0).flatten(0, 1)
