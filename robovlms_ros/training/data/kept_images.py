"""Images of an episode source kept in memory at the policy's size: small policies wait for decoding
otherwise."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robovlms_ros.training.data.episodes import EpisodeArrays, EpisodeSource, Flaw, Images


class KeptImages:
    """`source` with every image squashed to `size` pixels a side when it is first read (None:
    as recorded); see `EpisodeSource`. An episode's images are read together.

    Memory: 3 size^2 bytes an image, in each process that reads.
    """

    def __init__(self, source: EpisodeSource, size: int | None) -> None:
        self._source = source
        self._size = size
        self._kept: dict[int, Images] = {}
        self.cameras = source.cameras
        self.rate_hz = source.rate_hz
        self.flaws: Sequence[Flaw] = source.flaws
        self.notes: Sequence[str] = source.notes
        self.accept: Sequence[str] = source.accept
        self.dropped: Mapping[str, str] = source.dropped

    def __len__(self) -> int:
        return len(self._source)

    def length(self, i: int) -> int:
        return self._source.length(i)

    def origin(self, i: int) -> str:
        return self._source.origin(i)

    def arrays(self, i: int) -> EpisodeArrays:
        return self._source.arrays(i)

    def images(self, i: int, steps: Sequence[int] | NDArray[np.int64]) -> Images:
        if i not in self._kept:
            every = self._source.images(i, np.arange(self._source.length(i)))
            self._kept[i] = {
                camera: frames if self._size is None else squash(frames, self._size)
                for camera, frames in every.items()
            }
        return {camera: frames[np.asarray(steps)] for camera, frames in self._kept[i].items()}


def squash(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(n, H, W, 3) to (n, size, size, 3), as the running policy does it."""
    if frames.shape[1:3] == (size, size):
        return frames
    resized = [
        np.asarray(Image.fromarray(f).resize((size, size), Image.Resampling.BICUBIC))
        for f in frames
    ]
    return np.stack(resized)
