"""Objectives on recorded shards: behaviour cloning of the scripted expert under several
instructions at once.

A window is learned under every instruction of the cubes, or under several of its tabletop goals,
each in a trained sentence drawn anew; its images are encoded once. The action feature also predicts
places: those of the named object, its target and the hand's yaw, or those of all cubes; the image
tokens predict the places of everything (`vision_pretraining`). Without these auxiliary losses a
small model averages the objects and ignores the instruction. The simulator's ground truth serves in
training only; no checkpoint holds the auxiliary heads. Without it (`ground_truth: false`) a window
has only a real recording's content: the followed
instruction, the executed actions, and with `hindsight: true` the place where the hand closed.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.core.types import RobotState
from robovlms_ros.inference.action_pipeline import ActionPipeline
from robovlms_ros.inference.proprioception import state_vector
from robovlms_ros.models.backbones.sequence import VisualTokens
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.sim.tasks.language import INSTRUCTIONS, goals, instructions
from robovlms_ros.sim.tasks.objects import THINGS
from robovlms_ros.sim.training.plans import Recipe
from robovlms_ros.sim.training.shards import CUBE_GOALS, Columns, followed_cubes, grasped_places
from robovlms_ros.sim.training.vision_pretraining import NAMED, PLACE_SCALE, Seeing
from robovlms_ros.sim.world import CAMERAS
from robovlms_ros.training.engine.batches import noisy_state, normalised_images
from robovlms_ros.training.engine.objective import ActionLoss, Objective, action_loss
from robovlms_ros.training.engine.shared_prefix import features_under_instructions, text_model

_CUBES = [THINGS.index(goal.thing) for goal in INSTRUCTIONS.values()]


@dataclass(frozen=True)
class CubeWindows:
    """B windows of W frames, oldest first. K runs over cameras, C over the cubes.

    images: (B, W, K, S, S, 3) uint8. states: (B, W, P), raw proprioception. hands (B, W, 3), cubes
    (B, W, C, 3): m in the base frame. arm (B, W, C, n, A), opened (B, W, C, n): the expert's chunk
    for each cube, as the head's targets. followed (B, W) int64: which of the cubes was named.
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
        # (C, B, W, n, ...)
        arm, opened = (labels.movedim(2, 0) for labels in (windows.arm, windows.opened))
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
        guess = heads.named(token)
        everything = heads.all(token)
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
    joints = shard["joints"].astype(np.float64)
    poses = shard["poses"].astype(np.float64)
    return np.stack([
        state_vector(config, RobotState(0, joints[i], None, poses[i], float(openings[i]))) for i in range(len(openings))
    ])


GOALS = goals()
SENTENCES = tuple(instructions(goal) for goal in GOALS)
_THING = torch.tensor([NAMED.index(goal.thing) for goal in GOALS])
_PLACE = torch.tensor([NAMED.index(goal.place or goal.thing) for goal in GOALS])


@dataclass(frozen=True)
class TaskWindows:
    """B windows of W frames, oldest first, of what `task_demonstrations` records; K runs over
    cameras in `images` and over an episode's goals elsewhere.

    images: (B, W, K, S, S, 3) uint8. states: (B, W, P), raw proprioception. poses: (B, W, 4, 4),
    base_T_eef. places: (B, W, names, 3), things and plates in the order of `seeing.NAMED`: m, NaN
    where there is none; turns (B, W, names): rad, NaN for all but cubes. goals (B, W, K) int64,
    yaws (B, W, K). arm (B, W, K, n, A), opened (B, W, K, n): the expert's chunks, as the head's
    targets.
    """

    images: Tensor
    states: Tensor
    poses: Tensor
    places: Tensor
    turns: Tensor
    goals: Tensor
    yaws: Tensor
    arm: Tensor
    opened: Tensor


class TaskAuxiliary(nn.Module):
    """From the action feature (N, width) to where the named thing and its place are, relative to
    the hand, and to the sine and cosine of twice the yaw: (N, 8)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.named = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 8))


class TaskObjective(ShardObjective):
    """The tabletop tasks.

    chosen: goals that a window is learned under in a step. ground_truth: the simulator's knowledge
    serves. compiled: both towers go through torch.compile: a minute to begin with, and fewer trips
    to memory after it.
    """

    kind = TaskWindows

    def __init__(
        self, policy: VLAPolicy, recipe: Recipe, chosen: int = 3, ground_truth: bool = True, compiled: bool = False
    ) -> None:
        super().__init__(policy, recipe, ground_truth)
        self.chosen = chosen if ground_truth else 1
        width = policy.vlm.hidden_size
        self.auxiliary = TaskAuxiliary(width) if ground_truth else None
        self.sight = Seeing(self._grids(), width) if ground_truth else None
        compiler = partial(torch.compile, dynamic=False) if compiled else lambda function: function
        self._text = compiler(text_model(policy.vlm))
        self._see = compiler(lambda images: policy.vlm.encode_images(images).tokens)
        # Padded to the longest of all: nothing to tokenise, and no shape to change, from step to
        # step.
        words = policy.tokenize([sentence for sentences in SENTENCES for sentence in sentences])
        self._ids, self._mask = (
            words[key].unflatten(0, (len(SENTENCES), -1)) for key in ("input_ids", "attention_mask")
        )  # (goals, sentences of each, L)

    def columns(self, shard: Columns) -> Columns:
        horizon = self.policy.config.model.action_chunk_size
        arm, opened = self._pipeline.encode(shard["labels"][:, :, :horizon])
        turns = np.full((len(shard["turns"]), len(NAMED)), np.nan, np.float32)
        turns[:, : len(THINGS)] = shard["turns"]
        return {"states": raw_states(self.policy, shard), "poses": shard["poses"], "turns": turns,
                "places": np.concatenate((shard["things"], shard["plates"]), axis=1), "goals": shard["goals"],
                "yaws": shard["yaws"], "arm": arm, "opened": opened.astype(np.float32)}

    def inputs(
        self,
        batch: TaskWindows,
        generator: torch.Generator,
        seeing: bool = False,
        frozen_vision: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """The windows, each under `chosen` of its goals.

        seeing: only the places of all objects are learned, from the images alone, at a quarter of
        the cost: no language model runs. frozen_vision: the vision tower stays as it is; with
        `seeing` only the heads learn.
        """
        inputs: dict[str, Any] = {
            "windows": batch,
            "seeing": seeing,
            "frozen_vision": frozen_vision,
        }
        if not seeing:
            goal = batch.goals[:, -1].gather(1, self._pick(batch, generator))  # (B, C)
            ids, mask = self._words(goal.T, generator)  # (C, B, L)
            state = self._state(batch.states, generator)
            inputs |= {"goal": goal, "input_ids": ids, "attention_mask": mask, "state": state}
        return {**inputs, "images": self._images(batch.images, generator)}

    def forward(self, batch: Any) -> dict[str, Tensor]:
        windows: TaskWindows = batch["windows"]
        visual = self._visual(batch["images"], batch["frozen_vision"])
        if batch["seeing"]:
            loss, error = self._look(visual, windows)
            nothing = torch.full_like(error, float("nan"))
            return {"loss": loss, "arm": nothing, "gripper": nothing, "target_error_m": error}
        features = features_under_instructions(
            self.policy.vlm, visual, batch["input_ids"], batch["attention_mask"], batch["state"],
            windows.states.shape[1], self._text,
        )  # (C B, W, 1, d)
        with torch.autocast(features.device.type, enabled=False):
            result = self._compare(features.float(), windows, batch["goal"])
        if self.sight is not None and not batch["frozen_vision"]:
            result["loss"] = result["loss"] + self.recipe.auxiliary * self._look(visual, windows)[0]
        return result

    def _visual(self, images: dict[str, Tensor], frozen: bool) -> dict[str, VisualTokens]:
        """Per camera the tokens of B W frames."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            # All cameras' frames in one batch.
            tokens = self._see(torch.stack(list(images.values())).flatten(0, 2))
        return {
            name: VisualTokens(part)
            for name, part in zip(images, tokens.chunk(len(images)), strict=True)
        }

    @torch.no_grad()
    def _grids(self) -> dict[str, int]:
        """Per camera how many tokens a side of the image has."""
        size = self.policy.vlm.image_processor.size
        blank = {name: torch.zeros(1, 3, size, size, device=self.policy.device) for name in self.policy.config.cameras}
        return {name: math.isqrt(seen.tokens.shape[1]) for name, seen in self.policy.vlm.encode_frames(blank).items()}

    def _look(self, visual: dict[str, VisualTokens], windows: TaskWindows) -> tuple[Tensor, Tensor]:
        assert self.sight is not None
        truth = (known.flatten(0, 1) for known in (windows.places, windows.turns, windows.poses))
        tokens = {name: seen.tokens.float() for name, seen in visual.items()}
        with torch.autocast(windows.places.device.type, enabled=False):
            return self.sight(tokens, *truth)

    def _pick(self, windows: TaskWindows, generator: torch.Generator) -> Tensor:
        """(B, C) columns of the newest frame's goals; without ground truth the one that its
        episode followed."""
        batch, _, count = windows.goals.shape
        if not self.ground_truth:
            return torch.zeros(batch, 1, dtype=torch.long, device=windows.goals.device)
        drawn = torch.rand(batch, count, generator=generator, device=windows.goals.device)
        return drawn.argsort(1)[:, : self.chosen]

    def _words(self, goal: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Token ids and mask (..., L) of goals (...), each in a trained sentence drawn anew."""
        said = torch.randint(self._ids.shape[1], goal.shape, generator=generator, device=goal.device)
        return self._ids[goal, said], self._mask[goal, said]

    def _compare(self, features: Tensor, windows: TaskWindows, goal: Tensor) -> dict[str, Tensor]:
        arm, opened, yaws = _of_goal(windows, goal)
        loss, losses = self._act(features, arm, opened)
        of_windows = (
            losses.steps.flatten(1).mean(1).unflatten(0, (-1, len(goal))).mean(0)
        )  # goals are outermost
        error = torch.full_like(losses.arm, float("nan")).detach()
        if self.auxiliary is not None:
            aux_loss, error = self._auxiliary_loss(features.mean(2), windows, goal, yaws)
            loss = loss + self.recipe.auxiliary * aux_loss
        return {"loss": loss, "arm": losses.arm, "gripper": losses.gripper, "target_error_m": error,
                "windows": of_windows}

    def _auxiliary_loss(self, token: Tensor, windows: TaskWindows, goal: Tensor, yaws: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the mean distance (m) between where the named thing is and where the
        model sees it."""
        assert self.auxiliary is not None
        # (B, W, names, 3)
        places = (windows.places - windows.poses[:, :, None, :3, 3]) / PLACE_SCALE
        by_name = places.transpose(1, 2)  # (B, names, W, 3)
        rows = torch.arange(len(goal), device=goal.device)[:, None]
        named, spot = (
            by_name[rows, which.to(goal.device)[goal]].transpose(0, 1).flatten(0, 1) for which in (_THING, _PLACE)
        )  # (C B, W, 3)
        turn = torch.stack((torch.sin(2 * yaws), torch.cos(2 * yaws)), dim=-1)
        wanted = torch.cat((named, spot, turn), dim=-1)  # (C B, W, 8)
        guess = self.auxiliary.named(token)
        loss = functional.smooth_l1_loss(guess, wanted, beta=0.1)
        error = (guess.detach()[..., :3] - named).norm(dim=-1).mean() * PLACE_SCALE
        return loss, error


def _of_goal(windows: TaskWindows, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """arm (C B, W, n, A), opened (C B, W, n) and yaws (C B, W) of goals (B, C). A goal's column
    differs from frame to frame: the followed one comes first."""
    matches = windows.goals[:, None] == goal[:, :, None, None]  # (B, C, W, K)
    column = matches.int().argmax(dim=-1)  # (B, C, W)
    rows = torch.arange(len(goal), device=goal.device)[:, None, None]
    frames = torch.arange(windows.goals.shape[1], device=goal.device)
    arm, opened, yaws = (
        values[rows, frames, column].transpose(0, 1).flatten(0, 1)
        for values in (windows.arm, windows.opened, windows.yaws)
    )
    return arm, opened, yaws
