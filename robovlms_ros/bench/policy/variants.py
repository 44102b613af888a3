"""The ways of doing a step that are measured beside each other, each from a history that is full."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robovlms_ros.bench.policy.cases import STEP, SyntheticFrames
from robovlms_ros.bench.policy.several_robots import predict_together
from robovlms_ros.bench.policy.transformers_baseline import TransformersBaseline
from robovlms_ros.core.schema import require
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.inference.optimized.options import MODES, FastPathOptions, options_for
from robovlms_ros.inference.reference_inference import Encoded, Timer
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.vla_policy import VLAPolicy

WAYS = ("fast", "fast:PART+...", "fast:QUANTIZATION", "plain", "careful", "logits", "logits_float32", "logits_bfloat16")
BY_HAND = WAYS[4:]
WARM_UP = 3
"""Steps until all that a step of a full window does has run: the first ones find states and layouts to be made."""


class InferenceVariant(Protocol):
    """One robot's steps."""

    policy: VLAPolicy

    @property
    def said(self) -> str:
        """What runs, in words."""
        ...

    def step(self, index: int, timer: Timer | None = None) -> NDArray[np.float64]:
        """(n, A + 1) normalised answer to frame `index`."""
        ...


class SessionVariant:
    """The package's own session, plain or with the fast path."""

    def __init__(self, policy: VLAPolicy, frames: SyntheticFrames, options: FastPathOptions | None):
        self.policy, self._frames = policy, frames
        self.session = PolicySession(policy, fast=options)
        fill_history(self.session, frames)

    @property
    def said(self) -> str:
        """See Way."""
        return f"{self.session.path}: {self.session.path_reason}"

    def step(self, index: int, timer: Timer | None = None) -> NDArray[np.float64]:
        """See Way."""
        self.session.predict_action_chunk(self._frames[index], timer)
        return self.session.normalised


class Fleet:
    """Several robots on one policy, their frames in one batch; the answer is the first robot's."""

    def __init__(self, policy: VLAPolicy, frames: SyntheticFrames, options: FastPathOptions | None, robots: int):
        self.policy = policy
        self._frames = [
            frames,
            *(
                SyntheticFrames(frames.cameras, seed, shape=frames.shape)
                for seed in range(1, robots)
            ),
        ]
        self.sessions = [PolicySession(policy, fast=options) for _ in self._frames]
        for session, mine in zip(self.sessions, self._frames, strict=True):
            fill_history(session, mine)

    @property
    def said(self) -> str:
        """See Way."""
        return f"{self.sessions[0].path}: {self.sessions[0].path_reason}"

    def step(self, index: int, timer: Timer | None = None) -> NDArray[np.float64]:
        """See Way. The timer is given nothing: the stages of several robots are one."""
        predict_together(self.sessions, [frames[index] for frames in self._frames])
        return self.sessions[0].normalised


class BaselineVariant:
    """transformers by hand."""

    def __init__(self, policy: VLAPolicy, frames: SyntheticFrames, logits: bool):
        self.policy, self._frames, self._logits = policy, frames, logits
        self._robot = TransformersBaseline(policy, logits)
        self._robot.features.extend(stand_in_features(policy))

    @property
    def said(self) -> str:
        """See Way."""
        return "model(...) with logits" if self._logits else "model.model(...)"

    def step(self, index: int, timer: Timer | None = None) -> NDArray[np.float64]:
        """See Way."""
        return self._robot.step(self._frames[index], timer)


def is_own(name: str) -> bool:
    """Whether a way is the package's own: the plain path, or the fast one or parts of it."""
    return name in ("plain", "fast") or name.startswith("fast:")


def options_of(name: str, device_type: str) -> FastPathOptions | None:
    """The fast path's options of one of the package's own ways. Raises FastPathError for an unknown part."""
    if name == "plain":
        return None
    part = name.removeprefix("fast").removeprefix(":")
    if not part or part in MODES:
        return options_for(part or "auto", device_type)
    return FastPathOptions.only(*part.split("+"))


def make_way(name: str, policy: VLAPolicy, frames: SyntheticFrames, robots: int = 1) -> InferenceVariant:
    """A way by its name, of several robots in one batch where it is the package's own.

    `fast:prompt_cache+staggered_lstm` is the fast path with these parts alone, `fast:fp8` all of it with fp8
    weights; `logits_float32`, `logits_bfloat16` run a copy of the policy in that precision. Raises ConfigError,
    FastPathError.
    """
    require(is_own(name) or name in BY_HAND, "path", name, f"one of {', '.join(WAYS)}")
    kind, _, dtype = name.partition("_")
    if is_own(name):
        options = options_of(name, policy.device.type)
        return SessionVariant(policy, frames, options) if robots == 1 else Fleet(policy, frames, options, robots)
    require(robots == 1, f"robots with path '{name}'", robots, "1")
    if dtype:
        policy = copy.deepcopy(policy).to(getattr(torch, dtype))
    return BaselineVariant(policy, frames, kind == "logits")


def countable(
    way: InferenceVariant, name: str, policy: VLAPolicy, frames: SyntheticFrames, robots: int = 1
) -> InferenceVariant:
    """The way itself, or its twin without graphs and compiled code, which show no operations."""
    options = options_of(name, policy.device.type) if is_own(name) else None
    if options is None or not (options.cuda_graphs or options.compile):
        return way
    options = replace(options, cuda_graphs=False, compile=False)
    return SessionVariant(policy, frames, options) if robots == 1 else Fleet(policy, frames, options, robots)


def stand_in_features(policy: VLAPolicy, seed: int = 0) -> list[Tensor]:
    """W - 1 features (1, 1, latent, d), so that a window is full from the first frame on, without encoding it."""
    generator = torch.Generator().manual_seed(seed)
    count = policy.config.model.history_length - 1
    shape = (1, 1, policy.config.action_head.latent, policy.vlm.hidden_size)
    return [torch.randn(shape, generator=generator).to(policy.device, policy.dtype) for _ in range(count)]


@torch.inference_mode()
def fill_history(session: PolicySession, frames: SyntheticFrames) -> None:
    """Stand-in features as the session's earlier frames; frame 0 comes next. On the fast path the head has answered
    each of them, as in an episode, so that what its window keeps is there."""
    policy = session.policy
    features = stand_in_features(policy)
    if not features:
        return
    first = frames[0]
    session.observe(replace(first, stamp_ns=first.stamp_ns - round(len(features) * STEP * NANOSECONDS)))
    session._frames.clear()  # the instruction stays
    seen = [Encoded(None, None, feature) for feature in features]
    for i, frame in enumerate(seen):
        session._frames.add(first.stamp_ns - round((len(seen) - i) * STEP * NANOSECONDS), frame)
        if session.path == "fast":
            session._path.answer(seen[: i + 1])


Answers = dict[int, NDArray[np.float64]]


def recorded(way: InferenceVariant, answers: Answers) -> Callable[[int], Any]:
    """The way's steps, their answers kept."""

    def step(index: int) -> None:
        answers[index] = way.step(index)

    return step
