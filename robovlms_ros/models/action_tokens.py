"""The discrete action space: the language model's own logits, for training and for generating
action tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robovlms_ros.models.backbones import sequence as seq
from robovlms_ros.models.backbones.base import BaseRoboVLM
from robovlms_ros.models.backbones.sequence import TokenSequence, VisualTokens


def token_logits(vlm: BaseRoboVLM, hidden: Tensor) -> Tensor:
    """hidden (..., d) after the final norm to logits over the vocabulary (..., V) float32."""
    logits = vlm.backbone.get_output_embeddings()(hidden).float()  # type: ignore[operator]
    cap = getattr(vlm.hf_config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def training_logits(
    vlm: BaseRoboVLM, visual: dict[str, VisualTokens], input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits and labels of windows whose frames each carry prompt and action tokens, as one
    sequence per window.

    visual: per camera, B * W frames, a window's frames adjacent. input_ids, attention_mask, labels:
    (B, W, L), -100 in labels where nothing is learned. Returns (B, W * (L + images), V) logits and
    labels for `losses.token_loss`.
    """
    frames = input_ids.shape[1]
    single = vlm.build_sequence(visual, input_ids.flatten(0, 1), attention_mask.flatten(0, 1))
    is_text = torch.isin(single.kinds, torch.tensor((seq.TEXT, seq.MARGIN, seq.PAD), device=single.kinds.device))
    spread = torch.full(single.kinds.shape, -100, dtype=labels.dtype, device=labels.device)
    spread[is_text] = labels.flatten()  # every row holds its L text tokens in order
    sequence = seq.fold_time(single, frames)
    hidden = vlm.run_text_tower(sequence).last_hidden_state  # (B, W * (L + images), d)
    return token_logits(vlm, hidden), spread.unflatten(0, (-1, frames)).flatten(1)


def generate(
    vlm: BaseRoboVLM,
    sequence: TokenSequence,
    count: int,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B, count) token ids that continue `sequence`, one at a time with a key-value cache.

    sequence: without padding (rows of equal length). temperature: None or 0 takes the most likely
    token of the whole vocabulary, as RoboVLMs; else samples. Raises ValueError for a padded
    sequence.
    """
    if not bool(sequence.mask.all()):
        raise ValueError("generate: the sequence holds padding; give rows of equal length, or one at a time.")
    return continue_tokens(vlm, sequence, count, temperature, generator)


def continue_tokens(
    vlm: BaseRoboVLM,
    sequence: TokenSequence,
    count: int,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
    tower: nn.Module | None = None,
    masked: bool = True,
) -> Tensor:
    """See `generate`; nothing is checked. tower: replaces the text model. masked: False gives no
    mask, which is the same without padding."""
    text_tower = vlm.text_tower if tower is None else tower
    without = {} if masked else {"attention_mask": None}
    output = vlm.run_text_tower(sequence, tower, use_cache=True, **without)
    cache = output.past_key_values
    mask = sequence.mask
    following = _positions_after(vlm.positions(sequence).get("position_ids"))
    scale = vlm.input_scale
    # (B,) each
    ids = [_choose(token_logits(vlm, output.last_hidden_state[:, -1]), temperature, generator)]
    for step in range(count - 1):
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
        token = ids[-1][:, None]  # (B, 1)
        embeds = vlm.embed_text(token)
        if scale != 1.0:
            embeds = embeds * torch.tensor(scale, dtype=embeds.dtype).item()
        output = text_tower(
            inputs_embeds=embeds,
            attention_mask=mask.long() if masked else None,
            past_key_values=cache,
            use_cache=True,
            **following(step),
        )
        ids.append(_choose(token_logits(vlm, output.last_hidden_state[:, -1]), temperature, generator))
    return torch.stack(ids, dim=1)


def _positions_after(positions: Tensor | None) -> Callable[[int], dict[str, Any]]:
    """Positions of generated text where a family gives them itself (axes, B, L): all axes count on
    from the largest."""
    if positions is None:
        return lambda step: {}
    largest = positions.amax(dim=-1, keepdim=True)  # (axes, B, 1) or (B, 1)
    if positions.ndim == 3:
        largest = largest.amax(dim=0, keepdim=True).expand(positions.shape[0], -1, -1)
    return lambda step: {"position_ids": largest + 1 + step}


def _choose(logits: Tensor, temperature: float | None, generator: torch.Generator | None) -> Tensor:
    if not temperature:
        return logits.argmax(dim=-1)
    return torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator)[:, 0]
