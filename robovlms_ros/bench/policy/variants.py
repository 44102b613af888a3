"""Inference variants that are measured beside each other, each from a full history.

The transformers baseline is a step written with transformers alone on the policy's own weights.
Several robots on one policy send their frames through the network in one batch.
"""

import copy
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robovlms_ros.bench.policy.cases import STEP, SyntheticFrames
from robovlms_ros.core.schema import require
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, Observation, RoboVLMsError
from robovlms_ros.inference.optimized.optimized_inference import path_for
from robovlms_ros.inference.optimized.options import MODES, FastPathOptions, options_for
from robovlms_ros.inference.reference_inference import Encoded, ReferenceInference, Timer, no_timer
from robovlms_ros.inference.session import PolicySession, normalised_answer
from robovlms_ros.models.backbones import sequence as seq
from robovlms_ros.models.backbones.flamingo_model import Media, attending
from robovlms_ros.models.backbones.sequence import TokenSequence, VisualTokens
from robovlms_ros.models.vla_policy import VLAPolicy


def predict_together(sessions: Sequence[PolicySession], observations: Sequence[Observation]) -> list[ActionChunk]:
    """`predict_action_chunk` of every session with its observation.

    Raises RoboVLMsError when the sessions are of different policies or take different paths, or the
    policy's history is not of frames that the VLM sees alone (`post`, `one_step`) or its head
    generates words; ObservationError as the sessions do.
    """
    policy = sessions[0].policy
    config = policy.config
    if any(session.policy is not policy for session in sessions):
        raise RoboVLMsError("predict_together: the sessions must share one policy; there are several.")
    if any(session.fast != sessions[0].fast for session in sessions):
        raise RoboVLMsError("predict_together: the sessions must take one path; their fast path options differ.")
    if config.model.history_type not in ("post", "one_step") or config.action_head.action_space == "discrete":
        raise RoboVLMsError(
            f"predict_together: history_type '{config.model.history_type}', action_space "
            f"'{config.action_head.action_space}': needs 'post' or 'one_step' and a continuous head. Step the sessions "
            "one by one."
        )
    for session, observation in zip(sessions, observations, strict=True):
        session.observe(observation)
    _encode(sessions)
    return [session.predict_action_chunk(o) for session, o in zip(sessions, observations, strict=True)]


Missing = list[tuple[Encoded, PolicySession]]


@torch.inference_mode()
def _encode(sessions: Sequence[PolicySession]) -> None:
    """The features of every frame that a session's window names and that has none yet."""
    missing: Missing = []
    for session in sessions:
        window = {id(frame.content): frame.content for frame in session._frames.sample()[0]}
        missing += [(frame, session) for frame in window.values() if frame.feature is None]
    unseen = [frame for frame, _ in missing if frame.observation is not None]
    sessions[0]._encode_images(unseen, steady=len(unseen) == len(sessions))
    for group, tokens in _batches(sessions, missing):
        frames = [frame for frame, _ in group]
        visual = {
            name: VisualTokens.join([frame.visual[name] for frame in frames])  # type: ignore[index]
            for name in sessions[0].policy.config.cameras
        }
        state = None if frames[0].state is None else torch.cat([frame.state for frame in frames])  # type: ignore[misc]
        features = sessions[0]._path.features(visual, tokens, state, 1)  # (N, 1, tokens, d)
        for i, frame in enumerate(frames):
            frame.feature = features[i:i + 1]
            frame.visual = None


def _batches(sessions: Sequence[PolicySession], missing: Missing) -> list[tuple[Missing, dict[str, Tensor]]]:
    """Batch of the language model, with its tokens (N, L)."""
    if not missing:
        return []
    if sessions[0].path == "fast":
        groups: dict[str | None, Missing] = {}
        for pair in missing:
            groups.setdefault(pair[1]._instruction, []).append(pair)
        # A view of the session's own tokens: by them the path knows the layout that it made for an
        # earlier step.
        return [(group, {name: ids.expand(len(group), -1) for name, ids in group[0][1]._tokens.items()})
                for group in groups.values()]
    policy = sessions[0].policy
    tokens = policy.tokenize([session._instruction or "" for _, session in missing])
    if policy.config.model.padding != "row_end" and not bool(tokens["attention_mask"].all()):
        raise RoboVLMsError(
            "predict_together: instructions of different lengths with model.padding 'last_column': a padded row would "
            "answer differently. Set padding to 'row_end', take the fast path, or step the sessions one by one."
        )
    return [(missing, tokens)]


def _media(vlm: Any, sequence: TokenSequence) -> Media:
    locations = torch.zeros_like(sequence.mask)
    locations[:, vlm.hf_config.media_column] = True
    return Media(sequence.media, locations)  # type: ignore[arg-type]


def with_output_matrix(policy: VLAPolicy) -> Any:
    """The transformers model that answers with logits: the policy's own modules, the output matrix
    put back."""
    backbone = policy.vlm.backbone
    parts = [getattr(backbone, name) for name in ("text_model", "lang_encoder") if hasattr(backbone, name)]
    root = parts[0] if parts else backbone
    words = policy.vlm.word_embedding.weight
    matrix = nn.Linear(words.shape[1], words.shape[0], bias=False, device="meta")
    matrix.weight = words
    if policy.vlm.spec.name == "qwen":
        return _LanguageModel(policy.vlm.text_tower, matrix)
    twin = copy.copy(root)
    twin._modules = {**root._modules, "lm_head": matrix}
    return twin


class _LanguageModel(nn.Module):
    """Qwen's model takes features of earlier vision layers only with pixels: its two parts, called
    as it calls them."""

    def __init__(self, model: nn.Module, lm_head: nn.Linear):
        super().__init__()
        self.model = model
        self.lm_head = lm_head

    def forward(self, **kwargs: Any) -> Any:
        output = self.model(**kwargs)
        output.logits = self.lm_head(output.last_hidden_state)
        return output


WAYS = ("fast", "fast:PART+...", "fast:QUANTIZATION", "plain", "careful", "logits", "logits_float32", "logits_bfloat16")
BY_HAND = WAYS[4:]
WARM_UP = 3
"""Steps until all that a step of a full window does has run: the first ones find states and layouts
to be made."""


class SessionVariant:
    """The package's own sessions, plain or with the fast path: several robots send their frames in
    one batch, and the answer is the first one's."""

    def __init__(
        self,
        policy: VLAPolicy,
        frames: SyntheticFrames,
        options: FastPathOptions | None,
        robots: int = 1,
    ):
        self.policy = policy
        others = [
            SyntheticFrames(frames.cameras, seed, shape=frames.shape) for seed in range(1, robots)
        ]
        self._frames = [frames, *others]
        self.sessions = [PolicySession(policy, fast=options) for _ in self._frames]
        for session, mine in zip(self.sessions, self._frames, strict=True):
            fill_history(session, mine)

    @property
    def description(self) -> str:
        """Description of the stages."""
        return f"{self.sessions[0].path}: {self.sessions[0].path_reason}"

    def step(self, index: int, timer: Timer | None = None) -> NDArray[np.float64]:
        """(n, A + 1) normalised answer to frame `index`. The stages of several robots are one: the
        timer is given none."""
        if len(self.sessions) == 1:
            self.sessions[0].predict_action_chunk(self._frames[0][index], timer)
        else:
            predict_together(self.sessions, [frames[index] for frames in self._frames])
        return self.sessions[0].normalised


class BaselineVariant:
    """One robot's steps by transformers alone. logits: see the module. History `post`, a continuous
    head."""

    def __init__(self, policy: VLAPolicy, frames: SyntheticFrames, logits: bool):
        self.policy = policy
        self.stages = ReferenceInference(policy)
        self.model = with_output_matrix(policy) if logits else None
        self.features: deque[Tensor] = deque(
            stand_in_features(policy), maxlen=policy.config.model.history_length
        )
        self._frames = frames
        self._tokens: dict[str, Tensor] = {}
        self._instruction = ""

    @property
    def description(self) -> str:
        """Description of the stages."""
        return "model.model(...)" if self.model is None else "model(...) with logits"

    @torch.inference_mode()
    def step(self, index: int, timer: Timer | None = None) -> NDArray[np.float64]:
        """(n, A + 1) normalised answer to frame `index`: the arm, and the gripper's probability."""
        observation = self._frames[index]
        timer = timer or no_timer
        policy = self.policy
        if observation.instruction != self._instruction:
            self._instruction = observation.instruction
            self._tokens = policy.tokenize([observation.instruction])
        with timer("preprocess"):
            images = self.stages.preprocess([observation.images])
        visual = self.stages.encode(images, timer)
        with timer("text"):
            ids = self._tokens["input_ids"]
            mask = self._tokens["attention_mask"]
            sequence = policy.vlm.build_sequence(visual, ids, mask)
            hidden = self._hidden(sequence)
            # (1, 1, latent, d)
            self.features.append(sequence.select(hidden, (seq.ACTION,))[:, None])
        with timer("head"):
            output = policy.head(torch.cat(list(self.features), dim=1))
        with timer("post"):
            arm = output.arm[0, -1].double().cpu().numpy()  # (n, A)
            gripper = output.gripper_logits[0, -1].double().cpu().numpy()  # (n, 1)
            return normalised_answer(arm, gripper, True)

    def _hidden(self, sequence: TokenSequence) -> Tensor:
        """(1, L, d) after the last norm."""
        vlm = self.policy.vlm
        if self.model is None:
            return vlm.run_text_tower(sequence).last_hidden_state
        with nullcontext() if sequence.media is None else attending(_media(vlm, sequence)):
            extra = vlm.positions(sequence)
            output = self.model(inputs_embeds=sequence.embeds * vlm.input_scale, attention_mask=sequence.mask.long(),
                                use_cache=False, output_hidden_states=True, **extra)
        return output.hidden_states[-1]


InferenceVariant = SessionVariant | BaselineVariant
"""One robot's steps, or several robots' in one batch."""


def is_own(name: str) -> bool:
    """True if a way is the package's own: the plain path, or the fast one or parts of it."""
    return name in ("plain", "fast") or name.startswith("fast:")


def options_of(name: str, device_type: str) -> FastPathOptions | None:
    """The fast path's options of one of the package's own ways. Raises FastPathError for an unknown
    part."""
    if name == "plain":
        return None
    part = name.removeprefix("fast").removeprefix(":")
    if not part or part in MODES:
        return options_for(part or "auto", device_type)
    return FastPathOptions.only(*part.split("+"))


def make_way(name: str, policy: VLAPolicy, frames: SyntheticFrames, robots: int = 1) -> InferenceVariant:
    """A way by its name, of several robots in one batch where it is the package's own.

    `fast:prompt_cache+staggered_lstm` is the fast path with these parts alone, `fast:fp8` all of it
    with fp8 weights; `logits_float32`, `logits_bfloat16` run a copy of the policy in that
    precision. Raises ConfigError, FastPathError.
    """
    require(is_own(name) or name in BY_HAND, "path", name, f"one of {', '.join(WAYS)}")
    kind, _, dtype = name.partition("_")
    if is_own(name):
        return SessionVariant(policy, frames, options_of(name, policy.device.type), robots)
    require(robots == 1, f"robots with path '{name}'", robots, "1")
    if dtype:
        policy = copy.deepcopy(policy).to(getattr(torch, dtype))
    return BaselineVariant(policy, frames, kind == "logits")


def countable(
    way: InferenceVariant, name: str, policy: VLAPolicy, frames: SyntheticFrames, robots: int = 1
) -> InferenceVariant:
    """The way itself, or its twin of the same text length without graphs and compiled code, which
    show no operations."""
    options = options_of(name, policy.device.type) if is_own(name) else None
    if options is None or not (options.cuda_graphs or options.compile):
        return way
    bucket = path_for(policy, options).bucket
    options = replace(options, cuda_graphs=False, compile=False, prompt_bucket=bucket)
    return SessionVariant(policy, frames, options, robots)


def stand_in_features(policy: VLAPolicy) -> list[Tensor]:
    """W - 1 features (1, 1, latent, d), so that a window is full from the first frame on, without
    encoding it."""
    generator = torch.Generator().manual_seed(0)
    count = policy.config.model.history_length - 1
    shape = (1, 1, policy.config.action_head.latent, policy.vlm.hidden_size)
    return [torch.randn(shape, generator=generator).to(policy.device, policy.dtype) for _ in range(count)]


@torch.inference_mode()
def fill_history(session: PolicySession, frames: SyntheticFrames) -> None:
    """Stand-in features as the session's earlier frames; frame 0 comes next. On the fast path the
    head has answered each of them, as in an episode, so that what its window keeps is there."""
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
