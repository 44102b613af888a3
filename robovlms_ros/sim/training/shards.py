"""Recorded shards as training windows (see `demonstrations` for a shard's content).

A recording without a simulator does not hold the place of the named object. Once it is over, it
holds the place where the fingers closed on it; with `hindsight` every frame that led there is
labelled with it (compare hindsight goals, Andrychowicz et al. 2017).
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.sim.tasks.language import INSTRUCTIONS, goals

Columns = Mapping[str, NDArray[Any]]


class DatasetError(RoboVLMsError):
    """Shards are missing, lack a column, or hold no window of the wanted length."""


class Reader(Protocol):
    """Chooses the columns that are kept of frames.

    kind: a dataclass of `images` and of the names that `columns` answers with, which windows come
        as.
    """

    kind: type

    def columns(self, shard: Columns) -> Columns:
        """Columns of a shard (F, ...), computed once a frame."""
        ...


class ShardFrames:
    """All frames of some shards, for one learner; shards may be added.

    device: where the columns are. On a CPU images stay on disk (memory-mapped), elsewhere they are
        there too (two
    cameras of 96 x 96 pixels: 55 kB a frame).
    """

    def __init__(self, reader: Reader, device: torch.device | str = "cpu") -> None:
        self._reader = reader
        self.device = torch.device(device)
        self._shards: list[Path] = []
        self._mapped: list[NDArray[np.uint8]] = []
        self._images = torch.empty(0, dtype=torch.uint8)
        self._columns: dict[str, Tensor] = {}
        self.episodes = np.empty(0, np.int64)
        """(F,) of which episode a frame is."""

    @property
    def shards(self) -> int:
        return len(self._shards)

    def __len__(self) -> int:
        return len(self.episodes)

    def add(self, shards: Sequence[Path]) -> "ShardFrames":
        """Append those shards that are not here yet, in order. Raises DatasetError without any, and
        for one that lacks a column."""
        new = [shard for shard in shards if shard not in self._shards]
        if not new and not self._shards:
            raise DatasetError("no shards of demonstrations: record some first (`robovlms demo-data`).")
        if not new:
            return self
        parts: dict[str, list[Tensor]] = {name: [tensor] for name, tensor in self._columns.items()}
        episodes = [self.episodes]
        for shard in new:
            with np.load(shard / "frames.npz") as data:
                raw = {name: data[name] for name in data.files}
            episodes.append(raw["episodes"])
            try:
                kept = self._reader.columns(raw)
            except KeyError as error:
                raise DatasetError(
                    f"{shard}: there is no column {error}, only {', '.join(raw)}: it was recorded for other tasks or "
                    "by an older version. Delete the folder to record it again, or give another --output."
                ) from error
            for name, values in kept.items():
                parts.setdefault(name, []).append(_tensor(values).to(self.device))
        self._columns = {name: torch.cat(tensors) for name, tensors in parts.items()}
        self.episodes = np.concatenate(episodes)
        mapped = [np.load(shard / "images.npy", mmap_mode="r") for shard in new]
        if self.device.type == "cpu":
            self._mapped += mapped
        else:
            moved = [torch.from_numpy(np.array(images)).to(self.device) for images in mapped]
            self._images = torch.cat([*([self._images] if len(self._images) else []), *moved])
        self._first = np.cumsum([0, *(len(images) for images in self._mapped)])
        self._shards += new
        return self

    def images(self, index: Tensor) -> Tensor:
        """(..., K, S, S, 3) uint8 of the frames at index (...)."""
        if self.device.type != "cpu":
            return self._images[index]
        flat = index.flatten().numpy()
        shards = np.searchsorted(self._first, flat, side="right") - 1
        found = np.stack([
            self._mapped[shard][frame - self._first[shard]] for shard, frame in zip(shards, flat, strict=True)
        ])
        return torch.from_numpy(found).unflatten(0, index.shape)

    def column(self, name: str, index: Tensor) -> Tensor:
        """(..., *) of the frames at index (...)."""
        return self._columns[name][index]

    @property
    def kind(self) -> type:
        return self._reader.kind


class DemonstrationSet:
    """Windows of frames. window, stride: a window's length in frames and the distance between its
    frames. Raises DatasetError."""

    def __init__(self, frames: ShardFrames, window: int, stride: int) -> None:
        self._frames = frames
        self.window = window
        self.stride = stride
        episodes = frames.episodes
        span = (window - 1) * stride
        last = np.arange(len(episodes) - span)
        self.starts = last[episodes[last] == episodes[last + span]]
        if len(self.starts) == 0:
            raise DatasetError(f"no episode is longer than a window of {window} frames {stride} apart.")

    def windows(self, starts: NDArray[np.int64]) -> Any:
        """The windows that begin at these frames, a choice of `self.starts`; as the learner's
        `kind`."""
        frames = self._frames
        # (B, W)
        index = torch.from_numpy(starts[:, None] + self.stride * np.arange(self.window)).to(frames.device)
        names = (field.name for field in fields(frames.kind) if field.name != "images")
        return frames.kind(frames.images(index), **{name: frames.column(name, index) for name in names})


def _tensor(values: NDArray[Any]) -> Tensor:
    whole = np.issubdtype(values.dtype, np.integer)
    return torch.from_numpy(np.ascontiguousarray(values, np.int64 if whole else np.float32))


def find_shards(folder: Path) -> list[Path]:
    """The complete shards below `folder`, sorted by path."""
    return sorted(path.parent for path in folder.glob("**/frames.npz"))


CUBE_GOALS = [goals().index(goal) for goal in INSTRUCTIONS.values()]
"""The two cubes' goals as shards number them."""

OPEN = 0.9
"""Opening of the gripper (0 closed, 1 open) from which on nothing is held."""


def followed_cubes(shard: Columns) -> NDArray[np.int64]:
    """(F,): which of the two cubes a frame's instruction named, in the order of INSTRUCTIONS."""
    return np.argmax(shard["goals"][:, :1] == np.array(CUBE_GOALS), axis=1)


def grasped_places(shard: Columns) -> NDArray[np.float32]:
    """(F, C, 3): for the thing that an episode took in the end, at each of its frames, m in the
    base frame: where the hand took hold of it, and from then on where the hand is, since the thing
        goes with it. For what another episode of
    the same scene took: where it did so. Not a number for the other things.

    Frames before a change of the instruction know the place, too: what was instructed there and
    what is known in hindsight are then two instructions for one image.
    """
    hands = shard["poses"][:, :3, 3]
    openings = shard["openings"]
    episodes = shard["episodes"]
    followed = followed_cubes(shard)
    places = np.full((len(episodes), len(CUBE_GOALS), 3), np.nan, np.float32)
    scenes = shard["scenes"]
    taken: dict[int, list[tuple[int, NDArray[Any]]]] = {}  # scene -> (which thing, where)
    ends = np.flatnonzero(np.append(episodes[1:] != episodes[:-1], True)) + 1
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        named = followed[end - 1]
        changed = begin + _after_last(followed[begin:end] != named)
        grasp = changed + _after_last(openings[changed:end] >= OPEN)
        if grasp < end:
            taken.setdefault(int(scenes[begin]), []).append((named, hands[grasp]))
            places[begin:grasp, named] = hands[grasp]
            places[grasp:end, named] = hands[grasp:end]
    for scene, found in taken.items():
        for named, place in found:
            unknown = (scenes == scene) & np.isnan(places[:, named, 0])
            places[unknown, named] = place
    return places


def _after_last(flags: NDArray[Any]) -> int:
    """The index after the last true one; 0 without one."""
    found = np.flatnonzero(flags)
    return int(found[-1]) + 1 if len(found) else 0
