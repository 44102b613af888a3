"""Stages shared by the sessions of one policy: pruned text model, recorded graphs, compiled
code."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robovlms_ros.inference.optimized.cuda_graphs import CudaGraphCallable, GraphCapture, cuda_recorder
from robovlms_ros.inference.optimized.lstm_window import Step, lstm_answer
from robovlms_ros.inference.optimized.options import FastPathOptions
from robovlms_ros.inference.optimized.quantization import adopt, quantized_tower
from robovlms_ros.inference.optimized.text_towers import plainly_causal, prune_last_layer
from robovlms_ros.models.backbones.sequence import TokenSequence, VisualTokens
from robovlms_ros.models.heads.lstm import LSTMHead
from robovlms_ros.models.vla_policy import VLAPolicy

Key = tuple[object, ...]
_shared: "WeakKeyDictionary[VLAPolicy, dict[Key, Shared]]" = WeakKeyDictionary()
_lock = threading.Lock()


def shared_by(policy: VLAPolicy, options: FastPathOptions, parts: tuple[str, ...], quantized: bool) -> "Shared":
    """The one object for a policy, where it runs, and what of the fast path does."""
    key = (options.quantize if quantized else "none", parts, policy.device, policy.dtype)
    with _lock:
        made = _shared.setdefault(policy, {})
        if key not in made:
            made[key] = Shared(policy, parts, str(key[0]))
        return made[key]


def release_stages(policy: VLAPolicy) -> None:
    """Drop the shared stages of a policy: graphs, compiled code and quantised weights of refused options.

    Sessions that use them keep them alive.
    """
    with _lock:
        _shared.pop(policy, None)


class Shared:
    """recorder: how functions are recorded where `cuda_graphs` is among the parts."""

    def __init__(
        self,
        policy: VLAPolicy,
        parts: tuple[str, ...],
        quantize: str,
        recorder: GraphCapture = cuda_recorder,
    ):
        # The sessions hold the policy; a second reference here would keep it alive forever.
        self._vlm = policy.vlm
        self._prune = "last_layer_action_only" in parts
        self._compile = "compile" in parts
        self.graphs = "cuda_graphs" in parts
        self._recorder = recorder
        tower = policy.vlm.text_tower
        self._tower = tower if quantize == "none" else quantized_tower(tower)
        self._towers: dict[Key, tuple[Tensor, nn.Module]] = {}
        self._replayed: dict[Key, CudaGraphCallable] = {}
        encode: Callable[..., tuple[Tensor, ...]] = self._encode
        if self._compile:
            encode = torch.compile(encode, dynamic=False)
        self._encode_function = encode
        self._grid: dict[int, tuple[int, int, int] | None] = {}
        self.lstm_step: Step | None = None
        if self.graphs and isinstance(policy.head, LSTMHead):
            head = policy.head
            self.lstm_step = self._recorded(("head",), lambda *inputs: lstm_answer(head, *inputs))

    def release_reference_weights(self) -> None:
        """The policy's own text model gets the quantised layers: from now on there is no plain path
        to fall back to."""
        if self._tower is not self._vlm.text_tower:
            adopt(self._vlm.text_tower, self._tower)

    def refusals(self) -> list[str]:
        """Stages that could not be recorded, with reasons."""
        return [replayed.refused for replayed in self._replayed.values() if replayed.refused]

    def _recorded(self, key: Key, function: Callable[..., tuple[Tensor, ...]]) -> CudaGraphCallable:
        if key not in self._replayed:
            self._replayed[key] = CudaGraphCallable(str(key[0]), function, self._recorder)
        return self._replayed[key]

    def encode(self, images: Tensor) -> VisualTokens:
        """Images (N, 3, S, S) of any cameras to their visual tokens."""
        size = images.shape[-1]
        if size not in self._grid:
            # Outside of compiled and recorded code, which must not depend on what this object holds.
            self._grid[size] = self._vlm.encode_images(images[:1]).grid
        function = self._encode_function
        if self.graphs:
            function = self._recorded(("vision",), function)
        tokens, *layers = function(images)
        return VisualTokens(tokens, tuple(layers), self._grid[size])

    def _encode(self, images: Tensor) -> tuple[Tensor, ...]:
        visual = self._vlm.encode_images(images)
        return (visual.tokens, *visual.layers)

    def read(
        self, sequence: TokenSequence, columns: Tensor, extra: dict[str, Any] | None, steady: bool = False
    ) -> Tensor:
        """The text model's output (N, k, d) at `columns`. extra: its arguments, None to have them
        computed. steady: the shape will come again, so it is worth a recording (a window that still
        grows is not)."""
        fixed = extra is not None and extra.get("attention_mask") is None and not sequence.layers
        if not (self.graphs and fixed and steady):
            return self._run(sequence, columns, extra or {})
        assert extra is not None
        changing = {name: value for name, value in extra.items() if isinstance(value, Tensor)}
        names = tuple(changing)
        media = () if sequence.media is None else (sequence.media,)

        def text(embeds: Tensor, columns: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            given = dict(zip(names, rest, strict=False))
            seen = rest[len(names)] if media else None
            row = replace(sequence, embeds=embeds, media=seen)
            return (self._run(row, columns, {**extra, **given}),)

        replayed = self._recorded(("text", names, len(media), sequence.embeds.shape), text)
        return replayed(sequence.embeds, columns, *changing.values(), *media)[0]

    def _run(self, sequence: TokenSequence, columns: Tensor, extra: dict[str, Any]) -> Tensor:
        causal = "attention_mask" in extra and extra["attention_mask"] is None
        tower = self._tower_for(columns, sequence, causal)
        hidden = self._vlm.run_text_tower(sequence, tower, **extra).last_hidden_state
        return hidden if self._prune else hidden.index_select(1, columns)

    def _tower_for(self, columns: Tensor, sequence: TokenSequence, causal: bool) -> nn.Module:
        """The text model, limited to `columns` where it is to be; a compiled one is kept for every
        shape."""
        if not self._compile:
            return self._limited(columns, sequence, causal)
        key = (tuple(sequence.embeds.shape), tuple(columns.shape), causal, threading.get_ident())
        if key not in self._towers:
            held = columns.clone()
            self._towers[key] = held, torch.compile(self._limited(held, sequence, causal), dynamic=False)
        held, tower = self._towers[key]
        held.copy_(columns)
        return tower

    def _limited(self, columns: Tensor, sequence: TokenSequence, causal: bool) -> nn.Module:
        tower = prune_last_layer(self._tower, columns) if self._prune else self._tower
        return plainly_causal(tower, sequence.embeds.shape[1]) if causal else tower
