"""Episodes as training windows: W frames of history, after each the n normalised actions that
follow.

`episode_windows` and `action_chunks` are RoboVLMs' own rule on frame numbers, for comparison with
recorded cases.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.config.training import CorrectionsConfig
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.inference.action_pipeline import ActionPipeline
from robovlms_ros.training.data.episodes import (
    DataError,
    EpisodeArrays,
    EpisodeSource,
    Images,
    require_action,
)


def action_chunks(actions: Tensor, horizon: int) -> Tensor:
    """(..., T, A) to (..., T - horizon + 1, horizon, A): row t holds the actions t .. t + horizon -
    1."""
    return actions.unfold(-2, horizon, 1).movedim(-1, -2)


def episode_windows(
    length: int, window: int, horizon: int, left_pad: bool = False, sample: Literal["sliding", "range"] = "sliding"
) -> tuple[Tensor, Tensor]:
    """Frame indices (S, window + horizon) of an episode's samples, and a mask of those that exist.

    Each sample is `window` frames of history and `horizon` that follow, clamped to the episode.
    left_pad: samples whose history begins before the episode are kept too. sample `range`: each
    window `window` times, the i-th with its i oldest frames masked, so that a policy sees every
    length of history.
    """
    first = -(window - 1) if left_pad else 0
    starts = torch.arange(first, length - window + 1)
    indices = starts[:, None] + torch.arange(window + horizon)  # (S, window + horizon)
    mask = (indices >= 0) & (indices < length)
    indices = indices.clamp(0, length - 1)
    if sample == "range":
        # (window, window + horizon)
        seen = torch.arange(window + horizon) >= torch.arange(window)[:, None]
        mask = (mask[:, None] & seen).flatten(0, 1)
        indices = indices.repeat_interleave(window, dim=0)
    return indices, mask


KEPT_STEPS = 1 << 18
"""Steps whose numbers (not images) a process keeps: some 50 MB."""
Augment = Callable[[Images, np.random.Generator], Images]


def frame_stride(config: PolicyConfig) -> int:
    """Steps of the action between two frames of the history.

    Raises ConfigError unless `model.history_step` is a multiple of `action.step_duration`, within 1
    %.
    """
    require_action(config)
    assert config.action is not None
    if config.model.history_length == 1:
        return 1
    step = config.action.step_duration
    history = config.model.history_step
    if history is None:
        raise ConfigError("model.history_step is missing: s between the frames of the history. With one frame for each "
                          f"action it is action.step_duration ({step:g}).")
    stride = max(round(history / step), 1)
    if abs(history - stride * step) > 0.01 * step:
        raise ConfigError(f"model.history_step = {history:g} s: must be a multiple of action.step_duration = "
                          f"{step:g} s to train on evenly sampled steps, for instance {stride * step:g}.")
    return stride


def require_composition(config: PolicyConfig, arrays: EpisodeArrays) -> None:
    """Raise ConfigError for per-step deltas that are to be relative to the observation: their poses
    are not known."""
    action = config.action
    assert action is not None
    if arrays.chunks is None and action.space.endswith("_delta") and action.composition != "chained":
        raise ConfigError(
            f"action.composition = '{action.composition}' with {arrays.source}: its deltas are from step to step. Set "
            "'chained', or train on rosbags, whose chunks are computed from the measured poses."
        )


def chunks_at(arrays: EpisodeArrays, steps: NDArray[np.int64], horizon: int) -> tuple[NDArray, NDArray[np.bool_]]:
    """(S, n, D) SI actions that follow the steps, 0 where unknown, and (S, n) bool which are
    known."""
    if arrays.chunks is not None and arrays.known is not None:
        return arrays.chunks[steps], arrays.known[steps]
    rows = steps[:, None] + np.arange(horizon)  # (S, n)
    known = rows < len(arrays)
    values = arrays.actions[np.minimum(rows, len(arrays) - 1)]
    return np.where(known[..., None], values, 0.0), known


Moments = Mapping[str, Sequence[int]]
"""Recording -> stamps (ns) of frames that count like a person's corrections."""


def frame_weights(
    arrays: EpisodeArrays, corrections: CorrectionsConfig, moments: Moments | None = None
) -> NDArray[np.float32]:
    """(T,) weight of each frame in the loss, by who drives and who takes over soon."""
    until = arrays.takeover
    weights = np.ones(len(arrays), dtype=np.float32)
    stamps = (moments or {}).get(arrays.source.rpartition(", episode ")[0], ())
    weights[np.isin(arrays.stamps_ns, np.array(stamps, dtype=np.int64))] = corrections.person
    if until is not None:
        weights[until <= corrections.seconds] = corrections.before
        weights[until == 0] = corrections.person
    return weights


class WindowDataset(Dataset[dict[str, Any]]):
    """Every window of some episodes: `images` camera -> (W, H, W', 3) uint8, oldest first;
    `instruction`; `proprioception` (W, P) float32 raw SI, where the policy takes it; `actions` (W,
    n, D) float32 on the head's scale, the gripper's label last; `mask` (W, n) bool, False for steps
    that the episode does not have; `weight` (W,) float32, see `frame_weights`; with hindsight
    `hindsight` (W, 7), as in EpisodeArrays, and `turns` (W, 3, 3), base_R_eef.

    A window lies inside its episode. An episode that is shorter than the history gives one window,
    whose last frame is repeated and masked. augment: changes a window's images; its generator
    depends on `seed` and the index alone. An
    index of `len` or more is the window of that index modulo `len`, augmented anew: epoch e takes
        for e * len + i.

    Raises DataError for no episodes, and for one that is shorter than the chunk.
    """

    def __init__(
        self, source: EpisodeSource, episodes: Sequence[int], config: PolicyConfig,
        augment: Augment | None = None, seed: int = 0, moments: Moments | None = None,
    ) -> None:
        require_action(config)
        assert config.action is not None
        self._source = source
        self._config = config
        self._augment = augment
        self._seed = seed
        self._moments = moments
        self._episodes = list(episodes)
        self._stride = frame_stride(config)
        self._window = config.model.history_length
        self._horizon = config.model.action_chunk_size
        self._pipeline = ActionPipeline(config.action)
        self._kept: OrderedDict[int, EpisodeArrays] = OrderedDict()
        self._kept_steps = 0
        if not self._episodes:
            raise DataError("no episodes: this side of the split is empty. Record more, or change "
                            "training.validation_fraction.")
        for i in self._episodes:
            if source.length(i) < self._horizon:
                raise DataError(
                    f"{source.origin(i)} has {source.length(i)} steps, a chunk is {self._horizon} "
                    "(model.action_chunk_size): it is too short to learn from. Exclude it (`data: {exclude: [NAME]}`), "
                    "or predict fewer steps."
                )
        require_composition(config, source.arrays(self._episodes[0]))
        span = (self._window - 1) * self._stride
        counts = [max(source.length(i) - span, 1) for i in self._episodes]
        self._ends = np.cumsum(counts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_kept_steps": 0}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def spans(self) -> list[tuple[int, int, int]]:
        """(episode, its first window, how many windows it has) of each episode."""
        begins = [0, *map(int, self._ends[:-1])]
        counts = np.diff([0, *self._ends])
        return [(i, b, int(n)) for i, b, n in zip(self._episodes, begins, counts, strict=True)]

    def weights(self, arrays: EpisodeArrays) -> NDArray[np.float32]:
        """See `frame_weights`."""
        return frame_weights(arrays, self._config.training.corrections, self._moments)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = index % len(self)
        position = int(np.searchsorted(self._ends, place, side="right"))
        start = place - (int(self._ends[position - 1]) if position else 0)
        episode = self._episodes[position]
        arrays = self._arrays(episode)
        frames = start + self._stride * np.arange(self._window)
        steps = np.minimum(frames, len(arrays) - 1)
        values, known = chunks_at(arrays, steps, self._horizon)
        mask = known & (frames < len(arrays))[:, None]
        arm, gripper = self._pipeline.encode(values)
        actions = np.where(mask[..., None], np.concatenate([arm, gripper[..., None]], axis=-1), 0.0)
        images = self._source.images(episode, steps)
        if self._augment is not None:
            images = self._augment(images, np.random.default_rng((self._seed, index)))
        item = {"images": images, "instruction": arrays.instruction, "actions": actions.astype(np.float32),
                "mask": mask, "weight": self.weights(arrays)[steps]}
        if arrays.proprioception is not None:
            item["proprioception"] = arrays.proprioception[steps].astype(np.float32)
        if arrays.hindsight is not None and arrays.poses is not None:
            item["hindsight"] = arrays.hindsight[steps].astype(np.float32)
            item["turns"] = arrays.poses[steps, :3, :3].astype(np.float32)
        return item

    def _arrays(self, episode: int) -> EpisodeArrays:
        if episode not in self._kept:
            arrays = self._source.arrays(episode)
            self._kept_steps += len(arrays)
            while self._kept and self._kept_steps > KEPT_STEPS:
                self._kept_steps -= len(self._kept.popitem(last=False)[1])
            self._kept[episode] = arrays
        self._kept.move_to_end(episode)
        return self._kept[episode]
