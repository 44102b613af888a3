"""Behaviour cloning of the tabletop tasks' expert: what one step minimises.

Every window is learned under several of its goals, said in trained words drawn anew each time; the images' features are
computed once. Beside the action, the action feature must tell where the named thing and its place are and how the hand
is to be turned, and the images' tokens where everything is (`seeing`). Without the simulator's ground truth
(`ground_truth: false`) there is only what a real robot records: the followed goal and what was done.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.inference.action_pipeline import ActionPipeline
from robovlms_ros.models.backbones.sequence import VisualTokens
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.sim.tasks.language import goals, instructions
from robovlms_ros.sim.tasks.objects import THINGS
from robovlms_ros.sim.training.behaviour_cloning import (
    Losses,
    Recipe,
    augment,
    mixed_precision,
    noisy_state,
    raw_states,
)
from robovlms_ros.sim.training.shards import Columns
from robovlms_ros.sim.training.shared_prefix import features_under_instructions, text_model
from robovlms_ros.sim.training.vision_pretraining import NAMED, PLACE_SCALE, Seeing

GOALS = goals()
SENTENCES = tuple(instructions(goal) for goal in GOALS)
_THING = torch.tensor([NAMED.index(goal.thing) for goal in GOALS])
_PLACE = torch.tensor([NAMED.index(goal.place or goal.thing) for goal in GOALS])


@dataclass(frozen=True)
class TaskWindows:
    """B windows of W frames, oldest first, of what `task_demonstrations` records; K runs over cameras in `images` and
    over an episode's goals elsewhere.

    images: (B, W, K, S, S, 3) uint8. states: (B, W, P), raw proprioception. poses: (B, W, 4, 4), base_T_eef. places:
    (B, W, names, 3), things and plates in the order of `seeing.NAMED`: m, NaN where there is none; turns (B, W, names):
    rad, NaN for all but cubes. goals (B, W, K) int64, yaws (B, W, K). arm (B, W, K, n, A), opened (B, W, K, n): the
    expert's chunks, as the head's targets.
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
    """From the action feature (N, width) to where the named thing and its place are, relative to the hand, and to the
    sine and cosine of twice the yaw: (N, 8)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.named = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 8))


class TaskLearner(nn.Module):
    """A policy with what is needed to train it on the tabletop tasks.

    chosen: goals that a window is learned under in a step. ground_truth: whether the simulator's knowledge may serve.
    compiled: both towers go through torch.compile: a minute to begin with, and fewer trips to memory after it.
    """

    kind = TaskWindows

    def __init__(
        self, policy: VLAPolicy, recipe: Recipe, chosen: int = 3, ground_truth: bool = True, compiled: bool = False
    ) -> None:
        super().__init__()
        assert policy.config.action is not None
        self.policy, self.recipe, self.ground_truth = policy, recipe, ground_truth
        self.chosen = chosen if ground_truth else 1
        width = policy.vlm.hidden_size
        self.auxiliary = TaskAuxiliary(width) if ground_truth else None
        self.sight = Seeing(self._grids(), width) if ground_truth else None
        self._pipeline = ActionPipeline(policy.config.action)
        compiler = partial(torch.compile, dynamic=False) if compiled else lambda function: function
        self._text = compiler(text_model(policy.vlm))
        self._see = compiler(lambda images: policy.vlm.encode_images(images).tokens)
        # Padded to the longest of all: nothing to tokenise, and no shape to change, from step to step.
        words = policy.tokenize([sentence for sentences in SENTENCES for sentence in sentences])
        self._ids, self._mask = (
            words[key].unflatten(0, (len(SENTENCES), -1)) for key in ("input_ids", "attention_mask")
        )  # (goals, sentences of each, L)

    def columns(self, shard: Columns) -> Columns:
        """What is kept of a recorded shard, by `TaskWindows`' names."""
        horizon = self.policy.config.model.action_chunk_size
        arm, opened = self._pipeline.encode(shard["labels"][:, :, :horizon])
        turns = np.full((len(shard["turns"]), len(NAMED)), np.nan, np.float32)
        turns[:, : len(THINGS)] = shard["turns"]
        return {"states": raw_states(self.policy, shard), "poses": shard["poses"], "turns": turns,
                "places": np.concatenate((shard["things"], shard["plates"]), axis=1), "goals": shard["goals"],
                "yaws": shard["yaws"], "arm": arm, "opened": opened.astype(np.float32)}

    def losses(self, windows: TaskWindows, generator: torch.Generator, frozen_vision: bool = False) -> Losses:
        """The losses of B windows, each under `chosen` of its goals. generator: on the windows' device. frozen_vision:
        nothing is learned of what the images alone tell."""
        recipe, policy = self.recipe, self.policy
        goal = windows.goals[:, -1].gather(1, self._pick(windows, generator))  # (B, C)
        ids, mask = self._words(goal.T, generator)  # (C, B, L)
        state = noisy_state(policy, windows.states, recipe, generator)
        with mixed_precision(recipe, policy.device):
            visual = self._visual(windows, generator, frozen_vision)
            width = windows.states.shape[1]
            features = features_under_instructions(
                policy.vlm, visual, ids, mask, state, width, self._text
            )  # (C B, W, 1, d)
        losses = self._compare(features.float(), windows, goal)
        if self.sight is None or frozen_vision:
            return losses
        return replace(losses, total=losses.total + recipe.auxiliary * self._look(visual, windows)[0])

    def seeing(self, windows: TaskWindows, generator: torch.Generator, frozen_vision: bool = False) -> Losses:
        """What the images alone tell of B windows, at a quarter of the cost of `losses`: no language model runs.

        Of the losses only `total` and `target_error` (of everything that is there) are numbers. frozen_vision: only the
        heads learn to tell it.
        """
        with mixed_precision(self.recipe, self.policy.device):
            visual = self._visual(windows, generator, frozen_vision)
        loss, error = self._look(visual, windows)
        nothing = torch.full_like(error, float("nan"))
        return Losses(loss, nothing, nothing, error)

    def _visual(self, windows: TaskWindows, generator: torch.Generator, frozen: bool) -> dict[str, VisualTokens]:
        """Per camera the tokens of B W augmented frames."""
        images = augment(self._seen(windows.images), self.recipe, generator)  # (B, W, K, 3, S, S)
        names = self.policy.config.cameras
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            tokens = self._see(images.movedim(2, 0).flatten(0, 2))  # all cameras' frames in one batch
        return {name: VisualTokens(part) for name, part in zip(names, tokens.chunk(len(names)), strict=True)}

    @torch.no_grad()
    def _grids(self) -> dict[str, int]:
        """Per camera how many tokens a side of the image has."""
        size = self.policy.vlm.image_processor.size
        blank = {name: torch.zeros(1, 3, size, size, device=self.policy.device) for name in self.policy.config.cameras}
        return {name: math.isqrt(seen.tokens.shape[1]) for name, seen in self.policy.vlm.encode_frames(blank).items()}

    def _look(self, visual: dict[str, VisualTokens], windows: TaskWindows) -> tuple[Tensor, Tensor]:
        assert self.sight is not None
        tokens = {name: seen.tokens.float() for name, seen in visual.items()}
        return self.sight(tokens, *(known.flatten(0, 1) for known in (windows.places, windows.turns, windows.poses)))

    def _seen(self, images: Tensor) -> Tensor:
        """The cameras that the policy has, of those recorded."""
        order = ("static", "wrist")
        return images[:, :, [order.index(name) for name in self.policy.config.cameras]]

    def _pick(self, windows: TaskWindows, generator: torch.Generator) -> Tensor:
        """(B, C) columns of the newest frame's goals; without ground truth the one that its episode followed."""
        batch, _, count = windows.goals.shape
        if not self.ground_truth:
            return torch.zeros(batch, 1, dtype=torch.long, device=windows.goals.device)
        drawn = torch.rand(batch, count, generator=generator, device=windows.goals.device)
        return drawn.argsort(1)[:, : self.chosen]

    def _words(self, goal: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Token ids and mask (..., L) of goals (...), each in a trained sentence drawn anew."""
        said = torch.randint(self._ids.shape[1], goal.shape, generator=generator, device=goal.device)
        return self._ids[goal, said], self._mask[goal, said]

    def _compare(self, features: Tensor, windows: TaskWindows, goal: Tensor) -> Losses:
        recipe = self.recipe
        output = self.policy.head(features)
        arm, opened, yaws = _of_goal(windows, goal)
        each = functional.huber_loss(output.arm, arm, delta=recipe.huber, reduction="none") / recipe.huber
        of_windows = each.detach().flatten(1).mean(1).unflatten(0, (-1, len(goal))).mean(0)  # goals stand outermost
        arm_loss = each.mean()
        gripper_loss = functional.binary_cross_entropy_with_logits(output.gripper_logits.squeeze(-1), opened)
        total = recipe.arm * arm_loss + recipe.gripper * gripper_loss
        error = torch.full_like(arm_loss, float("nan")).detach()
        if self.auxiliary is not None:
            aux_loss, error = self._auxiliary_loss(features.mean(2), windows, goal, yaws)
            total = total + recipe.auxiliary * aux_loss
        return Losses(total, arm_loss.detach(), gripper_loss.detach(), error, of_windows)

    def _auxiliary_loss(self, token: Tensor, windows: TaskWindows, goal: Tensor, yaws: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the mean distance (m) between where the named thing is and where the model sees it."""
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
    """arm (C B, W, n, A), opened (C B, W, n) and yaws (C B, W) of goals (B, C). A goal's column differs from frame to
    frame: the followed one comes first."""
    matches = windows.goals[:, None] == goal[:, :, None, None]  # (B, C, W, K)
    column = matches.int().argmax(dim=-1)  # (B, C, W)
    rows = torch.arange(len(goal), device=goal.device)[:, None, None]
    frames = torch.arange(windows.goals.shape[1], device=goal.device)
    arm, opened, yaws = (
        values[rows, frames, column].transpose(0, 1).flatten(0, 1)
        for values in (windows.arm, windows.opened, windows.yaws)
    )
    return arm, opened, yaws
