"""Losses of imitation: Huber for the arm, cross entropy for the gripper, token cross entropy for
the discrete head."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.heads.discrete import ActionTokenizer

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
        """What is minimised; the weight is RoboVLMs' arm_gripper_loss_ratio."""
        return self.arm + gripper_weight * self.gripper


def action_loss(
    output: HeadOutput, arm: Tensor, gripper: Tensor, mask: Tensor | None = None, delta: float = 1.0
) -> ActionLoss:
    """arm (B, W, n, A) normalised targets, gripper (B, W, n) labels 0 or 1, mask (B, W, n) bool:
    steps that count.

    delta: half-width of the Huber loss' quadratic part, on the head's scale; beyond it the loss has
    slope 1. Means are over the elements that the mask selects; 0 when it selects none.
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


def token_loss(logits: Tensor, labels: Tensor, tokens: ActionTokenizer, dims: int = 7) -> TokenLoss:
    """logits (B, L, V), labels (B, L) with -100 where nothing is learned; the token at i + 1 is
    predicted at i.

    The labels' action tokens must be whole steps of `dims`, gripper last. Raises ValueError
    otherwise.
    """
    logits, labels = logits[:, :-1], labels[:, 1:]
    entropy = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
    chosen = torch.from_numpy(tokens.is_action(labels.cpu().numpy())).to(labels.device)
    truth, guess = labels[chosen], logits.argmax(dim=-1)[chosen]
    if len(truth) == 0 or len(truth) % dims:
        raise ValueError(f"labels hold {len(truth)} action tokens: must be a multiple of {dims} above 0.")
    right = (truth == guess).view(-1, dims).float()
    distance = torch.from_numpy(tokens.decode(truth.cpu().numpy()) - tokens.decode(guess.cpu().numpy())).abs().mean()
    return TokenLoss(entropy, distance, right[:, :-1].mean(), right[:, -1].mean())
