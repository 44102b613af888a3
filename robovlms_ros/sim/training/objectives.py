"""Objectives on recorded shards: behaviour cloning of the scripted expert under several
instructions at once.

A window is learned under every instruction; its images are encoded once. The action feature also
predicts the place of the named cube and of all cubes: without these auxiliary losses a small model
averages the cubes and ignores the instruction. The simulator's ground truth serves in training
only; no checkpoint holds the auxiliary heads. Without it (`ground_truth: false`) a window has only
a real recording's content: the followed instruction, the executed actions, and with `hindsight:
true` the place where the hand closed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.core.types import RobotState
from robovlms_ros.inference.action_pipeline import ActionPipeline
from robovlms_ros.inference.proprioception import state_vector
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.sim.tasks.language import INSTRUCTIONS
from robovlms_ros.sim.tasks.objects import THINGS
from robovlms_ros.sim.training.hindsight import CUBE_GOALS, followed_cubes, grasped_places
from robovlms_ros.sim.training.recipe import Recipe
from robovlms_ros.sim.training.shards import Columns
from robovlms_ros.sim.training.shared_prefix import features_under_instructions
from robovlms_ros.sim.world import CAMERAS
from robovlms_ros.training.engine.batches import noisy_state, normalised_images
from robovlms_ros.training.engine.losses import ActionLoss, action_loss
from robovlms_ros.training.engine.objective import Objective

PLACE_SCALE = 0.1
"""Metres per unit of the auxiliary targets."""
_CUBES = [THINGS.index(goal.thing) for goal in INSTRUCTIONS.values()]


@dataclass(frozen=True)
class CubeWindows:
    """B windows of W frames, oldest first. K runs over cameras, C over the cubes.

    images: (B, W, K, S, S, 3) uint8. states: (B, W, P), raw proprioception. hands (B, W, 3), cubes
    (B, W, C, 3): m in the base frame. arm (B, W, C, n, A), opened (B, W, C, n): the expert's chunk
    for each cube, as the head's targets. followed (B, W) int64: which of the cubes was asked for.
    grasped (B, W, C, 3): `hindsight.grasped_places`.
    """

    images: Tensor
    states: Tensor
    hands: Tensor
    cubes: Tensor
    arm: Tensor
    opened: Tensor
    followed: Tensor
    grasped: Tensor


class CubeAuxiliary(nn.Module):
    """From the action feature to where things are, relative to the hand: the named cube and,
    unless `named_alone`, all cubes."""

    def __init__(self, width: int, named_alone: bool = False) -> None:
        super().__init__()
        self.named = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 3))
        if not named_alone:
            self.all = nn.Sequential(
                nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 3 * len(INSTRUCTIONS))
            )


def initialise(policy: VLAPolicy, seed: int) -> None:
    """Random weights as a small model needs them: places as loud as pixels, an action token that is
    not zero.

    SigLIP's own position embeddings have a seventh of the norm of what a white table adds to every
    patch.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith("position_embedding.weight"):
                parameter.mul_(4.0)
            elif name.endswith("action_token"):
                parameter.copy_(0.08 * torch.randn(parameter.shape, generator=generator))


class ShardObjective(Objective):
    """An objective on windows of recorded shards, by a recipe.

    kind: a dataclass of `images` and the columns, as which windows come.
    """

    reported = ("loss", "arm", "gripper", "target_error_m")
    kind: type

    def __init__(self, policy: VLAPolicy, recipe: Recipe, ground_truth: bool) -> None:
        super().__init__(policy)
        assert policy.config.action is not None
        self.recipe = recipe
        self.ground_truth = ground_truth
        self._pipeline = ActionPipeline(policy.config.action)
        self._augmentation = recipe.augmentation(policy.vlm.image_size)

    def columns(self, shard: Columns) -> Columns:
        """The columns that are kept of a recorded shard, by the names of `kind`."""
        raise NotImplementedError

    def _images(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """(B, W, K, S, S, 3) uint8 to the policy's cameras' (B, W, 3, S, S), augmented."""
        recorded = list(CAMERAS)
        names = self.policy.config.cameras
        chosen = [recorded.index(name) for name in names]
        seen = images[:, :, chosen].transpose(1, 2).flatten(0, 1)  # (B K, W, S, S, 3)
        pixels = normalised_images(self.policy, seen, self._augmentation, generator)
        of_cameras = pixels.unflatten(0, (len(images), len(names))).unbind(1)
        return dict(zip(names, of_cameras, strict=True))

    def _state(self, states: Tensor, generator: torch.Generator) -> Tensor | None:
        """Raw proprioception (B, W, P) on the network's scale and under noise; None for a policy
        without."""
        noisy = noisy_state(self.policy, states, self.recipe.state_noise, generator)
        return self.policy.normalise_state(noisy)

    def _act(self, features: Tensor, arm: Tensor, opened: Tensor) -> tuple[Tensor, ActionLoss]:
        """The weighted loss of the actions, and its parts."""
        recipe = self.recipe
        losses = action_loss(self.policy.head(features), arm, opened, delta=recipe.huber)
        return recipe.arm * losses.arm + recipe.gripper * losses.gripper, losses


class CubeObjective(ShardObjective):
    """The two cubes. ground_truth: the simulator's knowledge serves; without it a window is
    learned under the instruction that its newest frame followed, and with hindsight the place
    where the hand closed under the instruction that it closed for."""

    kind = CubeWindows

    def __init__(
        self, policy: VLAPolicy, recipe: Recipe, ground_truth: bool = True, hindsight: bool = False
    ) -> None:
        super().__init__(policy, recipe, ground_truth)
        width = policy.vlm.hidden_size
        self.auxiliary = CubeAuxiliary(width, not ground_truth) if ground_truth or hindsight else None

    def columns(self, shard: Columns) -> Columns:
        # A frame's labels begin with the followed goal's; here they follow the instructions' order.
        asked = np.array(CUBE_GOALS)[:, None]
        order = np.argmax(shard["goals"][:, None] == asked, axis=2)  # (F, C)
        labels = np.take_along_axis(shard["labels"], order[:, :, None, None], axis=1)
        arm, opened = self._pipeline.encode(labels)
        return {
            "states": raw_states(self.policy, shard),
            "hands": shard["poses"][:, :3, 3],
            "cubes": shard["things"][:, _CUBES],
            "arm": arm,
            "opened": opened.astype(np.float32),
            "followed": followed_cubes(shard),
            "grasped": grasped_places(shard),
        }

    def inputs(
        self, batch: CubeWindows, generator: torch.Generator, **options: Any
    ) -> dict[str, Any]:
        """The windows under each of the C instructions; under the followed one alone where
        nothing else is known."""
        images = self._images(batch.images, generator)
        words = self.policy.tokenize(list(INSTRUCTIONS))
        if self.auxiliary is None:
            now = batch.followed[:, -1]
            words = {name: tokens[now][None] for name, tokens in words.items()}
        return {
            **words,
            "images": images,
            "state": self._state(batch.states, generator),
            "windows": batch,
        }

    def forward(self, batch: Any) -> dict[str, Tensor]:
        vlm = self.policy.vlm
        windows: CubeWindows = batch["windows"]
        visual = vlm.encode_frames(
            {name: images.flatten(0, 1) for name, images in batch["images"].items()}
        )
        features = features_under_instructions(
            vlm,
            visual,
            batch["input_ids"],
            batch["attention_mask"],
            batch["state"],
            windows.states.shape[1],
        )  # (C B, W, 1, d)
        with torch.autocast(features.device.type, enabled=False):
            return self._compare(features.float(), windows)

    def _compare(self, features: Tensor, windows: CubeWindows) -> dict[str, Tensor]:
        arm, opened = (labels.movedim(2, 0) for labels in (windows.arm, windows.opened))  # (C, B, W, n, ...)
        if self.ground_truth:
            acting = features
            arm = arm.flatten(0, 1)
            opened = opened.flatten(0, 1)
        else:
            asked = windows.followed[:, -1], torch.arange(len(windows.followed))
            acting = features if self.auxiliary is None else features.unflatten(0, (len(INSTRUCTIONS), -1))[asked]
            arm = arm[asked]
            opened = opened[asked]
        loss, losses = self._act(acting, arm, opened)
        error = torch.full_like(losses.arm, float("nan")).detach()
        if self.auxiliary is not None:
            auxiliary = self._auxiliary_loss if self.ground_truth else self._hindsight_loss
            aux_loss, error = auxiliary(self.auxiliary, features.mean(2), windows)
            loss = loss + self.recipe.auxiliary * aux_loss
        return {"loss": loss, "arm": losses.arm, "gripper": losses.gripper, "target_error_m": error}

    def _auxiliary_loss(
        self, heads: CubeAuxiliary, token: Tensor, windows: CubeWindows
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the mean distance (m) between where the named cube is and where the
        model sees it."""
        places = (windows.cubes - windows.hands[:, :, None]) / PLACE_SCALE  # (B, W, C, 3)
        named = places.movedim(2, 0).flatten(0, 1)  # (C B, W, 3)
        guess, everything = heads.named(token), heads.all(token)
        loss = functional.smooth_l1_loss(guess, named, beta=0.1) + functional.smooth_l1_loss(
            everything, places.flatten(2).repeat(len(INSTRUCTIONS), 1, 1), beta=0.1
        )
        return loss, (guess.detach() - named).norm(dim=-1).mean() * PLACE_SCALE

    def _hindsight_loss(
        self, heads: CubeAuxiliary, token: Tensor, windows: CubeWindows
    ) -> tuple[Tensor, Tensor]:
        """The same of where the hand took hold, over the instructions and frames that know it."""
        grasped = windows.grasped.movedim(2, 0).flatten(0, 1)  # (C B, W, 3)
        known = grasped.isfinite().all(-1)
        places = ((grasped - windows.hands.repeat(len(INSTRUCTIONS), 1, 1)) / PLACE_SCALE)[
            known
        ]  # (N, 3)
        guess = heads.named(token)[known]
        count = max(len(places), 1)
        loss = functional.smooth_l1_loss(guess, places, beta=0.1, reduction="sum") / (3 * count)
        return loss, (guess.detach() - places).norm(dim=-1).sum() / count * PLACE_SCALE


def raw_states(policy: VLAPolicy, shard: Columns) -> np.ndarray:
    """(F, P) raw proprioception, by the function that serves the running policy; P is 0 for a
    policy without."""
    config = policy.config.proprioception
    openings = shard["openings"]
    if config is None:
        return np.zeros((len(openings), 0), np.float32)
    joints, poses = shard["joints"].astype(np.float64), shard["poses"].astype(np.float64)
    return np.stack([
        state_vector(config, RobotState(0, joints[i], None, poses[i], float(openings[i]))) for i in range(len(openings))
    ])
