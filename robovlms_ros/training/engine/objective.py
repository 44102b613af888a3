"""Objective of a training step: RoboVLMs' losses on a policy's answer to a batch of windows.

Huber for the arm, cross entropy for the gripper, token cross entropy for the discrete head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.inference.action_pipeline import ActionPipeline
from robovlms_ros.models.action_tokens import training_logits
from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.heads.discrete import ActionTokenizer, DiscreteHead
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.training.engine.batches import model_batch

GRIPPER_WEIGHT = 0.01


@dataclass(frozen=True)
class ActionLoss:
    """Scalars: arm (Huber), gripper (binary cross entropy), gripper_accuracy (share of right
    decisions).

    steps: (B, W, n) the arm's loss of every step, detached; 0 where the mask is False.
    """

    arm: Tensor
    gripper: Tensor
    gripper_accuracy: Tensor
    steps: Tensor

    def total(self, gripper_weight: float = GRIPPER_WEIGHT) -> Tensor:
        """The minimised sum; the weight is RoboVLMs' arm_gripper_loss_ratio."""
        return self.arm + gripper_weight * self.gripper


def action_loss(
    output: HeadOutput, arm: Tensor, gripper: Tensor, mask: Tensor | None = None,
    delta: float = 1.0, weight: Tensor | None = None,
) -> ActionLoss:
    """arm (B, W, n, A) normalised targets, gripper (B, W, n) labels 0 or 1, mask (B, W, n) bool:
    steps that count.

    delta: half-width of the Huber loss' quadratic part, on the head's scale; beyond it the loss has
    slope 1. weight: (B, W) factors of both losses, by frame. Means are over the elements that the
    mask selects, with any weight; 0 when it selects none.
    """
    logits = output.gripper_logits.squeeze(-1)  # (B, W, n)
    chosen = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask.bool()
    count = chosen.sum().clamp(min=1)
    # Targets are emptied before the loss, not after: NaN there would reach the gradient through a
    # product with 0.
    labels = gripper.to(logits.dtype).masked_fill(~chosen, 0.0)
    targets = arm.to(output.arm.dtype).masked_fill(~chosen[..., None], 0.0)
    huber = (
        functional.huber_loss(output.arm, targets, reduction="none", delta=delta).mean(dim=-1)
        / delta
    )  # (B, W, n)
    entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    right = ((torch.sigmoid(logits) > 0.5) == (labels > 0.5)).to(logits.dtype)
    huber, entropy, right = (x.masked_fill(~chosen, 0.0) for x in (huber, entropy, right))
    if weight is not None:
        huber = huber * weight[..., None]
        entropy = entropy * weight[..., None]
    return ActionLoss(
        huber.sum() / count, entropy.sum() / count, right.sum() / count, huber.detach()
    )


@dataclass(frozen=True)
class TokenLoss:
    """Scalars: cross_entropy over all labelled tokens; over the action tokens, l1 of their
    values, arm_accuracy and gripper_accuracy (share of steps' tokens predicted exactly)."""

    cross_entropy: Tensor
    l1: Tensor
    arm_accuracy: Tensor
    gripper_accuracy: Tensor


def token_loss(
    logits: Tensor, labels: Tensor, tokens: ActionTokenizer, dims: int = 7,
    weight: Tensor | None = None,
) -> TokenLoss:
    """logits (B, L, V), labels (B, L) with -100 where nothing is learned; the token at i + 1 is
    predicted at i.

    weight: (B, L) factors of the cross entropy. The labels' action tokens must be whole steps of
    `dims`, gripper last. Raises ValueError otherwise.
    """
    logits = logits[:, :-1]
    labels = labels[:, 1:]
    scores = logits.flatten(0, 1).float()
    each = functional.cross_entropy(scores, labels.flatten(), ignore_index=-100, reduction="none")
    factors = 1.0 if weight is None else weight[:, 1:].flatten()
    entropy = (each * factors).sum() / (labels != -100).sum()
    chosen = torch.from_numpy(tokens.is_action(labels.cpu().numpy())).to(labels.device)
    truth = labels[chosen]
    guess = logits.argmax(dim=-1)[chosen]
    if len(truth) == 0 or len(truth) % dims:
        raise ValueError(f"labels hold {len(truth)} action tokens: must be a multiple of {dims} above 0.")
    right = (truth == guess).view(-1, dims).float()
    distance = torch.from_numpy(tokens.decode(truth.cpu().numpy()) - tokens.decode(guess.cpu().numpy())).abs().mean()
    return TokenLoss(entropy, distance, right[:, :-1].mean(), right[:, -1].mean())


class Objective(nn.Module):
    """The policy and its loss as one module, so that a wrapper for several devices sees one forward
    pass.

    `forward` takes `batches.model_batch` and returns scalars: `loss` (what is minimised), `arm`
    (Huber, or the tokens' cross entropy), `gripper` (cross entropy; 0 with tokens),
    `gripper_accuracy`, `count` (steps that the mask selects); `newest` (B, n, D), the answer to
    each window's newest frame on the head's scale, the gripper's class last (NaN where tokens are
    not labelled); and, not with tokens, `windows` (B,), the arm's loss of each window, for sampling
    by loss. Tokens are predicted with the true ones before them.

    A derived objective has windows of its own: `inputs` prepares them, `forward` returns the
    scalars in `reported` and may return `windows`. Modules that it adds train beside the policy; no
    checkpoint holds them.
    """

    reported: tuple[str, ...] = ("loss", "arm", "gripper", "gripper_accuracy")
    """Scalars of `forward` that the curve has, `loss` first."""

    def __init__(self, policy: VLAPolicy):
        super().__init__()
        self.policy = policy
        if isinstance(policy.head, DiscreteHead) and policy.config.proprioception is not None:
            raise ConfigError(
                "proprioception with action_head.type 'discrete': the sequence that generates action tokens has no "
                "place for the robot's state in training. Leave out proprioception, or use another head."
            )

    def inputs(self, batch: Any, generator: torch.Generator, **options: Any) -> dict[str, Any]:
        """The argument of `forward`, augmented; draws everything that is random from `generator`.

        batch: of the loader, or of a `stages.WindowSource`. options: `stages.Stage.options`.
        """
        training = self.policy.config.training
        return model_batch(
            self.policy, batch, training.augmentation, generator, training.state_noise
        )

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        if isinstance(self.policy.head, DiscreteHead):
            return self._tokens(batch)
        result = self._continuous(batch)
        del result["features"]
        return result

    def _continuous(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Results of `forward`, and `features` (B, T, tokens, d), those of the head."""
        features = self._features(batch)
        # The head is small: in float32 it costs little, and half precision blurs the actions.
        with torch.autocast("cpu" if features.is_meta else features.device.type, enabled=False):
            output = self.policy.head(features.float())
        frames = output.arm.shape[1]  # 1 with history `video`: the answer is to the newest frame
        mask = batch["mask"][:, -frames:]
        training = self.policy.config.training
        arm = batch["arm"][:, -frames:]
        weight = batch["weight"][:, -frames:] if "weight" in batch else None
        losses = action_loss(output, arm, batch["gripper"][:, -frames:], mask, training.huber,
                             weight)
        newest = torch.cat([output.arm[:, -1], (output.gripper_logits[:, -1] > 0).float()], dim=-1)
        return {
            "loss": losses.total(training.arm_gripper_loss_ratio),
            "arm": losses.arm.detach(),
            "gripper": losses.gripper.detach(),
            "gripper_accuracy": losses.gripper_accuracy.detach(),
            "count": mask.sum(),
            "newest": newest.detach(),
            "windows": losses.steps.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1),
            "features": features,
        }

    def _features(self, batch: Mapping[str, Any]) -> Tensor:
        return self.policy.action_features(batch)

    def _tokens(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        policy = self.policy
        head = self.policy.head
        assert isinstance(head, DiscreteHead)
        visual = policy.vlm.encode_frames({k: v.flatten(0, 1).to(policy.dtype) for k, v in batch["images"].items()})
        names = ("input_ids", "attention_mask", "labels")
        logits, labels = training_logits(policy.vlm, visual, *(batch[name] for name in names))
        newest = self._newest(logits.detach(), labels, batch["mask"])
        zero = logits.detach().sum() * 0
        parts = {"gripper": zero, "gripper_accuracy": zero, "count": batch["mask"].sum(), "newest": newest}
        if not bool(batch["mask"].any()):
            return {"loss": logits.sum() * 0, "arm": zero, **parts}
        weight = batch.get("weight")
        if weight is not None:  # of frames: a window's frames are one sequence
            weight = weight.repeat_interleave(labels.shape[1] // weight.shape[1], dim=1)
        losses = token_loss(logits, labels, head.tokens, head.dims, weight)
        entropy = losses.cross_entropy
        return {**parts, "loss": entropy, "arm": entropy.detach(), "gripper_accuracy": losses.gripper_accuracy}

    def _newest(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """(B, n, D) decoded from the most likely token at each labelled place of a window's
        newest frame."""
        head = self.policy.head
        assert isinstance(head, DiscreteHead)
        guess = logits[:, :-1].argmax(dim=-1).cpu().numpy()
        truth = labels[:, 1:].cpu().numpy()
        result = np.full((*mask.shape[::2], head.dims), np.nan)  # (B, n, D)
        for row, (ids, wanted, counts) in enumerate(zip(guess, truth, mask[:, -1].cpu().numpy(), strict=True)):
            places = np.flatnonzero(head.tokens.is_action(wanted))
            steps = int(counts.sum())
            if steps:
                values = head.tokens.decode(ids[places[-steps * head.dims :]]).reshape(steps, head.dims)
                values[:, -1] = values[:, -1] > 0
                result[row, counts] = values
        return torch.from_numpy(result).to(logits.device, torch.float32)


def open_loop_errors(config: PolicyConfig, newest: Tensor, batch: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    """Sums and counts of the error of `newest` (B, n, D) against the batch's own chunks, in SI
    units.

    `translation` (m) and `rotation` (rad: norm of the difference of the three numbers) of
    end-effector spaces, `joints` (rad: largest joint) of joint spaces; `gripper_wrong` (share).
    Without an `action` block: `arm`, the mean absolute error on the head's scale.
    """
    chosen = batch["mask"][:, -1].cpu().numpy()  # (B, n)
    guess = newest.cpu().double().numpy()[chosen]  # (N, D)
    truth = np.concatenate([batch["arm"][:, -1].cpu().double().numpy()[chosen],
                            batch["gripper"][:, -1, :, None].cpu().double().numpy()[chosen]], axis=-1)
    errors = {"gripper_wrong": (guess[:, -1] > 0.5) != (truth[:, -1] > 0.5)}
    if config.action is None:
        errors["arm"] = np.abs(guess - truth)[:, :-1].mean(axis=-1)
    else:
        arms = [guess[:, :-1], truth[:, :-1]]
        for step in ActionPipeline(config.action).steps:
            arms = [step.decode(values) for values in arms]
        difference = arms[0] - arms[1]
        if config.action.space.startswith("eef"):
            errors["translation"] = np.linalg.norm(difference[:, :3], axis=-1)
            errors["rotation"] = np.linalg.norm(difference[:, 3:6], axis=-1)
        else:
            errors["joints"] = np.abs(difference).max(axis=-1)
    return {name: (float(values.sum()), len(values)) for name, values in errors.items()}
