"""The fast path of one session: the plain stages with less work in them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robovlms_ros.inference.optimized.head_window import HeadWindow, head_window
from robovlms_ros.inference.optimized.options import PARTS, FastPathError, FastPathOptions
from robovlms_ros.inference.optimized.prompt_layout import (
    Layout,
    arguments,
    build_layout,
    fill,
    read_columns,
)
from robovlms_ros.inference.optimized.resize import DevicePreprocessor
from robovlms_ros.inference.optimized.shared_stages import Shared, shared_by
from robovlms_ros.inference.optimized.support import check_supported
from robovlms_ros.inference.reference_inference import (
    Encoded,
    Images,
    ReferenceInference,
    Timer,
    VisionTimer,
    no_timer,
)
from robovlms_ros.models.backbones.sequence import VisualTokens
from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.vla_policy import VLAPolicy

GRAPH_BUCKET = 32
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
        bucket = GRAPH_BUCKET if {"cuda_graphs", "compile"} & set(self.parts) else 1
        self._bucket = options.prompt_bucket or bucket
        self._window: HeadWindow | None = None
        if "staggered_lstm" in self.parts:
            self._window = head_window(policy, self._shared.lstm_step)
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
        with VisionTimer(self.policy, timer):
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
