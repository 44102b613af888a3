"""The policy as a module: observations as tensors in, normalised action chunks out."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robovlms_ros.config.policy import HeadConfig, PolicyConfig
from robovlms_ros.core.registry import resolve
from robovlms_ros.core.schema import did_you_mean
from robovlms_ros.models.backbones.spec import BackboneError, BackboneSpec, template_of
from robovlms_ros.models.heads.base import HeadError, HeadOutput, PolicyHead
from robovlms_ros.models.heads.discrete import ActionTokenizer, DiscreteHead
from robovlms_ros.models.heads.fc import FCHead
from robovlms_ros.models.heads.gpt import GPTHead
from robovlms_ros.models.heads.lstm import LSTMHead
from robovlms_ros.models.tokenization import PromptTokenizer, TokenizerError

log = logging.getLogger(__name__)


def build_head(config: HeadConfig, in_features: int, horizon: int, window: int) -> PolicyHead:
    """The continuous head that `config` names, randomly initialised.

    in_features: width d of the backbone's action features. horizon: steps of a chunk. window:
        frames of history.
    Raises HeadError for a setting that does not fit.
    """
    shared: dict[str, Any] = {
        "in_features": in_features,
        "horizon": horizon,
        "hidden_size": config.hidden_size,
        "down_sample": config.down_sample,
        "latent": config.latent,
        "arm_dims": config.action_dim - 1,
    }
    sequence: dict[str, Any] = {"window": window, "dropout": config.dropout}
    if config.num_layers is not None:
        sequence["num_layers"] = config.num_layers
    if config.type == "lstm":
        return LSTMHead(**shared, **sequence)
    if config.type == "gpt":
        return GPTHead(**shared, **sequence)
    if config.type == "fc":
        return FCHead(**shared)
    known = did_you_mean(config.type, ("lstm", "gpt", "fc"))
    raise HeadError(f"action_head.type = {config.type!r} is not a continuous head.{known}")


def build_discrete_head(config: HeadConfig, vocab_size: int, special_tokens: int, horizon: int) -> DiscreteHead:
    """The discrete head over a tokenizer of `vocab_size` entries, `special_tokens` of them
    special."""
    tokens = ActionTokenizer(vocab_size, special_tokens, config.n_bin, config.min_action, config.max_action)
    return DiscreteHead(tokens, horizon, config.action_dim)


class VLAPolicy(nn.Module):
    """Backbone and head, randomly initialised (`load_policy` fills them).

    tokenizer: a transformers tokenizer that fits the backbone; None for a policy that is only given
        token ids.
    folder: where the pretrained VLM's configuration lies. empty_backbone: the VLM's weights will
        come from a file.
    `is_random` is True until a checkpoint is loaded or training ends; `identity` names the
    policy in its answers (a loaded one's with its passport, see `checkpoints.passport`).
    `fp8_scales`: largest input of the text model's linear layers by name, as calibrated; empty
    where they are not.
    """

    def __init__(
        self, config: PolicyConfig, tokenizer: Any = None, folder: Path | None = None, empty_backbone: bool = False
    ):
        super().__init__()
        self.config = config
        self.is_random = True
        self.fp8_scales: dict[str, float] = {}
        self.identity = f"{config.model.backbone}-{config.action_head.type}"
        adapter = resolve("backbone", config.model.backbone)
        vocab_size = len(tokenizer) if tokenizer is not None and config.vlm.size == "tiny" else None
        self.vlm = adapter(config, vocab_size, folder, empty_backbone)
        self.prompt = _prompt(config, tokenizer, adapter.spec)
        horizon = config.model.action_chunk_size
        window = config.model.history_length
        if config.action_head.action_space == "discrete":
            if adapter.spec.fusion != "splice":
                raise BackboneError(
                    f"action_head.type 'discrete' with backbone '{adapter.spec.name}': a model that attends to images "
                    "from outside its sequence does not generate action tokens. Use action_space 'down_sample', or "
                    "a backbone that splices images in."
                )
            special = 5 if self.prompt is None else self.prompt.special_tokens
            vocabulary = self.vlm.word_embedding.num_embeddings if self.prompt is None else self.prompt.vocab_size
            self.head: nn.Module = build_discrete_head(config.action_head, vocabulary, special, horizon)
        else:
            self.head = build_head(config.action_head, self.vlm.hidden_size, horizon, window)
            if config.vlm.temperature:
                log.info("vlm.temperature = %g has no effect with a continuous action head", config.vlm.temperature)
        self._keep_state_statistics()

    def _keep_state_statistics(self) -> None:
        proprioception = self.config.proprioception
        if proprioception is None:
            return
        mean = torch.tensor(proprioception.mean or (0.0,) * proprioception.size)
        std = torch.tensor(proprioception.std or (1.0,) * proprioception.size)
        self.register_buffer("state_mean", mean, persistent=False)
        self.register_buffer("state_std", std, persistent=False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, batch: Mapping[str, Any]) -> HeadOutput:
        """The chunk of every frame of a batch of windows.

        batch: `images` camera -> (B, W, 3, S, S) normalised pixels; `input_ids`, `attention_mask`
        (B, L); with proprioception `proprioception` (B, W, P), raw SI values. Returns arm (B, T, n,
        A), gripper_logits (B, T, n, 1), T = W (1 with history_type `video`).
        """
        return self.head(self.action_features(batch))

    def action_features(self, batch: Mapping[str, Any]) -> Tensor:
        """Action features (B, T, tokens, d): the head's input, and that of auxiliary losses."""
        images = batch["images"]
        window = next(iter(images.values())).shape[1]
        visual = self.vlm.encode_frames({k: v.flatten(0, 1).to(self.dtype) for k, v in images.items()})
        state = self.normalise_state(batch.get("proprioception"))
        return self.vlm.forward_features(visual, batch["input_ids"], batch["attention_mask"], state, window)

    def normalise_state(self, state: Tensor | None) -> Tensor | None:
        """Raw proprioception (..., P) on the scale that the network sees."""
        if state is None or self.config.proprioception is None:
            return None
        return ((state.float() - self.state_mean) / self.state_std).to(self.dtype)

    def tokenize(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, L) on the policy's device. Raises
        ObservationError."""
        tokens = self.require_prompt().encode(instructions)
        return {"input_ids": tokens.input_ids.to(self.device), "attention_mask": tokens.attention_mask.to(self.device)}

    def require_prompt(self) -> PromptTokenizer:
        """The tokenizer. Raises TokenizerError when the policy was built without one."""
        if self.prompt is None:
            raise TokenizerError(
                "the policy has no tokenizer: put the VLM's tokenizer files into the checkpoint's folder."
            )
        return self.prompt


def _prompt(config: PolicyConfig, tokenizer: Any, spec: BackboneSpec) -> PromptTokenizer | None:
    if tokenizer is None:
        return None
    generates = config.action_head.action_space == "discrete"
    return PromptTokenizer(tokenizer, template_of(config, spec), config.vlm.max_length, open_end=generates)
