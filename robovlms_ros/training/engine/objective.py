"""The loss of a training step: RoboVLMs' on a policy's answer to a batch of windows; others
derive from it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.inference.action_pipeline import ActionPipeline
from robovlms_ros.models.action_tokens import training_logits
from robovlms_ros.models.heads.discrete import DiscreteHead
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.training.engine.batches import model_batch
from robovlms_ros.training.engine.losses import action_loss, token_loss


class Objective(nn.Module):
    """The policy and its loss as one module, so that a wrapper for several devices sees one forward
    pass.

    `forward` takes `batches.model_batch` and returns scalars: `loss` (what is minimised), `arm`
    (Huber, or the tokens' cross entropy), `gripper` (cross entropy; 0 with tokens),
    `gripper_accuracy`, `count` (steps that the mask selects); `newest` (B, n, D), the answer to each
    window's newest frame on the head's scale, the gripper's class last (NaN where tokens are not
    labelled); and, not with tokens, `windows` (B,), the arm's loss of each window, for sampling by
    loss. Tokens are predicted with the true ones before them.

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
        return self._tokens(batch) if isinstance(self.policy.head, DiscreteHead) else self._continuous(batch)

    def _continuous(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        features = self.policy.action_features(batch)
        # The head is small: in float32 it costs little, and half precision blurs the actions.
        with torch.autocast("cpu" if features.is_meta else features.device.type, enabled=False):
            output = self.policy.head(features.float())
        frames = output.arm.shape[1]  # 1 with history `video`: the answer is to the newest frame
        mask = batch["mask"][:, -frames:]
        training = self.policy.config.training
        arm = batch["arm"][:, -frames:]
        losses = action_loss(output, arm, batch["gripper"][:, -frames:], mask, training.huber)
        newest = torch.cat([output.arm[:, -1], (output.gripper_logits[:, -1] > 0).float()], dim=-1)
        return {
            "loss": losses.total(training.arm_gripper_loss_ratio),
            "arm": losses.arm.detach(),
            "gripper": losses.gripper.detach(),
            "gripper_accuracy": losses.gripper_accuracy.detach(),
            "count": mask.sum(),
            "newest": newest.detach(),
            "windows": losses.steps.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1),
        }

    def _tokens(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        policy, head = self.policy, self.policy.head
        assert isinstance(head, DiscreteHead)
        visual = policy.vlm.encode_frames({k: v.flatten(0, 1).to(policy.dtype) for k, v in batch["images"].items()})
        names = ("input_ids", "attention_mask", "labels")
        logits, labels = training_logits(policy.vlm, visual, *(batch[name] for name in names))
        newest = self._newest(logits.detach(), labels, batch["mask"])
        zero = logits.detach().sum() * 0
        parts = {"gripper": zero, "gripper_accuracy": zero, "count": batch["mask"].sum(), "newest": newest}
        if not bool(batch["mask"].any()):
            return {"loss": logits.sum() * 0, "arm": zero, **parts}
        losses = token_loss(logits, labels, head.tokens, head.dims)
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
