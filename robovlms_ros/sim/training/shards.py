"""Recorded shards as training windows (see `demonstrations` for what a shard holds)."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robovlms_ros.core.types import RoboVLMsError

Columns = Mapping[str, NDArray[Any]]


class DatasetError(RoboVLMsError):
    """Shards are missing, lack a column, or hold no window of the wanted length."""


class Reader(Protocol):
    """Chooses the columns that are kept of frames.

    kind: a dataclass of `images` and of the names that `columns` answers with, which windows come as.
    """

    kind: type

    def columns(self, shard: Columns) -> Columns:
        """What is kept of a shard's columns (F, ...), computed once a frame."""
        ...


class ShardFrames:
    """All frames of some shards, for one learner; shards may be added.

    device: where the columns are. On a CPU images stay on disk (memory-mapped), elsewhere they are there too (two
    cameras of 96 x 96 pixels: 55 kB a frame).
    """

    def __init__(self, reader: Reader, device: torch.device | str = "cpu") -> None:
        self._reader, self.device = reader, torch.device(device)
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
        """Append those shards that are not here yet, in order. Raises DatasetError without any, and for one
        that lacks a column."""
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
    """Windows of frames. window, stride: a window's length in frames and the distance between its frames. Raises
    DatasetError."""

    def __init__(self, frames: ShardFrames, window: int, stride: int) -> None:
        self._frames, self.window, self.stride = frames, window, stride
        episodes = frames.episodes
        span = (window - 1) * stride
        last = np.arange(len(episodes) - span)
        self.starts = last[episodes[last] == episodes[last + span]]
        if len(self.starts) == 0:
            raise DatasetError(f"no episode is longer than a window of {window} frames {stride} apart.")

    def windows(self, starts: NDArray[np.int64]) -> Any:
        """The windows that begin at these frames, a choice of `self.starts`; as the learner's `kind`."""
        frames = self._frames
        index = torch.from_numpy(starts[:, None] + self.stride * np.arange(self.window)).to(frames.device)  # (B, W)
        names = (field.name for field in fields(frames.kind) if field.name != "images")
        return frames.kind(frames.images(index), **{name: frames.column(name, index) for name in names})


def _tensor(values: NDArray[Any]) -> Tensor:
    whole = np.issubdtype(values.dtype, np.integer)
    return torch.from_numpy(np.ascontiguousarray(values, np.int64 if whole else np.float32))


def find_shards(folder: Path) -> list[Path]:
    """The complete shards below `folder`, sorted by path."""
    return sorted(path.parent for path in folder.glob("**/frames.npz"))
