"""Optimized stages of one session's inference, and those shared by the sessions of one policy.

The reference stages splice the text model's sequence together for every frame. Here it is spliced
once per instruction, with the frame's images as placeholders; a frame's visual tokens are then
written into their columns. Columns behind the last one that the head reads are omitted, since every
model here is causal; the length is rounded up with padding at the end, which no earlier column
attends to and which moves no position.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.inference.optimized.cuda_graphs import (
    CudaGraphCallable,
    CudaRecorder,
    GraphCapture,
    wait_for,
)
from robovlms_ros.inference.optimized.fused_projections import fused_tower
from robovlms_ros.inference.optimized.head_window import (
    HeadWindow,
    Step,
    float_outputs,
    head_window,
    lstm_answer,
)
from robovlms_ros.inference.optimized.options import PARTS, FastPathError, FastPathOptions
from robovlms_ros.inference.optimized.quantization import adopt, quantized_tower
from robovlms_ros.inference.optimized.resize import DevicePreprocessor
from robovlms_ros.inference.optimized.text_towers import (
    plainly_causal,
    prepared_mask,
    prune_last_layer,
)
from robovlms_ros.inference.optimized.vision_towers import lean_encoder
from robovlms_ros.inference.reference_inference import (
    Encoded,
    Images,
    ReferenceInference,
    Timer,
    VisionTimer,
    no_timer,
)
from robovlms_ros.models.action_tokens import continue_tokens
from robovlms_ros.models.backbones import sequence as seq
from robovlms_ros.models.backbones.base import SOURCES, BaseRoboVLM
from robovlms_ros.models.backbones.sequence import TokenSequence, VisualTokens
from robovlms_ros.models.heads.base import HeadOutput, PolicyHead
from robovlms_ros.models.heads.lstm import LSTMHead
from robovlms_ros.models.image_processor import ImageProcessor
from robovlms_ros.models.vla_policy import VLAPolicy

OF_CONTINUOUS = ("prompt_cache", "last_layer_action_only", "staggered_lstm", "quantize")
WHOLE_STEP = {"cuda_graphs", "prompt_cache", "staggered_lstm", "batch_cameras", "device_preprocess"}
"""Parts with which one graph runs from the images to the answer."""
COMPILE_MODE = "max-autotune-no-cudagraphs"


def check_supported(name: str, policy: VLAPolicy) -> None:
    """Raise FastPathError where the part `name` cannot run with `policy`; the error holds the
    reason."""
    config = policy.config
    vlm = policy.vlm
    if name in OF_CONTINUOUS and config.action_head.action_space == "discrete":
        raise FastPathError("the discrete head generates words")
    if name == "last_layer_action_only":
        prune_last_layer(vlm.text_tower, torch.zeros(1, dtype=torch.int64))
        levels = getattr(vlm.hf_config.vision_config, "deepstack_visual_indexes", None) or ()
        layers = getattr(vlm.hf_config.get_text_config(), "num_hidden_layers", len(levels) + 1)
        if len(levels) >= layers:
            raise FastPathError("image features are added behind the last layer")
    if name == "staggered_lstm":
        if config.model.history_type not in ("post", "one_step"):
            raise FastPathError(f"history_type '{config.model.history_type}': every window has other features")
        if config.model.pre_executes == "oldest":
            raise FastPathError("pre_executes 'oldest': the answer is not the newest frame's")
    if name == "device_preprocess" and not isinstance(vlm.image_processor, ImageProcessor):
        raise FastPathError(f"image processor {type(vlm.image_processor).__name__} is not Pillow's bicubic squash")
    if name == "cuda_graphs" and policy.device.type != "cuda":
        raise FastPathError(f"the policy runs on {policy.device.type}")


@dataclass(frozen=True)
class Layout:
    """sequence: the template, (B, L, d) with placeholders. columns: (k,) int64, what the head
    reads. image_columns,
    state_columns: where a frame's visual tokens and proprioception go. positions: `text_tower`'s
    arguments that depend on the layout alone. attention_mask: None where every column before
    another is attended to."""

    sequence: TokenSequence
    columns: Tensor
    image_columns: Tensor
    state_columns: Tensor
    positions: dict[str, Any]
    attention_mask: Tensor | None


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
    sequence = vlm.build_sequence(visual, tokens["input_ids"], tokens["attention_mask"], state, window)
    positions = vlm.positions(sequence)
    positions.pop("deepstack_visual_embeds", None)
    columns = read_columns(vlm, sequence)
    used = int(columns.max()) + 1
    texts = tokens["input_ids"].shape[1] * (1 if vlm.config.model.history_type == "video" else window)
    padding = -texts % bucket
    sequence = _fit(sequence, used, padding)
    kinds = sequence.kinds[0]
    plain = bool(sequence.mask[:, :used].all())
    return Layout(
        sequence,
        columns,
        (kinds == seq.IMAGE).nonzero().flatten(),
        (kinds == seq.STATE).nonzero().flatten(),
        {name: _fit_columns(value, sequence.mask.shape[1], used) for name, value in positions.items()},
        None if plain else sequence.mask.long(),
    )


def read_columns(vlm: BaseRoboVLM, sequence: TokenSequence) -> Tensor:
    """(k,) the columns that the head reads, the same in every row (rows of one instruction)."""
    head = vlm.config.action_head
    kinds = (seq.ACTION,) if head.action_space == "continuous" else SOURCES[head.token_source]
    wanted = torch.isin(sequence.kinds[0], torch.tensor(kinds, device=sequence.kinds.device))
    return wanted.nonzero().flatten()


def fill(layout: Layout, vlm: BaseRoboVLM, visual: dict[str, VisualTokens], state: Tensor | None) -> TokenSequence:
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
    layers = tuple(
        _arranged(vlm, list(group), rows) for group in zip(*(v.layers for v in newest_first), strict=True)
    )
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
    return replace(sequence, embeds=embeds, mask=fit(sequence.mask, 1), kinds=fit(sequence.kinds, seq.PAD))


def _fit_columns(value: Any, length: int, used: int) -> Any:
    """A positions' argument (..., L) cut and padded like the sequence."""
    return functional.pad(value[..., :used], (0, length - used)) if isinstance(value, Tensor) else value


Key = tuple[object, ...]
_shared: "WeakKeyDictionary[VLAPolicy, dict[Key, Shared]]" = WeakKeyDictionary()
_towers: "WeakKeyDictionary[VLAPolicy, dict[Key, nn.Module]]" = WeakKeyDictionary()
_lock = threading.RLock()


def shared_by(policy: VLAPolicy, options: FastPathOptions, parts: tuple[str, ...], quantized: bool) -> "Shared":
    """The one object for a policy, where it runs, and what of the fast path does."""
    key = (options.quantize if quantized else "none", parts, policy.device, policy.dtype)
    with _lock:
        made = _shared.setdefault(policy, {})
        if key not in made:
            made[key] = Shared(policy, parts, str(key[0]))
        return made[key]


def tower_of(policy: VLAPolicy, fused: bool, quantize: str) -> nn.Module:
    """The text model with joined or quantised weights, made once per policy: options that differ
    in other parts share it."""
    tower = policy.vlm.text_tower
    if not fused and quantize == "none":
        return tower
    key = (fused, quantize, policy.device, policy.dtype)
    with _lock:
        made = _towers.setdefault(policy, {})
        if key not in made:
            tower = fused_tower(tower) if fused else tower
            made[key] = tower if quantize == "none" else quantized_tower(tower, policy.fp8_scales)
        return made[key]


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
        layout: "Layout",
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
        names = [name for name, value in layout.positions.items() if isinstance(value, Tensor)]
        states = () if state is None else (state,)
        changing = (images, *states, *(given or ()))
        constant = (
            sequence.embeds,
            layout.columns,
            layout.image_columns,
            layout.state_columns,
            *(layout.positions[name] for name in names),
        )
        shape = tuple(sequence.embeds.shape)
        key = ("step" if given is not None else "frame", shape, tuple(names))
        if key not in self._replayed:
            if self._sealed:
                self._unrecorded[key] = f"{key[0]}: {shape[1]} columns were not recorded at configure"
                return None
            function = partial(self._step, layout, names, len(states), None if given is None else head)
            self._recorded(key, function, len(constant))
        replayed = self._replayed[key]
        if replayed.refused:
            return None
        outputs = replayed(*changing, *constant)
        wait_for(outputs)
        return None if replayed.refused else outputs

    def _step(
        self, layout: "Layout", names: list[str], states: int, head: Step | None, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """The function that `step` records; layout: of the first call, its tensors replaced."""
        constant = 4 + len(names)
        images, *changing = inputs[: len(inputs) - constant]
        embeds, columns, image_columns, state_columns, *positions = inputs[len(inputs) - constant :]
        layout = replace(
            layout,
            sequence=replace(layout.sequence, embeds=embeds),
            columns=columns,
            image_columns=image_columns,
            state_columns=state_columns,
            positions={**layout.positions, **dict(zip(names, positions, strict=True))},
        )
        tokens, *_ = self._encode_function(images)
        cameras = self._vlm.config.cameras
        visual = {name: VisualTokens(tokens[i : i + 1]) for i, name in enumerate(cameras)}
        sequence = fill(layout, self._vlm, visual, changing[0] if states else None)
        hidden = self._run(sequence, columns, arguments(layout, sequence))
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

        key = ("generation", tuple(sequence.embeds.shape), count)
        if key not in self._replayed and self._sealed:
            self._unrecorded[key] = f"generation: {sequence.embeds.shape[1]} columns were not recorded at configure"
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


GRAPH_BUCKET = 8
COMPILE_BUCKET = 32
"""Text lengths are rounded up to a multiple: a recording takes less than a second, compiled code
minutes."""
LAYOUTS_KEPT = 4


def path_for(policy: VLAPolicy, options: FastPathOptions | None) -> ReferenceInference:
    """The stages that a session of `policy` runs with `options`. Parts that do not fit are refused
    in the reason."""
    if options is None or not options.enabled:
        return ReferenceInference(policy)
    path = OptimizedInference(policy, options)
    if path.parts or path.quantized:
        return path
    refusals = "; ".join(f"{name}: {reason}" for name, reason in path.refused.items())
    return ReferenceInference(policy, refusals or "every part of the fast path is switched off")


class OptimizedInference(ReferenceInference):
    """The stages of one session. parts: what runs; refused: what does not, and why."""

    name = "fast"

    def __init__(self, policy: VLAPolicy, options: FastPathOptions):
        self.policy = policy
        self.options = options
        self.refused: dict[str, str] = {}
        self.parts = [name for name in PARTS if getattr(options, name) and self._fits(name)]
        self.quantized = options.quantize != "none" and self._fits("quantize")
        self._shared: Shared = shared_by(policy, options, tuple(self.parts), self.quantized)
        self._layouts: dict[tuple[object, ...], tuple[Tensor, Layout]] = {}
        bucket = GRAPH_BUCKET if "cuda_graphs" in self.parts else 1
        bucket = COMPILE_BUCKET if "compile" in self.parts else bucket
        self._bucket = options.prompt_bucket or bucket
        self._window: HeadWindow | None = None
        if "staggered_lstm" in self.parts:
            self._window = head_window(policy, self._shared.lstm_step, self._shared.head)
        self._preprocessors: dict[str, DevicePreprocessor] = {}

    @property
    def reason(self) -> str:  # type: ignore[override]
        """Parts that run, refused parts, and the last computation of the head's window."""
        description = [", ".join(self.parts)] if self.parts else []
        if self.quantized:
            description.append(f"text model in {self.options.quantize}")
        if self._window is not None:
            description.append(f"head: {self._window.description}")
        description += [f"without {name}: {reason}" for name, reason in self.refused.items()]
        description += [f"without a CUDA graph of {reason}" for reason in self._shared.refusals()]
        return "; ".join(description)

    def release_reference_weights(self) -> None:
        """Free the weights that only the plain path needs; see Shared."""
        if self.quantized:
            self._shared.release_reference_weights()

    def _fits(self, name: str) -> bool:
        """True if a part can run with this policy; a refusal is kept with its reason."""
        try:
            check_supported(name, self.policy)
        except FastPathError as error:
            self.refused[name] = str(error)
            return False
        return True

    def reset(self) -> None:
        """A new episode or instruction."""
        self._layouts.clear()
        if self._window is not None:
            self._window.clear()

    def seal(self) -> None:
        """See Shared."""
        self._shared.seal()

    @property
    def bucket(self) -> int:
        """Text lengths are rounded up to a multiple of it."""
        return self._bucket

    def step(
        self, window: Sequence[Encoded], tokens: Mapping[str, Tensor], timer: Timer = no_timer
    ) -> HeadOutput | None:
        """See ReferenceInference: the newest frame from its images to the answer by one graph, and
        earlier frames that were only observed by one graph each."""
        shared = self._shared
        if not shared.whole_step or self._window is None or window[-1].observation is None:
            return None
        for frame in window[:-1]:
            if frame.feature is None and not self._step_frame(frame, tokens, None, timer):
                return None
        given = self._window.step_inputs(window)
        outputs = self._step_frame(window[-1], tokens, given, timer)
        if outputs is None:
            return None
        if given is None:
            return self.answer(window, timer)
        answer, _, *rest = outputs
        arm, gripper = answer[None, None].split((answer.shape[-1] - 1, 1), dim=-1)
        return self._window.accept(window, HeadOutput(arm, gripper), tuple(rest))

    def _step_frame(
        self,
        frame: Encoded,
        tokens: Mapping[str, Tensor],
        given: tuple[Tensor, ...] | None,
        timer: Timer,
    ) -> tuple[Tensor, ...] | None:
        """`Shared.step` of one frame, whose feature is kept and whose pixels are freed."""
        if frame.observation is None or self._window is None:
            return None
        names = self.policy.config.cameras
        with timer("preprocess"):
            pixels = self.preprocess([frame.observation.images])
            images = torch.cat([pixels[name] for name in names])
        with timer("step"):
            example = self._shared.example(images)
            layout = self._layout({name: example for name in names}, tokens, frame.state, 1)
            head = self._window.step_function
            outputs = self._shared.step(images, layout, frame.state, head, given)
        if outputs is None:
            return None
        frame.feature = outputs[0 if given is None else 1]
        frame.observation = None
        return outputs

    def preprocess(self, frames: Sequence[Images]) -> dict[str, Tensor]:
        """See PlainPath; with device_preprocess the pixels reach the device as uint8."""
        if "device_preprocess" not in self.parts:
            return super().preprocess(frames)
        policy = self.policy
        images = {}
        for name in policy.config.cameras:
            if name not in self._preprocessors:
                processor = policy.vlm.image_processor
                self._preprocessors[name] = DevicePreprocessor(processor, policy.device, policy.dtype)
            images[name] = self._preprocessors[name]([frame[name] for frame in frames])
        return images

    def encode(
        self, images: dict[str, Tensor], timer: Timer = no_timer, steady: bool = False
    ) -> dict[str, VisualTokens]:
        """Visual tokens of every camera's frames; with batch_cameras all cameras in one batch."""
        names = self.policy.config.cameras
        count = len(images[names[0]])
        if self._shared.graphs and count > 1 and not steady:
            # One after the other by the graph that is there: another number of frames would have to
            # be recorded first.
            singles = [self.encode({name: images[name][i : i + 1] for name in names}, timer) for i in range(count)]
            return {name: VisualTokens.join([single[name] for single in singles]) for name in names}
        if "batch_cameras" in self.parts and len(names) > 1:
            together = self._encode(torch.cat([images[name] for name in names]), timer)
            return {name: together.frames(i * count, (i + 1) * count) for i, name in enumerate(names)}
        return {name: self._encode(images[name], timer) for name in names}

    def _encode(self, images: Tensor, timer: Timer) -> VisualTokens:
        if self._shared.graphs:
            with timer("vision"):  # with the projector: a graph is one piece
                return self._shared.encode(images)
        with VisionTimer(self.policy, timer, self._shared.vision_tower):
            return self._shared.encode(images)

    def features(
        self,
        visual: dict[str, VisualTokens],
        tokens: Mapping[str, Tensor],
        state: Tensor | None,
        window: int,
        timer: Timer = no_timer,
    ) -> Tensor:
        """See PlainPath."""
        if not self.quantized and not {"prompt_cache", "last_layer_action_only"} & set(self.parts):
            return super().features(visual, tokens, state, window, timer)
        vlm = self.policy.vlm
        with timer("text"):
            rows = len(tokens["input_ids"])
            if "prompt_cache" in self.parts:
                layout = self._layout(visual, tokens, state, window)
                sequence = fill(layout, vlm, visual, state)
                steady = window in (1, self.policy.config.model.history_length)
                extra = arguments(layout, sequence)
                hidden = self._shared.read(sequence, layout.columns, extra, steady)  # (N, k, d)
            else:
                sequence = vlm.build_sequence(visual, tokens["input_ids"], tokens["attention_mask"], state, window)
                hidden = self._shared.read(sequence, read_columns(vlm, sequence), None)
            frames = 1 if self.policy.config.model.history_type == "video" else window
            return hidden.reshape(rows, frames, -1, hidden.shape[-1])

    def _layout(
        self, visual: dict[str, VisualTokens], tokens: Mapping[str, Tensor], state: Tensor | None, window: int
    ) -> Layout:
        ids = tokens["input_ids"]
        sizes = tuple(v.tokens.shape[1] for v in visual.values())
        # The ids are kept with their layout: while they live, no other instruction's lie at the
        # same address.
        key = (ids.data_ptr(), tuple(ids.shape), sizes, window)
        if key not in self._layouts:
            if len(self._layouts) >= LAYOUTS_KEPT:
                self._layouts.pop(next(iter(self._layouts)))
            self._layouts[key] = ids, build_layout(self.policy.vlm, visual, tokens, state, window, self._bucket)
        return self._layouts[key][1]

    def generate(self, sequence: TokenSequence, count: int, generator: torch.Generator) -> Tensor:
        """See ReferenceInference; the most likely tokens by one graph."""
        plain = not sequence.layers and bool(sequence.mask.all())
        if not self._shared.graphs or self.policy.config.vlm.temperature or not plain:
            return super().generate(sequence, count, generator)
        return self._shared.generate(sequence, count)

    def answer(self, window: Sequence[Encoded], timer: Timer = no_timer) -> HeadOutput:
        """See PlainPath; the newest frame's chunk alone, (1, 1, n, A), where the head's window is
        kept."""
        if self._window is None:
            return super().answer(window, timer)
        with timer("head"):
            return self._window.answer(window)

    def finish(self) -> None:
        """See PlainPath: states of the head's window that the answer did not need."""
        if self._window is not None:
            self._window.finish()
