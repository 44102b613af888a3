"""RoboVLMs' losses on recordings relabelled in hindsight: the action feature also predicts where
the gripper took hold in the end, relative to the hand.

A small model that learns actions alone averages the things that could be meant. The image of a
camera on the hand may be shifted together with its labels: the place beside the hand is then
another one, and the recorded habit knows what is done from there. No checkpoint holds the added
head.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.config.training import HandCameraConfig
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.inference.action_pipeline import ActionPipeline
from robovlms_ros.models.backbones.sequence import VisualTokens
from robovlms_ros.models.heads.discrete import DiscreteHead
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.training.data.augment import draw_shifts, shift_images
from robovlms_ros.training.data.hindsight import FAR, OPEN, Habit
from robovlms_ros.training.engine.batches import model_batch
from robovlms_ros.training.engine.objective import Objective
from robovlms_ros.training.engine.shared_prefix import features_under_instructions

SHARED_PREFIX = ("paligemma", "llava", "smolvlm")
"""Backbones whose language model runs over the images once for all instructions: causal, images
come first, one axis of positions."""


class HindsightObjective(Objective):
    """The objective of `training.hindsight`, for continuous heads. habit: what `relabel` learned.

    Batches have `hindsight` (B, W, 7) and `turns` (B, W, 3, 3) besides; see `WindowDataset`.
    """

    reported = (*Objective.reported, "target_error_m")

    def __init__(self, policy: VLAPolicy, habit: Habit | None = None) -> None:
        super().__init__(policy)
        if isinstance(policy.head, DiscreteHead):
            raise ConfigError(
                "training.hindsight with action_head.type 'discrete': the sequence that generates "
                "tokens has no action feature. Take another head, or leave out training.hindsight."
            )
        assert policy.config.training.hindsight is not None and policy.config.action is not None
        self.hindsight = policy.config.training.hindsight
        width = policy.vlm.hidden_size
        self.place = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 3))
        self._habit = [habit]  # not a module of this one: it does not train
        self._pipeline = ActionPipeline(policy.config.action)

    def inputs(self, batch: Any, generator: torch.Generator, **options: Any) -> dict[str, Any]:
        """As the batch is, or of `Collate.looks`: then C instructions outermost, images once."""
        training = self.policy.config.training
        camera = self.hindsight.hand_camera
        steady: tuple[str, ...] = ()
        if camera is not None:
            batch = self._shifted(batch, camera, generator)
            steady = (camera.name,)
        looks = 1
        if batch["actions"].ndim == 5:
            looks = batch["actions"].shape[1]
            names = ("actions", "mask", "hindsight", *({"weight"} & set(batch)))
            flat = {k: batch[k].transpose(0, 1).flatten(0, 1) for k in names}
            words = [words[c] for c in range(looks) for words in batch["instruction"]]
            batch = {**batch, **flat, "instruction": words}
        result = model_batch(
            self.policy, batch, training.augmentation, generator, training.state_noise, steady
        )
        return {**result, "hindsight": batch["hindsight"].to(self.policy.device), "looks": looks}

    def _features(self, batch: Mapping[str, Any]) -> Tensor:
        looks = batch.get("looks", 1)
        if looks == 1:
            return super()._features(batch)
        vlm = self.policy.vlm
        images = batch["images"]
        window = next(iter(images.values())).shape[1]
        visual = vlm.encode_frames(
            {name: frames.flatten(0, 1).to(self.policy.dtype) for name, frames in images.items()}
        )
        words = [batch[name] for name in ("input_ids", "attention_mask")]
        state = self.policy.normalise_state(batch.get("proprioception"))
        if vlm.spec.name in SHARED_PREFIX:
            ids, mask = (part.unflatten(0, (looks, -1)) for part in words)
            return features_under_instructions(vlm, visual, ids, mask, state, window)
        visual = {name: VisualTokens.join([tokens] * looks) for name, tokens in visual.items()}
        state = None if state is None else state.repeat(looks, 1, 1)
        return vlm.forward_features(visual, *words, state, window)

    def _shifted(
        self, batch: Mapping[str, Any], camera: HandCameraConfig, generator: torch.Generator
    ) -> dict[str, Any]:
        """The batch with the hand camera's images shifted, and its labels with them, where the
        place is known and nothing is held."""
        images = batch["images"][camera.name].to(generator.device)  # (B, W, S, S, 3)
        count, window, size = images.shape[:3]
        seen = batch["hindsight"].clone()  # (B, ..., W, 7)
        every = seen.flatten(1, -2)  # (B, all, 7)
        known = every.isfinite().all(-1)
        free = known.any(1) & ((every[..., 6] >= OPEN) | ~known).all(1)  # (B,)
        pad = max(round(camera.shift * size), 1)
        drawn = draw_shifts(count, pad, torch.zeros((), device=images.device), generator)
        drawn = torch.where(free.to(images.device)[:, None, None, None], drawn, float(pad))
        flat = images.movedim(-1, -3).flatten(1, 2).float()  # (B, W 3, S, S)
        shifted = shift_images(flat, drawn, pad).round_().to(torch.uint8)
        shifted = shifted.unflatten(1, (window, 3)).movedim(2, -1)
        shifts = (pad - drawn).flatten(1).cpu()  # (B, 2): pixels right, down
        turns = batch["turns"]
        if seen.ndim == 4:  # under C instructions
            turns = turns[:, None].expand(-1, seen.shape[1], -1, -1, -1)
        seen[..., :3] += self._ways(shifts, seen, turns, camera, size)
        moved = (free & (shifts != 0).any(1)).view(-1, *[1] * (seen.ndim - 2))
        actions = self._relabelled(batch["actions"], seen, moved)
        mask = batch["mask"]
        if self.policy.config.cameras == (camera.name,):
            hidden = ~self._in_view(seen, turns, camera) & (seen[..., 6] >= OPEN)
            mask = mask & ~hidden[..., None]
            seen[hidden] = torch.nan
        return {
            **batch,
            "images": {**batch["images"], camera.name: shifted},
            "hindsight": seen,
            "actions": actions,
            "mask": mask,
        }

    @staticmethod
    def _ways(
        shifts: Tensor, seen: Tensor, turns: Tensor, camera: HandCameraConfig, size: int
    ) -> Tensor:
        """Way in the base frame (m) of pixels (B, 2) at the place's distance. seen (B, ..., 7),
        turns (B, ..., 3, 3); (B, ..., 3)."""
        depth = (turns[..., 2] * seen[..., :3]).sum(-1) - camera.position[2]  # along the tool's z
        across = torch.stack(_turned(shifts[:, 0], shifts[:, 1], camera), dim=-1)  # tool frame
        across = across.view(-1, *[1] * (seen.ndim - 2), 1, 2)
        pixel = depth * _view(camera) / size  # m
        return pixel[..., None] * (turns[..., :2] * across).sum(-1)

    @staticmethod
    def _in_view(seen: Tensor, turns: Tensor, camera: HandCameraConfig) -> Tensor:
        """(B, ...): the places that lie within the camera's image."""
        way = (turns * seen[..., :3, None]).sum(-2)  # tool frame
        x, y, depth = (way[..., i] - camera.position[i] for i in range(3))
        angle = replace(camera, turn=-camera.turn)
        right, down = _turned(x, y, angle)
        half = _view(camera) / 2 * depth
        return (depth > 0) & (right.abs() < half) & (down.abs() < half)

    def _relabelled(self, actions: Tensor, seen: Tensor, moved: Tensor) -> Tensor:
        """Actions (B, ..., n, D) on the head's scale; the habit's where the image was moved and the
        place is known."""
        habit = self._habit[0]
        chosen = moved & seen.isfinite().all(-1)  # (B, ...)
        if habit is None or not bool(chosen.any()):
            return actions
        arm, gripper = self._pipeline.encode(habit.chunks(seen[chosen].numpy()))
        values = np.concatenate((arm, gripper[..., None]), axis=-1)
        actions = actions.clone()
        actions[chosen] = torch.from_numpy(values).to(actions.dtype)
        return actions

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        result = self._continuous(batch)
        features = result.pop("features")  # (B, T, tokens, d)
        with torch.autocast(features.device.type, enabled=False):
            loss, error = self._place_loss(features.float().mean(2), batch["hindsight"])
        loss = result["loss"] + self.hindsight.weight * loss
        return {**result, "loss": loss, "target_error_m": error}

    def _place_loss(self, token: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """token (B, T, d), seen (B, W, 7): the loss, and the mean distance (m) between where the
        gripper took hold and where the model sees it."""
        wanted = seen[:, -token.shape[1] :, :3] / FAR
        known = wanted.isfinite().all(-1)
        guess = self.place(token)[known]
        places = wanted[known]
        count = max(len(places), 1)
        loss = functional.smooth_l1_loss(guess, places, beta=0.1, reduction="sum") / (3 * count)
        return loss, (guess.detach() - places).norm(dim=-1).sum() / count * FAR


def _view(camera: HandCameraConfig) -> float:
    """Width of what the camera sees per metre of distance."""
    return 2 * math.tan(math.radians(camera.field_of_view) / 2)


def _turned(right: Tensor, down: Tensor, camera: HandCameraConfig) -> tuple[Tensor, Tensor]:
    """From the image's directions to the tool's x and y."""
    angle = math.radians(camera.turn)
    x = math.cos(angle) * right - math.sin(angle) * down
    y = math.sin(angle) * right + math.cos(angle) * down
    return x, y
