"""Stages that all sessions of one policy share: graphs, compiled code and weights."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robovlms_ros.inference.optimized.cuda_graphs import (
    CudaGraphCallable,
    CudaRecorder,
    GraphCapture,
    wait_for,
)
from robovlms_ros.inference.optimized.fused_projections import fused_tower
from robovlms_ros.inference.optimized.head_window import Step, float_outputs, lstm_answer
from robovlms_ros.inference.optimized.layout import Layout, arguments, fill
from robovlms_ros.inference.optimized.options import FastPathOptions
from robovlms_ros.inference.optimized.quantization import adopt, quantized_tower
from robovlms_ros.inference.optimized.text_towers import (
    plainly_causal,
    prepared_mask,
    prune_last_layer,
)
from robovlms_ros.inference.optimized.vision_towers import lean_encoder
from robovlms_ros.models.action_tokens import continue_tokens
from robovlms_ros.models.backbones.sequence import TokenSequence, VisualTokens
from robovlms_ros.models.heads.base import PolicyHead
from robovlms_ros.models.heads.lstm import LSTMHead
from robovlms_ros.models.vla_policy import VLAPolicy

WHOLE_STEP = {"cuda_graphs", "prompt_cache", "staggered_lstm", "batch_cameras", "device_preprocess"}
"""Parts with which one graph runs from the images to the answer."""
COMPILE_MODE = "max-autotune-no-cudagraphs"

Key = tuple[object, ...]
_shared: "WeakKeyDictionary[VLAPolicy, dict[Key, Shared]]" = WeakKeyDictionary()
_towers: "WeakKeyDictionary[VLAPolicy, dict[Key, nn.Module]]" = WeakKeyDictionary()
_lock = threading.RLock()
Made = TypeVar("Made")


def _once(
    store: "WeakKeyDictionary[VLAPolicy, dict[Key, Made]]",
    policy: VLAPolicy,
    key: Key,
    make: Callable[[], Made],
) -> Made:
    """The object that `make` made for a policy and a key, where it runs."""
    key = (*key, policy.device, policy.dtype)
    with _lock:
        made = store.setdefault(policy, {})
        if key not in made:
            made[key] = make()
        return made[key]


def shared_by(
    policy: VLAPolicy, options: FastPathOptions, parts: tuple[str, ...], quantized: bool
) -> "Shared":
    """The one object for a policy, where it runs, and what of the fast path does."""
    quantize = options.quantize if quantized else "none"
    return _once(_shared, policy, (quantize, parts), lambda: Shared(policy, parts, quantize))


def tower_of(policy: VLAPolicy, fused: bool, quantize: str) -> nn.Module:
    """The text model with joined or quantised weights, made once per policy: options that differ
    in other parts share it."""
    plain = policy.vlm.text_tower
    if not fused and quantize == "none":
        return plain

    def make() -> nn.Module:
        tower = fused_tower(plain) if fused else plain
        return tower if quantize == "none" else quantized_tower(tower, policy.fp8_scales)

    return _once(_towers, policy, (fused, quantize), make)


def release_stages(policy: VLAPolicy, weights: bool = True) -> None:
    """Drop the shared stages of a policy: graphs and compiled code of refused options, and with
    `weights` their quantised or joined ones.

    Sessions that use them keep them alive.
    """
    with _lock:
        _shared.pop(policy, None)
        if weights:
            _towers.pop(policy, None)


class Shared:
    """recorder: how functions are recorded where `cuda_graphs` is among the parts."""

    def __init__(
        self,
        policy: VLAPolicy,
        parts: tuple[str, ...],
        quantize: str,
        recorder: GraphCapture | None = None,
    ):
        # The sessions hold the policy; a second reference here would keep it alive forever.
        self._vlm = policy.vlm
        self._prune = "last_layer_action_only" in parts
        self._compile = "compile" in parts
        self.graphs = "cuda_graphs" in parts
        self.whole_step = set(parts) >= WHOLE_STEP
        self._device = policy.device
        # One memory pool and one lock for all graphs of a policy.
        self._recorder = recorder or CudaRecorder()
        self._tower = tower_of(policy, "fused_weights" in parts, quantize)
        self._vision = lean_encoder(policy.vlm, "fused_weights" in parts)
        self._towers: dict[Key, tuple[Tensor, nn.Module]] = {}
        self._masks: dict[Key, Any] = {}
        self._replayed: dict[Key, CudaGraphCallable] = {}
        self._sealed = False
        self._unrecorded: dict[Key, str] = {}
        self._host: Tensor | None = None
        encode: Callable[..., tuple[Tensor, ...]] = self._encode
        if self._compile:
            encode = _compiled(encode, self._device)
        self._encode_function = encode
        self._examples: dict[int, VisualTokens] = {}
        self.head = policy.head
        self.lstm_step: Step | None = None
        if self.graphs and isinstance(policy.head, PolicyHead):
            self.head = float_outputs(policy.head)
        if self.graphs and isinstance(policy.head, LSTMHead):
            head = self.head
            self.lstm_step = self._recorded(("head",), lambda *inputs: lstm_answer(head, *inputs))

    def release_reference_weights(self) -> None:
        """The policy's own text model gets the quantised layers: from now on there is no plain path
        to fall back to."""
        if self._tower is not self._vlm.text_tower:
            adopt(self._vlm.text_tower, self._tower)

    def seal(self) -> None:
        """From now on no shape is recorded: unknown ones run as they are, and `refusals` names
        them."""
        self._sealed = True
        for replayed in self._replayed.values():
            replayed.sealed = True

    @property
    def vision_tower(self) -> nn.Module:
        """The vision tower that `encode` runs."""
        return self._vision.vision_tower

    def refusals(self) -> list[str]:
        """Stages that could not be recorded, with reasons."""
        refused = [replayed.refused for replayed in self._replayed.values() if replayed.refused]
        return list(dict.fromkeys([*refused, *self._unrecorded.values()]))

    def _is_closed(self, key: Key, columns: int) -> bool:
        """True for a shape that is new after `seal`; `refusals` names it."""
        if not self._sealed or key in self._replayed:
            return False
        self._unrecorded[key] = f"{key[0]}: {columns} columns were not recorded at configure"
        return True

    def _recorded(
        self, key: Key, function: Callable[..., tuple[Tensor, ...]], constant: int = 0
    ) -> CudaGraphCallable:
        if key not in self._replayed:
            made = CudaGraphCallable(str(key[0]), function, self._recorder, constant, self._device)
            made.sealed = self._sealed
            self._replayed[key] = made
        return self._replayed[key]

    def example(self, images: Tensor) -> VisualTokens:
        """Visual tokens of one image like `images` (N, 3, S, S), computed once per size."""
        size = images.shape[-1]
        if size not in self._examples:
            # Outside of compiled and recorded code, which must not depend on what this object
            # holds.
            self._examples[size] = self._vlm.encode_images(images[:1])
        return self._examples[size]

    def encode(self, images: Tensor) -> VisualTokens:
        """Images (N, 3, S, S) of any cameras to their visual tokens."""
        grid = self.example(images).grid
        function = self._encode_function
        if self.graphs:
            function = self._recorded(("vision",), function)
        tokens, *layers = function(images)
        return VisualTokens(tokens, tuple(layers), grid)

    def step(
        self,
        images: Tensor,
        layout: Layout,
        state: Tensor | None,
        head: Step | None,
        given: tuple[Tensor, ...] | None,
    ) -> tuple[Tensor, ...] | None:
        """One frame by one graph: images (cameras, 3, S, S) of every camera to the frame's feature
        (1, 1, tokens, d) and, where `given` holds the head's inputs (`HeadWindow.step_inputs`), to
        (answer (n, A + 1) on the host, feature, further outputs of the head's step). None where it
        cannot be recorded, with the reason in `refusals`."""
        sequence = layout.sequence
        if layout.attention_mask is not None or sequence.layers:
            return None
        changing = (images, *(() if state is None else (state,)), *(given or ()))
        constant = layout.tensors()
        shape = tuple(sequence.embeds.shape)
        key = ("frame" if given is None else "step", shape, layout.tensor_positions)
        if self._is_closed(key, shape[1]):
            return None
        states = int(state is not None)
        function = partial(self._step, layout, states, None if given is None else head)
        replayed = self._recorded(key, function, len(constant))
        if replayed.refused:
            return None
        outputs = replayed(*changing, *constant)
        wait_for(outputs)
        return None if replayed.refused else outputs

    def _step(
        self, layout: Layout, states: int, head: Step | None, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """The function that `step` records; layout: of the first call, its tensors replaced."""
        constant = len(layout.tensors())
        images, *changing = inputs[:-constant]
        layout = layout.with_tensors(inputs[-constant:])
        tokens, *_ = self._encode_function(images)
        cameras = self._vlm.config.cameras
        visual = {name: VisualTokens(tokens[i : i + 1]) for i, name in enumerate(cameras)}
        sequence = fill(layout, self._vlm, visual, changing[0] if states else None)
        hidden = self._run(sequence, layout.columns, arguments(layout, sequence))
        feature = hidden.reshape(1, 1, -1, hidden.shape[-1])
        if head is None:
            return (feature,)
        arm, gripper, *rest = head(feature, *changing[states:])
        answer = torch.cat((arm[0, -1], gripper[0, -1]), dim=-1)  # (n, A + 1)
        return self._to_host(answer), feature, *rest

    def generate(self, sequence: TokenSequence, count: int) -> Tensor:
        """(1, count) ids: the prompt and every step by one graph, of a sequence (1, L, d) without
        padding and the most likely tokens."""

        def function(embeds: Tensor) -> tuple[Tensor, ...]:
            row = replace(sequence, embeds=embeds)
            return (continue_tokens(self._vlm, row, count, tower=self._tower, masked=False),)

        columns = sequence.embeds.shape[1]
        key = ("generation", tuple(sequence.embeds.shape), count)
        if self._is_closed(key, columns):
            return function(sequence.embeds)[0]
        return self._recorded(key, function)(sequence.embeds)[0]

    def _to_host(self, answer: Tensor) -> Tensor:
        """`answer` in pinned memory of its own; the copy is part of the graph."""
        if answer.device.type == "cpu":
            return answer
        if self._host is None:
            self._host = torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True)
        return self._host.copy_(answer, non_blocking=True)

    def _encode(self, images: Tensor) -> tuple[Tensor, ...]:
        visual = self._vision.encode_images(images)
        return (visual.tokens, *visual.layers)

    def read(
        self,
        sequence: TokenSequence,
        columns: Tensor,
        extra: dict[str, Any] | None,
        steady: bool = False,
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
        if causal:
            extra = {**extra, "attention_mask": self._mask_for(tower, sequence.embeds)}
        hidden = self._vlm.run_text_tower(sequence, tower, **extra).last_hidden_state
        return hidden if self._prune else hidden.index_select(1, columns)

    def _mask_for(self, tower: nn.Module, embeds: Tensor) -> Any:
        """The mask of a causal sequence without padding, kept for every length: one that the model
        builds is a copy from the host that a graph refuses, or dead kernels."""
        key = (embeds.shape[1], embeds.dtype)
        if key not in self._masks:
            self._masks[key] = prepared_mask(getattr(tower, "_orig_mod", tower), embeds)
        return self._masks[key]

    def _tower_for(self, columns: Tensor, sequence: TokenSequence, causal: bool) -> nn.Module:
        """The text model, limited to `columns` where it is to be; a compiled one is kept for every
        shape."""
        if not self._compile:
            return self._limited(columns, sequence, causal)
        shape = tuple(sequence.embeds.shape)
        key = (shape, tuple(columns.shape), causal, threading.get_ident())
        if key not in self._towers:
            if self._sealed:
                self._unrecorded[key] = f"text: {shape[1]} columns were not compiled at configure"
                return self._limited(columns, sequence, causal)
            held = columns.clone()
            self._towers[key] = held, _compiled(self._limited(held, sequence, causal), self._device)
        held, tower = self._towers[key]
        held.copy_(columns)
        return tower

    def _limited(self, columns: Tensor, sequence: TokenSequence, causal: bool) -> nn.Module:
        tower = prune_last_layer(self._tower, columns) if self._prune else self._tower
        return plainly_causal(tower, sequence.embeds.shape[1]) if causal else tower


def _compiled(function: Any, device: torch.device) -> Any:
    """Compiled code for one shape; on a GPU the fastest kernels are chosen by measurement."""
    mode = COMPILE_MODE if device.type == "cuda" else None
    return torch.compile(function, dynamic=False, mode=mode)
