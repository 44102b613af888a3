"""Optimized stages of one session's inference."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robovlms_ros.inference.optimized.head_window import HeadWindow, head_window
from robovlms_ros.inference.optimized.layout import (
    Layout,
    arguments,
    build_layout,
    fill,
    read_columns,
)
from robovlms_ros.inference.optimized.options import PARTS, FastPathError, FastPathOptions
from robovlms_ros.inference.optimized.resize import DevicePreprocessor
from robovlms_ros.inference.optimized.shared_stages import Shared, shared_by
from robovlms_ros.inference.optimized.text_towers import prune_last_layer
from robovlms_ros.inference.reference_inference import (
    Encoded,
    Images,
    ReferenceInference,
    Timer,
    VisionTimer,
    no_timer,
)
from robovlms_ros.models.backbones.sequence import TokenSequence, VisualTokens
from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.image_processor import ImageProcessor
from robovlms_ros.models.vla_policy import VLAPolicy

OF_CONTINUOUS = ("prompt_cache", "last_layer_action_only", "staggered_lstm", "quantize")
GRAPH_BUCKET = 8
COMPILE_BUCKET = 32
"""Text lengths are rounded up to a multiple: a recording takes less than a second, compiled code
minutes."""
LAYOUTS_KEPT = 4


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
            history = config.model.history_type
            raise FastPathError(f"history_type '{history}': every window has other features")
        if config.model.pre_executes == "oldest":
            raise FastPathError("pre_executes 'oldest': the answer is not the newest frame's")
    if name == "device_preprocess" and not isinstance(vlm.image_processor, ImageProcessor):
        kind = type(vlm.image_processor).__name__
        raise FastPathError(f"image processor {kind} is not Pillow's bicubic squash")
    if name == "cuda_graphs" and policy.device.type != "cuda":
        raise FastPathError(f"the policy runs on {policy.device.type}")


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
        self.bucket = options.prompt_bucket or bucket
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
        self._shared.seal()

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
        """See ReferenceInference; with device_preprocess the pixels reach the device as uint8."""
        if "device_preprocess" not in self.parts:
            return super().preprocess(frames)
        policy = self.policy
        images = {}
        for name in policy.config.cameras:
            if name not in self._preprocessors:
                processor = policy.vlm.image_processor
                made = DevicePreprocessor(processor, policy.device, policy.dtype)
                self._preprocessors[name] = made
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
            singles = [
                self.encode({name: images[name][i : i + 1] for name in names}, timer)
                for i in range(count)
            ]
            return {name: VisualTokens.join([single[name] for single in singles]) for name in names}
        if "batch_cameras" in self.parts and len(names) > 1:
            together = self._encode(torch.cat([images[name] for name in names]), timer)
            return {
                name: together.frames(i * count, (i + 1) * count) for i, name in enumerate(names)
            }
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
                ids = tokens["input_ids"]
                mask = tokens["attention_mask"]
                sequence = vlm.build_sequence(visual, ids, mask, state, window)
                hidden = self._shared.read(sequence, read_columns(vlm, sequence), None)
            frames = 1 if self.policy.config.model.history_type == "video" else window
            return hidden.reshape(rows, frames, -1, hidden.shape[-1])

    def _layout(
        self,
        visual: dict[str, VisualTokens],
        tokens: Mapping[str, Tensor],
        state: Tensor | None,
        window: int,
    ) -> Layout:
        ids = tokens["input_ids"]
        sizes = tuple(v.tokens.shape[1] for v in visual.values())
        # The ids are kept with their layout: while they live, no other instruction's lie at the
        # same address.
        key = (ids.data_ptr(), tuple(ids.shape), sizes, window)
        if key not in self._layouts:
            if len(self._layouts) >= LAYOUTS_KEPT:
                self._layouts.pop(next(iter(self._layouts)))
            vlm = self.policy.vlm
            layout = build_layout(vlm, visual, tokens, state, window, self.bucket)
            self._layouts[key] = ids, layout
        return self._layouts[key][1]

    def generate(self, sequence: TokenSequence, count: int, generator: torch.Generator) -> Tensor:
        """See ReferenceInference; the most likely tokens by one graph."""
        plain = not sequence.layers and bool(sequence.mask.all())
        if not self._shared.graphs or self.policy.config.vlm.temperature or not plain:
            return super().generate(sequence, count, generator)
        return self._shared.generate(sequence, count)

    def answer(self, window: Sequence[Encoded], timer: Timer = no_timer) -> HeadOutput:
        """See ReferenceInference; the newest frame's chunk alone, (1, 1, n, A), where the head's
        window is kept."""
        if self._window is None:
            return super().answer(window, timer)
        with timer("head"):
            return self._window.answer(window)

    def finish(self) -> None:
        """See ReferenceInference: states of the head's window that the answer did not need."""
        if self._window is not None:
            self._window.finish()
