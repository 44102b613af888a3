"""The text model's sequence of one instruction, with places for a frame's visual tokens.

The reference stages splice the sequence together for every frame. Here it is spliced once per
instruction, with the frame's images as placeholders; a frame's visual tokens are then written into
their columns. Columns behind the last one that the head reads are omitted, since every model here
is causal; the length is rounded up with padding at the end, which no earlier column attends to and
which moves no position.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robovlms_ros.models.backbones import sequence as seq
from robovlms_ros.models.backbones.base import SOURCES, BaseRoboVLM
from robovlms_ros.models.backbones.sequence import TokenSequence, VisualTokens


@dataclass(frozen=True)
class Layout:
    """sequence: the template, (B, L, d) with placeholders. columns: (k,) int64, those that the head
    reads. image_columns, state_columns: those of a frame's visual tokens and proprioception.
    positions: `text_tower`'s arguments that depend on the layout alone. attention_mask: None where
    every column before another is attended to."""

    sequence: TokenSequence
    columns: Tensor
    image_columns: Tensor
    state_columns: Tensor
    positions: dict[str, Any]
    attention_mask: Tensor | None

    @property
    def tensor_positions(self) -> tuple[str, ...]:
        """Names of the positions that are tensors."""
        return tuple(name for name, value in self.positions.items() if isinstance(value, Tensor))

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, the attention mask aside."""
        positions = (self.positions[name] for name in self.tensor_positions)
        places = (self.columns, self.image_columns, self.state_columns)
        return (self.sequence.embeds, *places, *positions)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Layout":
        """The same layout of other tensors, in the order of `tensors`."""
        embeds, columns, image_columns, state_columns, *positions = tensors
        return replace(
            self,
            sequence=replace(self.sequence, embeds=embeds),
            columns=columns,
            image_columns=image_columns,
            state_columns=state_columns,
            positions=self.positions | dict(zip(self.tensor_positions, positions, strict=True)),
        )


def build_layout(
    vlm: BaseRoboVLM,
    visual: dict[str, VisualTokens],
    tokens: Mapping[str, Tensor],
    state: Tensor | None,
    window: int,
    bucket: int = 1,
) -> Layout:
    """The layout for frames like `visual` (per camera B * window frames) and one instruction's
    tokens (B, L), all rows the same and without padding. bucket: the length is rounded up so that
    texts of up to so many tokens more fit."""
    ids = tokens["input_ids"]
    sequence = vlm.build_sequence(visual, ids, tokens["attention_mask"], state, window)
    positions = vlm.positions(sequence)
    positions.pop("deepstack_visual_embeds", None)
    columns = read_columns(vlm, sequence)
    used = int(columns.max()) + 1
    texts = ids.shape[1] * (1 if vlm.config.model.history_type == "video" else window)
    padding = -texts % bucket
    sequence = _fit(sequence, used, padding)
    kinds = sequence.kinds[0]
    plain = bool(sequence.mask[:, :used].all())
    length = sequence.mask.shape[1]
    return Layout(
        sequence,
        columns,
        (kinds == seq.IMAGE).nonzero().flatten(),
        (kinds == seq.STATE).nonzero().flatten(),
        {name: _fit_columns(value, length, used) for name, value in positions.items()},
        None if plain else sequence.mask.long(),
    )


def read_columns(vlm: BaseRoboVLM, sequence: TokenSequence) -> Tensor:
    """(k,) the columns that the head reads, the same in every row (rows of one instruction)."""
    head = vlm.config.action_head
    kinds = (seq.ACTION,) if head.action_space == "continuous" else SOURCES[head.token_source]
    wanted = torch.isin(sequence.kinds[0], torch.tensor(kinds, device=sequence.kinds.device))
    return wanted.nonzero().flatten()


def fill(
    layout: Layout, vlm: BaseRoboVLM, visual: dict[str, VisualTokens], state: Tensor | None
) -> TokenSequence:
    """The layout's sequence with these frames' visual tokens (per camera (B * window, n, d)) and
    proprioception."""
    template = layout.sequence
    rows = template.embeds.shape[0]
    newest_first = [visual[name] for name in reversed(vlm.config.cameras)]
    embeds = template.embeds
    if len(layout.image_columns):
        images = _arranged(vlm, [v.tokens for v in newest_first], rows)
        embeds = embeds.index_copy(1, layout.image_columns, images.to(embeds.dtype))
    if state is not None and len(layout.state_columns):
        values = state[:, -1:] if vlm.config.model.history_type == "video" else state
        # (B, window, d)
        embedded = vlm.state_embedding(values.to(vlm.state_embedding.weight.dtype))
        if len(embedded) != rows:  # history `post`: every frame is a row of its own
            embedded = embedded.flatten(0, 1)[:, None]
        # the last one may stand behind all that is read
        kept = embedded[:, : len(layout.state_columns)]
        embeds = embeds.index_copy(1, layout.state_columns, kept.to(embeds.dtype))
    groups = zip(*(v.layers for v in newest_first), strict=True)
    layers = tuple(_arranged(vlm, list(group), rows) for group in groups)
    media = template.media
    if media is not None:
        media = torch.cat([visual[name].tokens for name in vlm.config.cameras], dim=1)[:, None]
    return replace(template, embeds=embeds, layers=layers, media=media)


def arguments(layout: Layout, sequence: TokenSequence) -> dict[str, Any]:
    """Positions and masks for `run_text_tower`, computed once per layout."""
    extra = dict(layout.positions)
    extra.setdefault("position_ids", None)
    if sequence.layers:
        extra["deepstack_visual_embeds"] = [layer.flatten(0, 1) for layer in sequence.layers]
    return {**extra, "attention_mask": layout.attention_mask}


def _arranged(vlm: BaseRoboVLM, parts: list[Tensor], rows: int) -> Tensor:
    """(rows, image columns, d) in the sequence's order from per camera (B * window, n, d), the
    first camera last."""
    if vlm.config.model.history_type == "video":
        parts = [x.unflatten(0, (rows, -1)).flatten(1, 2) for x in parts]
    joined = torch.cat(parts, dim=1)
    return joined if len(joined) == rows else joined.unflatten(0, (rows, -1)).flatten(1, 2)


def _fit(sequence: TokenSequence, used: int, padding: int) -> TokenSequence:
    """The first `used` columns and `padding` empty ones. Image columns are among the used ones,
    always."""

    def fit(x: Tensor, value: int) -> Tensor:
        return functional.pad(x[:, :used], (0, padding), value=value)

    embeds = functional.pad(sequence.embeds[:, :used], (0, 0, 0, padding)).contiguous()
    mask = fit(sequence.mask, 1)
    return replace(sequence, embeds=embeds, mask=mask, kinds=fit(sequence.kinds, seq.PAD))


def _fit_columns(value: Any, length: int, used: int) -> Any:
    """A positions' argument (..., L) cut and padded like the sequence."""
    if not isinstance(value, Tensor):
        return value
    return functional.pad(value[..., :used], (0, length - used))
