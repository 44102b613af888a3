"""The fast path of one session: the plain stages with less work in them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robovlms_ros.backbones.sequence import TokenSequence, VisualTokens
from robovlms_ros.heads.base import HeadOutput
from robovlms_ros.policy.fast.layout import Layout, arguments, build_layout, fill, read_columns
from robovlms_ros.policy.fast.plan import PARTS, FastPathError, FastPathOptions
from robovlms_ros.policy.fast.towers import prune_last_layer
from robovlms_ros.policy.fast.window import HeadWindow, head_window
from robovlms_ros.policy.paths import Encoded, PlainPath, Timer, VisionTimer, no_timer
from robovlms_ros.policy.policy import VLAPolicy

log = logging.getLogger(__name__)
GRAPH_BUCKET = 16


def path_for(policy: VLAPolicy, options: FastPathOptions | None) -> PlainPath:
    """The stages that a session of `policy` runs with `options`. Parts that do not fit are refused in the reason."""
    if options is None or not options.enabled:
        return PlainPath(policy)
    path = FastRunner(policy, options)
    if path.parts:
        return path
    refusals = "; ".join(f"{name}: {reason}" for name, reason in path.refused.items())
    return PlainPath(policy, refusals or "every part of the fast path is switched off")


class FastRunner(PlainPath):
    """The stages of one session. parts: what runs; refused: what does not, and why."""

    name = "fast"

    def __init__(self, policy: VLAPolicy, options: FastPathOptions):
        self.policy, self.options = policy, options
        self.refused: dict[str, str] = {}
        self._layouts: dict[tuple[object, ...], tuple[Tensor, Layout]] = {}
        wanted = [name for name in PARTS if getattr(options, name)]
        self.parts = [name for name in wanted if self._fits(name)]
        self._window: HeadWindow | None = head_window(policy) if "staggered_lstm" in self.parts else None
        log.debug("fast path: %s", self.reason)

    @property
    def reason(self) -> str:  # type: ignore[override]
        """What runs, what was refused, and what the head's window did last."""
        said = [", ".join(self.parts)]
        if self._window is not None:
            said.append(f"head: {self._window.said}")
        said += [f"without {name}: {reason}" for name, reason in self.refused.items()]
        return "; ".join(said)

    def _fits(self, name: str) -> bool:
        """Whether a part can run with this policy; a refusal is kept with its reason."""
        try:
            self._require(name)
        except FastPathError as error:
            self.refused[name] = str(error)
            return False
        return True

    def _require(self, name: str) -> None:
        config, vlm = self.policy.config, self.policy.vlm
        discrete = config.action_head.action_space == "discrete"
        if discrete and name in ("prompt_cache", "last_layer_action_only", "staggered_lstm", "prefix_cache"):
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
        if name in ("prefix_cache", "cuda_graphs", "compile", "device_preprocess"):
            raise FastPathError("not built")

    def reset(self) -> None:
        """A new episode or instruction."""
        self._layouts.clear()
        if self._window is not None:
            self._window.clear()

    def encode(self, images: dict[str, Tensor], timer: Timer = no_timer) -> dict[str, VisualTokens]:
        """Visual tokens of every camera's frames, all cameras in one batch."""
        names = self.policy.config.cameras
        if "batch_cameras" not in self.parts or len(names) == 1:
            return super().encode(images, timer)
        vlm, count = self.policy.vlm, len(images[names[0]])
        with VisionTimer(self.policy, timer):
            together = vlm.encode_images(torch.cat([images[name] for name in names]))
        return {name: together.frames(i * count, (i + 1) * count) for i, name in enumerate(names)}

    def features(
        self,
        visual: dict[str, VisualTokens],
        tokens: Mapping[str, Tensor],
        state: Tensor | None,
        window: int,
        timer: Timer = no_timer,
    ) -> Tensor:
        """See PlainPath."""
        if not {"prompt_cache", "last_layer_action_only"} & set(self.parts):
            return super().features(visual, tokens, state, window, timer)
        with timer("text"):
            rows = len(tokens["input_ids"])
            if "prompt_cache" in self.parts:
                layout = self._layout(visual, tokens, state, window)
                sequence = fill(layout, self.policy.vlm, visual, state)
                columns, extra = layout.columns, arguments(layout, sequence)
            else:
                vlm = self.policy.vlm
                sequence = vlm.build_sequence(visual, tokens["input_ids"], tokens["attention_mask"], state, window)
                columns, extra = read_columns(vlm, sequence), {}
            hidden = self._read(sequence, columns, extra)  # (N, k, d)
            frames = 1 if self.policy.config.model.history_type == "video" else window
            return hidden.reshape(rows, frames, -1, hidden.shape[-1])

    def _read(self, sequence: TokenSequence, columns: Tensor, extra: dict[str, Any]) -> Tensor:
        """The text model's output (N, k, d) at `columns`."""
        vlm = self.policy.vlm
        if "last_layer_action_only" not in self.parts:
            return vlm.run_text_tower(sequence, **extra).last_hidden_state.index_select(1, columns)
        tower = prune_last_layer(vlm.text_tower, columns)
        return vlm.run_text_tower(sequence, tower, **extra).last_hidden_state

    def _layout(
        self, visual: dict[str, VisualTokens], tokens: Mapping[str, Tensor], state: Tensor | None, window: int
    ) -> Layout:
        ids = tokens["input_ids"]
        sizes = tuple(v.tokens.shape[1] for v in visual.values())
        # The ids are kept with their layout: while they live, no other instruction's lie at the same address.
        key = (ids.data_ptr(), tuple(ids.shape), sizes, window)
        if key not in self._layouts:
            bucket = self.options.prompt_bucket or 1
            self._layouts[key] = ids, build_layout(self.policy.vlm, visual, tokens, state, window, bucket)
        return self._layouts[key][1]

    def answer(self, window: Sequence[Encoded], timer: Timer = no_timer) -> HeadOutput:
        """See PlainPath; the newest frame's chunk alone, (1, 1, n, A), where the head's window is kept."""
        if self._window is None:
            return super().answer(window, timer)
        with timer("head"):
            return self._window.answer(window)
