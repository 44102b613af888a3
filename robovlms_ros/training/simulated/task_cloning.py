"""Behaviour cloning of the tabletop tasks' expert: what one step minimises.

Every window is learned under several of its goals, said in trained words drawn anew each time; the images' features are
computed once. Beside the action, the action feature must tell where the named thing and its place are and how the hand
is to be turned, and the images' tokens where everything is (`seeing`). Without the simulator's ground truth
(`ground_truth: false`) there is only what a real robot records: the followed goal and what was done.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.backbones.sequence import VisualTokens
from robovlms_ros.policy.policy import VLAPolicy
from robovlms_ros.processing.actions import ActionPipeline
from robovlms_ros.sim.tasks.language import goals, instructions
from robovlms_ros.training.simulated.behaviour_cloning import Losses, Recipe, augment, raw_states
from robovlms_ros.training.simulated.seeing import NAMED, PLACE_SCALE, Seeing
from robovlms_ros.training.simulated.shared_prefix import features_under_instructions

Array = np.ndarray

GOALS = goals()
SENTENCES = tuple(instructions(goal) for goal in GOALS)
_THING = np.array([NAMED.index(goal.thing) for goal in GOALS])
_PLACE = np.array([NAMED.index(goal.place or goal.thing) for goal in GOALS])


@dataclass(frozen=True)
class TaskWindows:
    """B windows of W frames, oldest first, as `task_demonstrations` records them; K runs over cameras in `images` and
    over an episode's goals elsewhere.

    images: (B, W, K, S, S, 3) uint8. poses (B, W, 4, 4), joints (B, W, 7), openings (B, W): as measured. things
    (B, W, T, 3), plates (B, W, P, 3): m, NaN where there is none. goals, yaws (B, W, K). labels (B, W, K, n, 7).
    """

    images: Array
    poses: Array
    joints: Array
    openings: Array
    things: Array
    plates: Array
    goals: Array
    labels: Array
    yaws: Array


class Auxiliary(nn.Module):
    """From the action feature (N, width) to where the named thing and its place are, relative to the hand, and to the
    sine and cosine of twice the yaw: (N, 8)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.named = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 8))


class TaskLearner(nn.Module):
    """A policy with what is needed to train it on the tabletop tasks.

    chosen: goals that a window is learned under in a step. ground_truth: whether the simulator's knowledge may serve.
    """

    def __init__(self, policy: VLAPolicy, recipe: Recipe, chosen: int = 3, ground_truth: bool = True) -> None:
        super().__init__()
        assert policy.config.action is not None
        self.policy, self.recipe, self.ground_truth = policy, recipe, ground_truth
        self.chosen = chosen if ground_truth else 1
        width = policy.vlm.hidden_size
        self.auxiliary = Auxiliary(width) if ground_truth else None
        self.sight = Seeing(self._grids(), width) if ground_truth else None
        self._pipeline = ActionPipeline(policy.config.action)

    def losses(self, windows: TaskWindows, generator: torch.Generator) -> Losses:
        """The losses of B windows, each under `chosen` of its goals."""
        recipe, policy = self.recipe, self.policy
        visual = self._visual(windows, generator)
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        batch, width = windows.openings.shape
        picked = self._pick(windows, rng)  # (B, C)
        goal = np.take_along_axis(windows.goals[:, -1].astype(int), picked, 1)  # (B, C)
        words = policy.tokenize([str(rng.choice(SENTENCES[number])) for number in goal.T.ravel()])
        ids, mask = (words[k].unflatten(0, (-1, batch)) for k in ("input_ids", "attention_mask"))  # (C, B, L)
        state = None
        if policy.config.proprioception is not None:
            state = policy.normalise_state(torch.from_numpy(raw_states(policy, windows)))  # (B, W, P)
            assert state is not None
            state = state + recipe.state_noise * torch.randn(state.shape, generator=generator)
        features = features_under_instructions(policy.vlm, visual, ids, mask, state, width)  # (C B, W, 1, d)
        losses = self._compare(features, windows, goal)
        if self.sight is None:
            return losses
        return replace(losses, total=losses.total + recipe.auxiliary * self._look(visual, windows)[0])

    def seeing(self, windows: TaskWindows, generator: torch.Generator) -> Losses:
        """What the images alone tell of B windows, at a quarter of the cost of `losses`: no language model runs.

        Of the losses only `total` and `target_error` (of everything that is there) are numbers.
        """
        loss, error = self._look(self._visual(windows, generator), windows)
        nothing = torch.tensor(float("nan"))
        return Losses(loss, nothing, nothing, error)

    def _visual(self, windows: TaskWindows, generator: torch.Generator) -> dict[str, VisualTokens]:
        """Per camera the tokens of B W augmented frames."""
        images = augment(torch.from_numpy(self._seen(windows.images)), self.recipe, generator)  # (B, W, K, 3, S, S)
        names = self.policy.config.cameras
        return self.policy.vlm.encode_frames({name: images[:, :, k].flatten(0, 1) for k, name in enumerate(names)})

    @torch.no_grad()
    def _grids(self) -> dict[str, int]:
        """Per camera how many tokens a side of the image has."""
        size = self.policy.vlm.image_processor.size
        blank = {name: torch.zeros(1, 3, size, size) for name in self.policy.config.cameras}
        return {name: math.isqrt(seen.tokens.shape[1]) for name, seen in self.policy.vlm.encode_frames(blank).items()}

    def _look(self, visual: dict[str, VisualTokens], windows: TaskWindows) -> tuple[Tensor, Tensor]:
        assert self.sight is not None
        places = np.concatenate((windows.things, windows.plates), axis=2)  # (B, W, names, 3)
        tokens = {name: seen.tokens for name, seen in visual.items()}
        return self.sight(tokens, places.reshape(-1, *places.shape[2:]), windows.poses.reshape(-1, 4, 4))

    def _seen(self, images: Array) -> Array:
        """The cameras that the policy has, of those recorded."""
        order = ("static", "wrist")
        return images[:, :, [order.index(name) for name in self.policy.config.cameras]]

    def _pick(self, windows: TaskWindows, rng: np.random.Generator) -> Array:
        """(B, C) columns of the goals; the first is the one that the newest frame's episode followed."""
        batch, count = len(windows.images), windows.goals.shape[2]
        columns = np.argsort(rng.uniform(size=(batch, count)), axis=1)
        if not self.ground_truth:
            return np.zeros((batch, 1), int)
        return columns[:, : self.chosen]

    def _compare(self, features: Tensor, windows: TaskWindows, goal: Array) -> Losses:
        recipe, horizon = self.recipe, self.policy.config.model.action_chunk_size
        output = self.policy.head(features)
        labels, yaws = _of_goal(windows, goal)  # (C B, W, n, 7), (C B, W)
        arm, opened = (torch.from_numpy(x).float() for x in self._pipeline.encode(labels[:, :, :horizon]))
        arm_loss = functional.huber_loss(output.arm, arm, delta=recipe.huber) / recipe.huber
        gripper_loss = functional.binary_cross_entropy_with_logits(output.gripper_logits.squeeze(-1), opened)
        total = recipe.arm * arm_loss + recipe.gripper * gripper_loss
        error = torch.tensor(float("nan"))
        if self.auxiliary is not None:
            aux_loss, error = self._auxiliary_loss(features.mean(2), windows, goal, torch.from_numpy(yaws))
            total = total + recipe.auxiliary * aux_loss
        return Losses(total, arm_loss.detach(), gripper_loss.detach(), error)

    def _auxiliary_loss(self, token: Tensor, windows: TaskWindows, goal: Array, yaws: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the mean distance (m) between where the named thing is and where the model sees it."""
        assert self.auxiliary is not None
        hand = windows.poses[:, :, None, :3, 3]
        places = (np.concatenate((windows.things, windows.plates), axis=2) - hand) / PLACE_SCALE  # (B, W, T + P, 3)
        rows = np.arange(len(goal))[:, None]
        named = places.swapaxes(1, 2)[rows, _THING[goal]].swapaxes(0, 1).reshape(-1, places.shape[1], 3)
        spot = places.swapaxes(1, 2)[rows, _PLACE[goal]].swapaxes(0, 1).reshape(-1, places.shape[1], 3)
        turn = torch.stack((torch.sin(2 * yaws), torch.cos(2 * yaws)), dim=-1)
        wanted = torch.cat((torch.from_numpy(named), torch.from_numpy(spot), turn), dim=-1).float()  # (C B, W, 8)
        guess = self.auxiliary.named(token)
        loss = functional.smooth_l1_loss(guess, wanted, beta=0.1)
        error = (guess.detach()[..., :3] - wanted[..., :3]).norm(dim=-1).mean() * PLACE_SCALE
        return loss, error


def _of_goal(windows: TaskWindows, goal: Array) -> tuple[Array, Array]:
    """Labels (C B, W, n, 7) and yaws (C B, W) of goals (B, C). A goal's column differs from frame to frame: the
    followed one comes first."""
    matches = windows.goals.astype(int)[:, None] == goal[:, :, None, None]  # (B, C, W, K)
    column = matches.argmax(axis=-1)  # (B, C, W)
    rows, frames = np.arange(len(goal))[:, None, None], np.arange(windows.goals.shape[1])
    labels = windows.labels[rows, frames, column].swapaxes(0, 1)
    yaws = windows.yaws[rows, frames, column].swapaxes(0, 1)
    return labels.reshape(-1, *labels.shape[2:]), yaws.reshape(-1, yaws.shape[2])
