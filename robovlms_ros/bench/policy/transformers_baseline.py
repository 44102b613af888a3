"""A step as one writes it with transformers alone: the yardsticks, with the policy's own weights.

`logits` calls the model as its documentation does, `model(...)` with all hidden states: the answer carries the logits
of every position. `careful` calls what lies under the output matrix, `model.model(...)`. Both squash the images with
Pillow, run the vision tower once per camera, splice the sequence together for every frame, and run the head over the
whole window, as RoboVLMs' own evaluation does. The output matrix is the word embedding, tied or not: it costs no memory
of its own.
"""

import copy
from collections import deque
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robovlms_ros.core.types import Observation
from robovlms_ros.inference.reference_inference import ReferenceInference, Timer, no_timer
from robovlms_ros.inference.session import normalised_answer
from robovlms_ros.models.backbones import sequence as seq
from robovlms_ros.models.backbones.flamingo_model import Media, attending
from robovlms_ros.models.backbones.sequence import TokenSequence
from robovlms_ros.models.vla_policy import VLAPolicy


class TransformersBaseline:
    """One robot's steps. logits: see the module. features: of the last W frames. History `post`, a continuous head."""

    def __init__(self, policy: VLAPolicy, logits: bool):
        self.policy, self.logits = policy, logits
        self.stages = ReferenceInference(policy)
        self.model = with_output_matrix(policy) if logits else None
        self.features: deque[Tensor] = deque(maxlen=policy.config.model.history_length)
        self._tokens: dict[str, Tensor] = {}
        self._instruction = ""

    @torch.inference_mode()
    def step(self, observation: Observation, timer: Timer | None = None) -> NDArray[np.float64]:
        """(n, A + 1) normalised answer to the newest frame: the arm, and the gripper's probability."""
        timer = timer or no_timer
        policy = self.policy
        if observation.instruction != self._instruction:
            self._instruction, self._tokens = observation.instruction, policy.tokenize([observation.instruction])
        with timer("preprocess"):
            images = self.stages.preprocess([observation.images])
        visual = self.stages.encode(images, timer)
        with timer("text"):
            ids, mask = self._tokens["input_ids"], self._tokens["attention_mask"]
            sequence = policy.vlm.build_sequence(visual, ids, mask)
            hidden = self._hidden(sequence)
            self.features.append(sequence.select(hidden, (seq.ACTION,))[:, None])  # (1, 1, latent, d)
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


def _media(vlm: Any, sequence: TokenSequence) -> Media:
    locations = torch.zeros_like(sequence.mask)
    locations[:, vlm.hf_config.media_column] = True
    return Media(sequence.media, locations)  # type: ignore[arg-type]


def with_output_matrix(policy: VLAPolicy) -> Any:
    """The transformers model that answers with logits: the policy's own modules, the output matrix put back."""
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
    """Qwen's model takes features of earlier vision layers only with pixels: its two parts, called as it calls them."""

    def __init__(self, model: nn.Module, lm_head: nn.Linear):
        super().__init__()
        self.model, self.lm_head = model, lm_head

    def forward(self, **kwargs: Any) -> Any:
        output = self.model(**kwargs)
        output.logits = self.lm_head(output.last_hidden_state)
        return output
