"""Recordings relabelled in hindsight: where the gripper took hold in the end, and what the person
does from there.

Once it is over, a recording holds the place that the instruction meant: where the gripper closed
for the last time. Every frame is labelled with it (compare hindsight goals, Andrychowicz et al.
2017). Episodes that show one scene for several instructions lend each other their places: a frame
then has a label under each of the instructions.

A person's commands waver. But beside the place that was meant they are a function of few numbers,
the hand's pose relative to it and the gripper's opening, which a small network learns from all
episodes at once: the person's habit without the wavering. Its answer is the label of the chunk,
under every instruction whose place is known (`relabel`). Nothing but the recording serves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from robovlms_ros.config.training import HindsightConfig
from robovlms_ros.core.rotations import vector_from_matrix
from robovlms_ros.training.data.episodes import (
    Array,
    DataError,
    EpisodeArrays,
    EpisodeSource,
    Flaw,
    Images,
)
from robovlms_ros.training.data.windows import WindowDataset

OPEN = 0.9
"""Opening of the gripper (0 closed, 1 open) from which on nothing is held."""
NEAR = 0.01
FAR = 0.1
"""Metres beside the place that the habit distinguishes finely, and at all."""
STILL = 5e-4
STILL_TURN = 2e-3
"""Of one step, m and rad: a hand whose command is less is idle."""
LEAST_SCALE = 1e-3
"""Of an action's numbers: what varies less (m, rad) is no motion."""


@dataclass(frozen=True)
class Grasp:
    """The last closing of an episode. step: the first at which the gripper is no longer open.
    pose: (4, 4) base_T_eef there."""

    step: int
    pose: Array


def find_grasp(arrays: EpisodeArrays) -> Grasp | None:
    """Find the last closing of the gripper; None for an episode that ends with an open one."""
    assert arrays.poses is not None and arrays.openings is not None
    opened = np.flatnonzero(arrays.openings >= OPEN)
    step = int(opened[-1]) + 1 if len(opened) else 0
    return Grasp(step, arrays.poses[step]) if step < len(arrays) else None


def relative(poses: Array, openings: Array, goal: Array) -> Array:
    """(T, 7) of hands (T, 4, 4): the way to the goal (4, 4), m, and the rotation vector to it, both
    in the base frame, and the opening."""
    turns = np.stack([vector_from_matrix(goal[:3, :3] @ pose[:3, :3].T) for pose in poses])
    return np.concatenate((goal[:3, 3] - poses[:, :3, 3], turns, openings[:, None]), axis=1)


def idle(arrays: EpisodeArrays) -> NDArray[np.bool_]:
    """(T,): frames after which no command moves the hand or the fingers.

    A person looks before moving, and stops to look. A policy that learns the pause never ends it:
    it sees the same image again.
    """
    assert arrays.openings is not None
    first = arrays.actions
    moves = np.linalg.norm(first[:, :3], axis=1) > STILL
    turns = np.linalg.norm(first[:, 3:-1], axis=1) > STILL_TURN
    grips = np.abs(first[:, -1] - arrays.openings) > 1 - OPEN
    return ~(moves | turns | grips)


HABIT_WIDTH = 128


class Habit(nn.Module):
    """From `relative` (N, 7) to the chunk (N, n, D), its arm in units of `scale` (D - 1,), the
    gripper's logit last."""

    def __init__(self, horizon: int, scale: Array) -> None:
        super().__init__()
        dims = len(scale) + 1
        self.shape = (horizon, dims)
        self.scale = scale
        self.layers = nn.Sequential(
            nn.Linear(13, HABIT_WIDTH),
            nn.GELU(),
            nn.Linear(HABIT_WIDTH, HABIT_WIDTH),
            nn.GELU(),
            nn.Linear(HABIT_WIDTH, HABIT_WIDTH),
            nn.GELU(),
            nn.Linear(HABIT_WIDTH, horizon * dims),
        )

    def forward(self, seen: Tensor) -> Tensor:
        way = seen[:, :3]
        turn = seen[:, 3:6]
        opening = seen[:, 6:]
        parts = (
            way / FAR,
            torch.tanh(way / NEAR),
            turn / FAR,
            torch.tanh(way / (3 * NEAR)),
            opening,
        )
        return self.layers(torch.cat(parts, dim=1)).unflatten(1, self.shape)

    @torch.no_grad()
    def chunks(self, seen: Array) -> Array:
        """(N, n, D) SI chunks, the gripper 0 or 1."""
        guess = self(torch.from_numpy(seen.astype(np.float32))).double().numpy()
        return np.concatenate((guess[..., :-1] * self.scale, guess[..., -1:] > 0), axis=-1)


def learn_habit(
    seen: Array, actions: Array, known: NDArray[np.bool_], steps: int, seed: int
) -> Habit:
    """Fit the habit. seen (N, 7), actions (N, n, D) SI with the opening last, known (N, n)."""
    scale = np.maximum(actions[..., :-1][known].std(axis=0), LEAST_SCALE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        habit = Habit(actions.shape[1], scale)
        actions = np.concatenate((actions[..., :-1] / scale, actions[..., -1:]), axis=-1)
        inputs, wanted = (torch.from_numpy(x.astype(np.float32)) for x in (seen, actions))
        counted = torch.from_numpy(known)
        optimiser = torch.optim.AdamW(habit.parameters(), 2e-3, weight_decay=1e-4)
        course = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            drawn = torch.randint(len(inputs), (256,))
            guess = habit(inputs[drawn])
            chosen = counted[drawn]
            arm = functional.smooth_l1_loss(
                guess[..., :-1][chosen], wanted[drawn][..., :-1][chosen], beta=0.1
            )
            gripper = functional.binary_cross_entropy_with_logits(
                guess[..., -1][chosen], wanted[drawn][..., -1][chosen]
            )
            optimiser.zero_grad()
            (arm + 0.2 * gripper).backward()
            optimiser.step()
            course.step()
    return habit.eval()


@dataclass(frozen=True)
class _Look:
    """An episode under one instruction: of the episode itself, or of another one of its scene."""

    episode: int
    asked: int


class HindsightSource:
    """Episodes of `source`, each once for every instruction of its scene whose place is known; see
    `EpisodeSource`.

    seed: of the habit's weights. Raises DataError for recordings without a tool pose or a gripper,
    and for scenes that are no whole number.
    """

    def __init__(self, source: EpisodeSource, config: HindsightConfig, seed: int = 0) -> None:
        self._source = source
        self._config = config
        self.cameras = source.cameras
        self.rate_hz = source.rate_hz
        self.flaws: Sequence[Flaw] = source.flaws
        self.notes: Sequence[str] = source.notes
        self.accept: Sequence[str] = source.accept
        self.dropped: Mapping[str, str] = source.dropped
        self._arrays = [source.arrays(i) for i in range(len(source))]
        for i, arrays in enumerate(self._arrays):
            if arrays.poses is None or arrays.openings is None:
                raise DataError(
                    f"training.hindsight with {arrays.source}: the recording has no tool pose or "
                    "no gripper's opening. Take rosbags of a robot with a description and a "
                    "gripper, or leave out training.hindsight."
                )
            if arrays.known is not None and config.skip_idle:
                moving = ~idle(arrays)[:, None]
                self._arrays[i] = replace(arrays, known=arrays.known & moving)
        self._grasps = [find_grasp(arrays) for arrays in self._arrays]
        self.scenes = self._scenes()
        self._looks = [look for i in range(len(source)) for look in self._looks_at(i)]
        self.habit = self._learn(seed) if config.relabel else None

    def summary(self) -> str:
        """One sentence about the relabelled recordings."""
        lent = sum(look.asked != look.episode for look in self._looks)
        without = sum(grasp is None for grasp in self._grasps)
        scenes = len(set(self.scenes))
        return (
            f"hindsight: {len(self._arrays)} episodes of {scenes} scenes, {lent} more under "
            f"another instruction of their scene; in {without} the gripper took hold of nothing"
        )

    def _scenes(self) -> list[int]:
        """The scene of every episode: `episodes_per_scene` recorded ones after each other."""
        count = self._config.episodes_per_scene
        names = list(dict.fromkeys(arrays.source for arrays in self._arrays))
        if len(names) % count:
            raise DataError(
                f"training.hindsight.episodes_per_scene = {count}: {len(names)} recorded episodes "
                "are no whole number of scenes. Give all episodes of a scene one after the other, "
                "or set it to 1."
            )
        return [names.index(arrays.source) // count for arrays in self._arrays]

    def _looks_at(self, i: int) -> list[_Look]:
        own = self._arrays[i].instruction
        asked = {own: i}
        for j in range(len(self._arrays)):
            fits = self.scenes[j] == self.scenes[i] and self._grasps[j] is not None
            if fits:
                asked.setdefault(self._arrays[j].instruction, j)
        return [_Look(i, j) for j in asked.values()]

    def _learn(self, seed: int) -> Habit:
        seen: list[Array] = []
        actions: list[Array] = []
        known: list[NDArray[np.bool_]] = []
        for arrays, grasp in zip(self._arrays, self._grasps, strict=True):
            if grasp is None or arrays.chunks is None or arrays.known is None:
                continue
            assert arrays.poses is not None and arrays.openings is not None
            seen.append(relative(arrays.poses, arrays.openings, grasp.pose))
            actions.append(arrays.chunks)
            known.append(arrays.known)
        if not seen:
            raise DataError(
                "training.hindsight: in no recording the gripper took hold of something."
            )
        steps = self._config.relabel_steps
        return learn_habit(
            np.concatenate(seen), np.concatenate(actions), np.concatenate(known), steps, seed
        )

    def __len__(self) -> int:
        return len(self._looks)

    def length(self, i: int) -> int:
        return self._source.length(self._looks[i].episode)

    def origin(self, i: int) -> str:
        """Name of the scene: its episodes belong on one side of a split."""
        scene = self.scenes[self._looks[i].episode]
        return next(a.source for a, s in zip(self._arrays, self.scenes, strict=True) if s == scene)

    def episode(self, i: int) -> int:
        """Number of the recorded piece that `i` shows under one instruction."""
        return self._looks[i].episode

    def images(self, i: int, steps: Sequence[int] | NDArray[np.int64]) -> Images:
        return self._source.images(self._looks[i].episode, steps)

    def arrays(self, i: int) -> EpisodeArrays:
        look = self._looks[i]
        arrays = self._arrays[look.episode]
        own = look.asked == look.episode
        grasp = self._grasps[look.asked]
        assert arrays.poses is not None and arrays.openings is not None
        if grasp is None:
            return replace(arrays, hindsight=np.full((len(arrays), 7), np.nan))
        seen = relative(arrays.poses, arrays.openings, grasp.pose)
        words = self._arrays[look.asked].instruction
        chunks, known = self._chunks(arrays, seen, own)
        if own:
            seen[grasp.step :, :3] = 0.0  # what is held goes with the hand
        return replace(
            arrays,
            hindsight=seen,
            instruction=words,
            chunks=chunks,
            known=known,
            actions=chunks[:, 0],
        )

    def _chunks(
        self, arrays: EpisodeArrays, seen: Array, own: bool
    ) -> tuple[Array, NDArray[np.bool_]]:
        """The chunks under an instruction, SI, and which of their steps are known."""
        assert arrays.chunks is not None and arrays.known is not None
        assert arrays.openings is not None
        known = arrays.known
        if not own:
            # What the hand does with another thing in it, or about to be, was never shown.
            known = np.repeat(arrays.openings[:, None] >= OPEN, known.shape[1], axis=1)
        if self.habit is None:
            return arrays.chunks, known if own else np.zeros_like(known)
        chunks = self.habit.chunks(seen)
        return chunks, np.ones_like(known) if own else known


class LookWindows(Dataset[list[dict[str, Any]]]):
    """Windows of a HindsightSource by frame: an item is a list of the window under each of the
    instructions of its scene, equally long for all frames; what fills it up has an empty mask and
    no place.

    Learned side by side they differ in nothing but the words, and their images are encoded once.
    """

    def __init__(self, source: HindsightSource, data: WindowDataset) -> None:
        self._data = data
        self._looks: dict[int, list[int]] = {}  # recorded piece -> where its windows begin
        self._counts: dict[int, int] = {}
        for i, begin, count in data.spans():
            self._looks.setdefault(source.episode(i), []).append(begin)
            self._counts[source.episode(i)] = count
        self._ends = np.cumsum(list(self._counts.values()))
        self._pieces = list(self._counts)
        self._most = max(len(begins) for begins in self._looks.values())

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        position = int(np.searchsorted(self._ends, index, side="right"))
        offset = index - (int(self._ends[position - 1]) if position else 0)
        windows = [self._data[begin + offset] for begin in self._looks[self._pieces[position]]]
        nothing = {
            "mask": np.zeros_like(windows[0]["mask"]),
            "hindsight": np.full_like(windows[0]["hindsight"], np.nan),
        }
        return windows + [{**windows[0], **nothing}] * (self._most - len(windows))
