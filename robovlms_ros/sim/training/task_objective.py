"""The objective of the tabletop tasks: behaviour cloning of their expert.

Every window is learned under several of its goals, each in a trained sentence drawn anew; its
images are encoded once. The action feature also predicts the place of the named thing, its target
and the hand's yaw, and the image tokens the places of everything (`vision_pretraining`). Without
the simulator's ground truth (`ground_truth: false`) a window has only a real recording's content:
the followed goal and the executed actions.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.models.backbones.sequence import VisualTokens
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.sim.tasks.language import goals, instructions
from robovlms_ros.sim.tasks.objects import THINGS
from robovlms_ros.sim.training.objectives import ShardObjective, raw_states
from robovlms_ros.sim.training.recipe import Recipe
from robovlms_ros.sim.training.shards import Columns
from robovlms_ros.sim.training.shared_prefix import features_under_instructions, text_model
from robovlms_ros.sim.training.vision_pretraining import NAMED, PLACE_SCALE, Seeing

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
        places = (windows.places - windows.poses[:, :, None, :3, 3]) / PLACE_SCALE  # (B, W, names, 3)
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
