"""Training windows in batches: order of an epoch, worker processes, and the inputs of the forward
pass.

A window is a mapping: `images` camera -> (W, H, W', 3) uint8, oldest frame first; `instruction`;
see `training.data.windows`.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.config.training import AugmentConfig, TrainingConfig
from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.models.heads.discrete import DiscreteHead
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.training.data.augment import augment_windows
from robovlms_ros.training.data.hindsight import LookWindows
from robovlms_ros.training.data.kept_images import squash


class TrainingError(RoboVLMsError):
    """A training run cannot begin or go on: the text has the cause, and what of it is kept."""


@dataclass(frozen=True)
class Collate:
    """Windows into one batch, in the DataLoader's workers: images squashed to the model's size as
    the policy does it.

    Raises TrainingError for a window that does not fit `config`.
    """

    config: PolicyConfig
    size: int

    def __call__(self, windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        for window in windows:
            self._check(window)
        images = {
            name: torch.from_numpy(
                np.stack([squash(np.asarray(w["images"][name]), self.size) for w in windows])
            )
            for name in self.config.cameras
        }  # (B, W, S, S, 3) uint8
        batch = {"images": images, "instruction": [str(w["instruction"]) for w in windows]}
        names = ("actions", "mask", *(("proprioception",) if self.config.proprioception else ()))
        names += ("hindsight", "turns") if self.config.training.hindsight is not None else ()
        names += ("weight",) if all("weight" in window for window in windows) else ()
        return {**batch, **{k: torch.from_numpy(np.stack([np.asarray(w[k]) for w in windows])) for k in names}}

    def looks(self, frames: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Items of `hindsight.LookWindows`: B frames under C instructions each. As a batch of B
        windows, but `actions`, `mask`, `weight` and `hindsight` are (B, C, ...), `instruction` B
        tuples."""
        count = len(frames[0])
        flat = self([window for frame in frames for window in frame])
        words = flat.pop("instruction")
        images = {name: values[::count] for name, values in flat.pop("images").items()}
        batch = {name: values.unflatten(0, (-1, count)) for name, values in flat.items()}
        for name in {"turns", "proprioception"} & set(batch):
            batch[name] = batch[name][:, 0]
        rows = [tuple(words[i : i + count]) for i in range(0, len(words), count)]
        return {**batch, "images": images, "instruction": rows}

    def _check(self, window: Mapping[str, Any]) -> None:
        model = self.config.model
        dims = self.config.action_head.action_dim
        length = model.history_length
        chunk = model.action_chunk_size
        shapes = {"actions": (length, chunk, dims), "mask": (length, chunk)}
        if self.config.proprioception is not None:
            shapes["proprioception"] = (length, self.config.proprioception.size)
        absent = [name for name in self.config.cameras if name not in window["images"]]
        if absent:
            raise TrainingError(
                f"a training window has no images of camera {', '.join(absent)}; it has "
                f"{', '.join(sorted(window['images'])) or 'none'}. Map the data's cameras to the configuration's names."
            )
        for name, shape in shapes.items():
            found = np.shape(window[name]) if name in window else None
            if found != shape:
                raise TrainingError(f"a training window's {name} has shape {found}: must be {shape} (configuration).")


def model_batch(
    policy: VLAPolicy,
    batch: Mapping[str, Any],
    augmentation: AugmentConfig | None = None,
    generator: torch.Generator | None = None,
    state_noise: float = 0.0,
    steady: Sequence[str] = (),
) -> dict[str, Any]:
    """A collated batch on the policy's device as `Objective` takes it; augmented where a generator
    is given.

    state_noise: standard deviation on the proprioception's normalised scale. steady: cameras whose
    images are not shifted.
    """
    device = policy.device
    still = augmentation and replace(augmentation, shift=0.0)
    images = {
        name: normalised_images(
            policy, frames.to(device), still if name in steady else augmentation, generator
        )
        for name, frames in batch["images"].items()
    }
    actions = batch["actions"].to(device).float()
    mask = batch["mask"].to(device).bool()
    result: dict[str, Any] = {"images": images, "arm": actions[..., :-1], "gripper": actions[..., -1], "mask": mask}
    if "weight" in batch:
        result["weight"] = batch["weight"].to(device)
    if "proprioception" in batch:
        result["proprioception"] = noisy_state(
            policy, batch["proprioception"].to(device), state_noise, generator
        )
    if isinstance(policy.head, DiscreteHead):
        return {**result, **action_tokens(policy, batch["instruction"], batch["actions"], batch["mask"])}
    return {**result, **policy.tokenize(batch["instruction"])}


def split_batch(batch: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """A collated batch in at most `count` parts of nearly the same number of windows."""
    windows = len(batch["instruction"])
    edges = np.linspace(0, windows, min(count, windows) + 1).round().astype(int)

    def part(value: Any, begin: int, end: int) -> Any:
        if isinstance(value, Mapping):
            return {name: part(inner, begin, end) for name, inner in value.items()}
        return value[begin:end]

    return [part(batch, int(a), int(b)) for a, b in pairwise(edges)]


def normalised_images(
    policy: VLAPolicy, frames: Tensor, augmentation: AugmentConfig | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B, W, S, S, 3) uint8 to (B, W, 3, S, S) as the vision tower takes them; augmented with a
    generator."""
    processor = policy.vlm.image_processor
    mean, std = (
        torch.tensor(x, device=frames.device)[:, None, None]
        for x in (processor.mean, processor.std)
    )
    pixels = frames.movedim(-1, -3).float().div_(255)
    if augmentation is not None and generator is not None:
        pixels = augment_windows(pixels, augmentation, generator)
    return pixels.sub(mean).div_(std)


def noisy_state(
    policy: VLAPolicy, state: Tensor, sigma: float, generator: torch.Generator | None = None
) -> Tensor:
    """Raw proprioception (..., P) with noise of `sigma` standard deviations; as it is without a
    generator."""
    if generator is None or not sigma or not state.numel():
        return state
    noise = torch.randn(state.shape, generator=generator, device=state.device)
    return state + sigma * policy.state_std * noise


def action_tokens(policy: VLAPolicy, instructions: Sequence[str], actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask`, `labels` (B, W, L): every frame's prompt, its chunk as tokens,
    and eos.

    Labels are -100 where nothing is learned: the prompt, padding, steps that the mask leaves out
    (eos is then no answer either). Padding is on the right.
    """
    prompt = policy.require_prompt()
    head = policy.head
    assert isinstance(head, DiscreteHead)
    values = actions.cpu().double().numpy().copy()
    values[..., -1] = np.where(values[..., -1] > 0.5, 1.0, -1.0)
    chunks = head.tokens.encode(values)  # (B, W, n, D)
    counted = np.repeat(mask.cpu().numpy()[..., None], values.shape[-1], axis=-1)
    eos = [] if prompt.eos_id is None else [int(prompt.eos_id)]
    rows: list[list[int]] = []
    labels: list[list[int]] = []
    for text, steps, counts in zip(instructions, chunks, counted, strict=True):
        words = prompt.ids(text)
        for tokens, keep in zip(steps.reshape(len(steps), -1), counts.reshape(len(counts), -1), strict=True):
            rows.append([*words, *map(int, tokens), *eos])
            end = eos if keep.all() else [-100] * len(eos)
            labels.append([-100] * len(words) + [int(t) if k else -100 for t, k in zip(tokens, keep)] + end)
    length = max(map(len, rows))
    shape = (*mask.shape[:2], length)

    def padded(table: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in table], device=policy.device).view(shape)

    attention = padded([[1] * len(row) for row in rows], 0)
    return {"input_ids": padded(rows, prompt.pad_id), "attention_mask": attention, "labels": padded(labels, -100)}


class EpochSampler(Sampler[int]):
    """An epoch's order, from the seed and the epoch alone; `begin` has the epoch, and how many are
    done already.

    shares: (length,) probabilities; an epoch is then `length` draws, in which an index may be
    absent and another one repeated. None: every index once.
    """

    def __init__(
        self, length: int, seed: int, shares: NDArray[np.float64] | None = None
    ) -> None:
        self.length = length
        self.seed = seed
        self.shares = shares
        self.epoch = self.done = 0

    def begin(self, epoch: int, done: int) -> None:
        self.epoch, self.done = epoch, min(done, self.length)

    def __len__(self) -> int:
        return self.length - self.done

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.shares is None:
            order = rng.permutation(self.length)
        else:
            order = rng.choice(self.length, self.length, p=self.shares)
        return iter(order[self.done :].tolist())


def build_loader(
    config: PolicyConfig, size: int, data: Dataset, sampler: Sampler[int] | Sequence[int]
) -> DataLoader:
    """Batches of `data` in the sampler's order, decoded and squashed to `size` pixels a side in
    `training.workers` processes."""
    training = config.training
    if training.workers > 0:
        gc.collect()  # not in a forked process, see `_keep_inherited`
    collate = Collate(config, size)
    together = isinstance(data, LookWindows)
    return DataLoader(
        data,
        training.batch_size,
        sampler=sampler,
        collate_fn=collate.looks if together else collate,
        num_workers=training.workers,
        persistent_workers=training.workers > 0,
        worker_init_fn=_keep_inherited,
    )


def _keep_inherited(worker: int) -> None:
    """Never collect what this process was forked with: a decoder's threads, which its end waits
    for, exist in the parent alone."""
    gc.freeze()


def require_windows(train: Dataset, validation: Dataset | None) -> None:
    """Raise TrainingError for a split without windows."""
    for name, data in (("training", train), ("validation", validation)):
        if data is not None and len(cast(Sized, data)) == 0:
            raise TrainingError(
                f"the {name} split holds no window: too few episodes, or all of them shorter than a window. Give more "
                "data, or another training.validation_fraction (0 holds nothing out)."
            )


@contextmanager
def watching_workers(training: TrainingConfig) -> Iterator[None]:
    """Within the block, a worker that was killed is a TrainingError (torch notices it by a signal,
    at any line)."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a process that decodes images died ({str(error).splitlines()[0]}), most often for lack of memory. "
            f"Lower training.workers (now {training.workers}) or batch_size, and run the same command again: it goes "
            "on from the last saved state."
        ) from error
