"""The stages of one inference, as a session calls them. Here the plain ones; `optimized/` has the
others."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robovlms_ros.core.types import Observation
from robovlms_ros.models.action_tokens import generate
from robovlms_ros.models.backbones.sequence import TokenSequence, VisualTokens
from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.vla_policy import VLAPolicy

# Called with a stage's name: preprocess, vision, projector, text, head, post. The core itself reads
# no clock.
Timer = Callable[[str], AbstractContextManager[object]]
Images = Mapping[str, NDArray[np.uint8]]


def no_timer(stage: str) -> AbstractContextManager[object]:
    """Times nothing."""
    return nullcontext()


@dataclass(eq=False)
class Encoded:
    """A frame of the history: the observation until the VLM has seen it, then only what came out.

    feature: (1, 1, tokens, d) action feature (history `post`). visual: per camera (1, n, d) (other
        histories).
    """

    observation: Observation | None
    state: Tensor | None
    feature: Tensor | None = None
    visual: dict[str, VisualTokens] | None = None


class ReferenceInference:
    """Every stage as training runs it. Holds nothing of a session: any number may share one."""

    name = "plain"
    bucket = 1
    """Text lengths are rounded up to a multiple of it."""

    def __init__(self, policy: VLAPolicy, reason: str = "not asked for the fast path"):
        self.policy = policy
        self.reason = reason

    def reset(self) -> None:
        """A new episode or instruction."""

    def release_reference_weights(self) -> None:
        """Free the weights that only the plain path needs; here that is none."""

    def preprocess(self, frames: Sequence[Images]) -> dict[str, Tensor]:
        """Per camera the frames' pixels, (frames, 3, S, S) normalised, on the policy's device and
        in its precision."""
        processor = self.policy.vlm.image_processor
        policy = self.policy
        images = {}
        for name in policy.config.cameras:
            rows = [processor(frame[name], name) for frame in frames]
            images[name] = torch.stack(rows).to(policy.device, policy.dtype)
        return images

    def encode(
        self, images: dict[str, Tensor], timer: Timer = no_timer, steady: bool = False
    ) -> dict[str, VisualTokens]:
        """Visual tokens of every camera's frames. steady: as many frames will come again."""
        with VisionTimer(self.policy, timer):
            return self.policy.vlm.encode_frames(images)

    def features(
        self,
        visual: dict[str, VisualTokens],
        tokens: Mapping[str, Tensor],
        state: Tensor | None,
        window: int,
        timer: Timer = no_timer,
    ) -> Tensor:
        """Action features (B, T, tokens, d) of B windows; tokens: `input_ids`, `attention_mask` (B,
        L)."""
        with timer("text"):
            ids = tokens["input_ids"]
            mask = tokens["attention_mask"]
            return self.policy.vlm.forward_features(visual, ids, mask, state, window)

    def step(
        self, window: Sequence[Encoded], tokens: Mapping[str, Tensor], timer: Timer = no_timer
    ) -> HeadOutput | None:
        """The answer to a window whose newest frame nothing has seen, in one piece (history
        `post`); None where the stages run one by one."""
        return None

    def seal(self) -> None:
        """Nothing is recorded for a shape that comes from now on."""

    def answer(self, window: Sequence[Encoded], timer: Timer = no_timer) -> HeadOutput:
        """The head over frames whose features are there (history `post`); the newest frame's chunk
        is the last one."""
        with timer("head"):
            return self.policy.head(torch.cat([frame.feature for frame in window], dim=1))  # type: ignore[misc]

    def generate(self, sequence: TokenSequence, count: int, generator: torch.Generator) -> Tensor:
        """(1, count) ids that continue `sequence`, for the discrete head."""
        return generate(self.policy.vlm, sequence, count, self.policy.config.vlm.temperature, generator)

    def finish(self) -> None:
        """Do what `answer` put off, if anything: a later answer that needs it does it otherwise."""

    def head(self, features: Tensor, timer: Timer = no_timer) -> HeadOutput:
        """The head over the features (B, T, tokens, d) of whole windows."""
        with timer("head"):
            return self.policy.head(features)


class VisionTimer:
    """Within the block, the time in the vision tower counts as `vision` and what follows it as
    `projector`."""

    def __init__(self, policy: VLAPolicy, timer: Timer, tower: nn.Module | None = None):
        self.timer = timer
        self.tower = tower or policy.vlm.vision_tower
        self.running: AbstractContextManager[object] | None = None

    def _switch(self, stage: str | None) -> None:
        if self.running is not None:
            self.running.__exit__(None, None, None)
        self.running = None if stage is None else self.timer(stage)
        if self.running is not None:
            self.running.__enter__()

    def __enter__(self) -> None:
        if self.timer is no_timer:
            return
        self.hooks = (
            self.tower.register_forward_pre_hook(lambda *_: self._switch("vision")),
            self.tower.register_forward_hook(lambda *_: self._switch("projector")),
        )
        self._switch("projector")

    def __exit__(self, *_: object) -> None:
        if self.timer is no_timer:
            return
        for hook in self.hooks:
            hook.remove()
        self._switch(None)
