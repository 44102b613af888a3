"""Recorded shards as training windows (see `demonstrations` for what a shard holds)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.types import RoboVLMsError

Array = NDArray[np.float32]


class DatasetError(RoboVLMsError):
    """Shards are missing, or hold no window of the wanted length."""


@dataclass(frozen=True)
class Windows:
    """B windows of W frames, oldest first. K runs over cameras, C over the cubes.

    images: (B, W, K, S, S, 3) uint8. poses (B, W, 4, 4), joints (B, W, 7), openings (B, W): as measured.
    cubes: (B, W, C, 3) m in the base frame. labels: (B, W, C, n, 7), the expert's chunk for each cube.
    """

    images: NDArray[np.uint8]
    poses: Array
    joints: Array
    openings: Array
    cubes: Array
    labels: Array


class DemonstrationSet:
    """All frames of some shards; images stay on disk (memory-mapped), the rest is in memory.

    window, stride: a window's length in frames and the distance between its frames. kind: what windows come as, a
    dataclass of `images` and of columns of the shards. Raises DatasetError.
    """

    def __init__(self, shards: Sequence[Path], window: int, stride: int, kind: type = Windows) -> None:
        if not shards:
            raise DatasetError("no shards of demonstrations: record some first (`robovlms demo-data`).")
        self.window, self.stride, self._kind = window, stride, kind
        self._images = [np.load(shard / "images.npy", mmap_mode="r") for shard in shards]
        columns: dict[str, list[NDArray]] = {}
        for shard in shards:
            with np.load(shard / "frames.npz") as data:
                for name in data.files:
                    columns.setdefault(name, []).append(data[name])
        self._columns = {name: np.concatenate(parts) for name, parts in columns.items()}
        self._first = np.cumsum([0, *(len(images) for images in self._images)])
        episodes = self._columns["episodes"]
        span = (window - 1) * stride
        last = np.arange(len(episodes) - span)
        self.starts = last[episodes[last] == episodes[last + span]]
        if len(self.starts) == 0:
            raise DatasetError(f"no episode is longer than a window of {window} frames {stride} apart.")

    def __len__(self) -> int:
        """Frames."""
        return int(self._first[-1])

    def windows(self, starts: NDArray[np.int64]) -> Any:
        """The windows that begin at these frames, a choice of `self.starts`; as the set's `kind`."""
        index = starts[:, None] + self.stride * np.arange(self.window)  # (B, W)
        images = np.stack([self._image(int(i)) for i in index.ravel()])
        columns = {
            name: self._columns[name][index].astype(np.float32)
            for name in (field.name for field in fields(self._kind) if field.name != "images")
        }
        return self._kind(images.reshape(*index.shape, *images.shape[1:]), **columns)

    def _image(self, frame: int) -> NDArray[np.uint8]:
        shard = int(np.searchsorted(self._first, frame, side="right")) - 1
        return self._images[shard][frame - self._first[shard]]


def find_shards(folder: Path) -> list[Path]:
    """The complete shards below `folder`, sorted by path."""
    return sorted(path.parent for path in folder.glob("**/frames.npz"))
