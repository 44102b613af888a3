"""Behaviour cloning of the scripted expert: what one step minimises.

Every window is learned under every instruction, the images' features being computed once. Beside the action, the
action feature must tell where the named cube and all cubes are: without these auxiliary losses a small model averages
the cubes and ignores the words. The simulator's ground truth serves in training only; a saved policy holds none of it.
Without it (`ground_truth: false`) there is only what a real robot records: the followed instruction and what was done,
and with `hindsight: true` where the hand took hold in the end.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.core.schema import require
from robovlms_ros.core.types import RobotState
from robovlms_ros.inference.action_pipeline import ActionPipeline
from robovlms_ros.inference.proprioception import state_vector
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.sim.task import CUBES, INSTRUCTIONS
from robovlms_ros.sim.training.hindsight import grasped_places
from robovlms_ros.sim.training.shards import Columns
from robovlms_ros.sim.training.shared_prefix import features_under_instructions
from robovlms_ros.training.data.augment import random_shift
from robovlms_ros.training.engine.schedule import half_cosine

PLACE_SCALE = 0.1
"""Metres per unit of the auxiliary targets."""
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Windows:
    """B windows of W frames, oldest first. K runs over cameras, C over the cubes.

    images: (B, W, K, S, S, 3) uint8. states: (B, W, P), raw proprioception. hands (B, W, 3), cubes (B, W, C, 3): m in
    the base frame. arm (B, W, C, n, A), opened (B, W, C, n): the expert's chunk for each cube, as the head's targets.
    followed (B, W) int64: which of the cubes was asked for. grasped (B, W, C, 3): `hindsight.grasped_places`.
    """

    images: Tensor
    states: Tensor
    hands: Tensor
    cubes: Tensor
    arm: Tensor
    opened: Tensor
    followed: Tensor
    grasped: Tensor


@dataclass(frozen=True)
class Recipe:
    """Optimisation. windows: of a step's batch, each learned under every instruction.

    warmup: steps at the start of a stage. constant_part: part of a stage before the cosine; final_rate: what is left of
    the learning rate at its end. average: decay per step of the averaged weights, which are what is saved.
    huber: half-width of the Huber loss' quadratic part, on the head's scale. arm, gripper, auxiliary: loss weights.
    shift: pixels; gain, channel_gain, offset: half-widths of the factors and (of 255) of the shift of brightness.
    state_noise: standard deviation on the proprioception's normalised scale. precision: of the VLM's computation, by
    autocast; weights, heads and losses are float32.
    """

    windows: int = 12
    weight_decay: float = 0.05
    warmup: int = 100
    constant_part: float = 0.4
    final_rate: float = 0.05
    gradient_clip: float = 1.0
    average: float = 0.995
    huber: float = 0.1
    arm: float = 2.0
    gripper: float = 0.05
    auxiliary: float = 0.5
    shift: int = 2
    gain: float = 0.15
    channel_gain: float = 0.05
    offset: float = 10.0
    state_noise: float = 0.02
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        require(self.precision in PRECISIONS, "recipe.precision", self.precision, " or ".join(PRECISIONS))


class CubeAuxiliary(nn.Module):
    """From the action feature to where things are, relative to the hand: the named cube and, unless `named_alone`, all
    cubes."""

    def __init__(self, width: int, named_alone: bool = False) -> None:
        super().__init__()
        self.named = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 3))
        if not named_alone:
            self.all = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 3 * len(CUBES)))


@dataclass(frozen=True)
class Losses:
    """Scalars of one step. target_error: m, mean distance between the named cube and where the model sees it; NaN where
    it is not told. windows:
    (B,) the arm's loss of each window, detached, where it is told."""

    total: Tensor
    arm: Tensor
    gripper: Tensor
    target_error: Tensor
    windows: Tensor | None = None


SCALARS = ("total", "arm", "gripper", "target_error")


def initialise(policy: VLAPolicy, seed: int) -> None:
    """Random weights as a small model needs them: places as loud as pixels, an action token that is not zero.

    SigLIP's own position embeddings have a seventh of the norm of what a white table adds to every patch.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith("position_embedding.weight"):
                parameter.mul_(4.0)
            elif name.endswith("action_token"):
                parameter.copy_(0.08 * torch.randn(parameter.shape, generator=generator))


class Learner(nn.Module):
    """A policy with what is needed to train it. ground_truth: whether the simulator's knowledge may serve; without it a
    window is learned under the one instruction that its newest frame followed, and with hindsight the place where the
    hand took hold under the instruction that it did so for."""

    kind = Windows

    def __init__(
        self, policy: VLAPolicy, recipe: Recipe, ground_truth: bool = True, hindsight: bool = False
    ) -> None:
        super().__init__()
        assert policy.config.action is not None
        self.policy, self.recipe, self._ground_truth = policy, recipe, ground_truth
        width = policy.vlm.hidden_size
        self.auxiliary = CubeAuxiliary(width, not ground_truth) if ground_truth or hindsight else None
        self._pipeline = ActionPipeline(policy.config.action)

    def columns(self, shard: Columns) -> Columns:
        """What is kept of a recorded shard, by `Windows`' names."""
        arm, opened = self._pipeline.encode(shard["labels"])
        return {"states": raw_states(self.policy, shard), "hands": shard["poses"][:, :3, 3], "cubes": shard["cubes"],
                "arm": arm, "opened": opened.astype(np.float32), "followed": shard["followed"],
                "grasped": grasped_places(shard)}

    def losses(self, windows: Windows, generator: torch.Generator) -> Losses:
        """The losses of B windows under each of the C instructions; without ground truth that of the action under the
        followed one alone. generator: on the windows' device."""
        recipe, policy = self.recipe, self.policy
        width = windows.states.shape[1]
        images = augment(windows.images, recipe, generator)  # (B, W, K, 3, S, S)
        words = policy.tokenize(list(INSTRUCTIONS))
        ids, mask = words["input_ids"], words["attention_mask"]
        if self.auxiliary is None:
            now = windows.followed[:, -1]
            ids, mask = ids[now][None], mask[now][None]
        state = noisy_state(policy, windows.states, recipe, generator)
        with mixed_precision(recipe, policy.device):
            names = policy.config.cameras
            visual = policy.vlm.encode_frames({name: images[:, :, k].flatten(0, 1) for k, name in enumerate(names)})
            features = features_under_instructions(policy.vlm, visual, ids, mask, state, width)  # (C B, W, 1, d)
        return self._compare(features.float(), windows)

    def _compare(self, features: Tensor, windows: Windows) -> Losses:
        recipe = self.recipe
        arm, opened = (labels.movedim(2, 0) for labels in (windows.arm, windows.opened))  # (C, B, W, n, ...)
        if self._ground_truth:
            acting, arm, opened = features, arm.flatten(0, 1), opened.flatten(0, 1)
        else:
            asked = windows.followed[:, -1], torch.arange(len(windows.followed))
            arm, opened = arm[asked], opened[asked]
            acting = features if self.auxiliary is None else features.unflatten(0, (len(INSTRUCTIONS), -1))[asked]
        output = self.policy.head(acting)
        arm_loss = functional.huber_loss(output.arm, arm, delta=recipe.huber) / recipe.huber
        gripper_loss = functional.binary_cross_entropy_with_logits(output.gripper_logits.squeeze(-1), opened)
        total = recipe.arm * arm_loss + recipe.gripper * gripper_loss
        error = torch.full_like(arm_loss, float("nan")).detach()
        if self.auxiliary is not None:
            told = self._auxiliary_loss if self._ground_truth else self._hindsight_loss
            aux_loss, error = told(self.auxiliary, features.mean(2), windows)
            total = total + recipe.auxiliary * aux_loss
        return Losses(total, arm_loss.detach(), gripper_loss.detach(), error)

    def _auxiliary_loss(self, heads: CubeAuxiliary, token: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
        """The loss, and the mean distance (m) between where the named cube is and where the model sees it."""
        places = (windows.cubes - windows.hands[:, :, None]) / PLACE_SCALE  # (B, W, C, 3)
        named = places.movedim(2, 0).flatten(0, 1)  # (C B, W, 3)
        guess, everything = heads.named(token), heads.all(token)
        loss = functional.smooth_l1_loss(guess, named, beta=0.1) + functional.smooth_l1_loss(
            everything, places.flatten(2).repeat(len(CUBES), 1, 1), beta=0.1
        )
        return loss, (guess.detach() - named).norm(dim=-1).mean() * PLACE_SCALE

    def _hindsight_loss(self, heads: CubeAuxiliary, token: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
        """The same of where the hand took hold, over the instructions and frames that know it."""
        grasped = windows.grasped.movedim(2, 0).flatten(0, 1)  # (C B, W, 3)
        known = grasped.isfinite().all(-1)
        places = ((grasped - windows.hands.repeat(len(CUBES), 1, 1)) / PLACE_SCALE)[known]  # (N, 3)
        guess = heads.named(token)[known]
        count = max(len(places), 1)
        loss = functional.smooth_l1_loss(guess, places, beta=0.1, reduction="sum") / (3 * count)
        return loss, (guess.detach() - places).norm(dim=-1).sum() / count * PLACE_SCALE


def raw_states(policy: VLAPolicy, shard: Columns) -> np.ndarray:
    """(F, P) raw proprioception, by the function that serves the running policy; P is 0 for a policy without."""
    config = policy.config.proprioception
    openings = shard["openings"]
    if config is None:
        return np.zeros((len(openings), 0), np.float32)
    joints, poses = shard["joints"].astype(np.float64), shard["poses"].astype(np.float64)
    return np.stack([
        state_vector(config, RobotState(0, joints[i], None, poses[i], float(openings[i]))) for i in range(len(openings))
    ])


def noisy_state(policy: VLAPolicy, states: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor | None:
    """Raw proprioception (B, W, P) on the network's scale and under noise; None for a policy without."""
    state = policy.normalise_state(states)
    if state is None:
        return None
    noise = torch.randn(state.shape, generator=generator, device=state.device)
    return state + recipe.state_noise * noise


def mixed_precision(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Where the recipe's precision rules."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """(B, W, K, S, S, 3) uint8 to (B, W, K, 3, S, S) in -1..1; a window's frames of a camera change alike."""
    b, w, k, s = images.shape[:4]
    folded = images.permute(0, 2, 1, 5, 3, 4).reshape(b * k, w * 3, s, s).float()
    if recipe.shift:
        folded = random_shift(folded, recipe.shift, generator=generator)
    x = folded.view(b, k, w, 3, s, s)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=images.device) * 2 - 1

    gain = (1 + recipe.gain * draw(b, k, 1, 1, 1, 1)) * (1 + recipe.channel_gain * draw(b, k, 1, 3, 1, 1))
    x = (x * gain + recipe.offset * draw(b, k, 1, 1, 1, 1)).clamp(0, 255)
    return (x / 127.5 - 1).transpose(1, 2)


@dataclass(frozen=True)
class TrainingStage:
    """Part of a run with a learning rate's whole course: `steps` steps, `learning_rate` at its highest.

    demonstrations: further episodes of the expert that join the data when the stage begins; they are recorded while the
    stage before it runs. episodes: of the policy, as it is when the stage begins; with `ahead` as it is when the stage
    before it begins, and recorded while that runs. history: frames of a window in this stage, windows: of a step's
    batch; 0 for the policy's history_length, for the recipe's windows. seeing: only what the images alone tell is
    learned; frozen_vision: the vision tower stays as it is; with `seeing` only the heads that read its tokens are
    learned, as they must be after a `start`. focus: part of the windows that are drawn in proportion to how badly they
    were learned when last drawn, not with `seeing`. glimpses: scenes of which one frame joins the data, for stages with
    a `history` of 1, in any moment of a goal (`moments`). These four are of the tabletop tasks.
    """

    steps: int
    learning_rate: float = 1e-3
    demonstrations: int = 0
    episodes: int = 0
    ahead: bool = False
    history: int = 0
    windows: int = 0
    seeing: bool = False
    frozen_vision: bool = False
    focus: float = 0.0
    glimpses: int = 0

    def __post_init__(self) -> None:
        require(self.steps >= 1, "stages.steps", self.steps, "1 or more")
        require(0 <= self.focus < 1, "stages.focus", self.focus, "0 to below 1")
        require(not (self.seeing and self.focus), "stages.focus", self.focus, "0 where `seeing` is true")
        require(0 < self.learning_rate <= 1, "stages.learning_rate", self.learning_rate, "above 0 and at most 1")
        for name in ("demonstrations", "glimpses", "episodes", "history", "windows"):
            require(getattr(self, name) >= 0, f"stages.{name}", getattr(self, name), "0 or more")


def learning_rate(step: int, stage: TrainingStage, recipe: Recipe) -> float:
    """At a stage's step: warm-up, a constant part, then half a cosine."""
    if step < recipe.warmup:
        return stage.learning_rate * (step + 1) / recipe.warmup
    start = recipe.constant_part * stage.steps
    if step < start:
        return stage.learning_rate
    return stage.learning_rate * half_cosine(step - start, 0, stage.steps - start, recipe.final_rate)
