"""Images of an episode source kept at the policy's size, in memory or in files: decoding is slower
than most policies learn."""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robovlms_ros.training.data.episodes import (
    DataError,
    EpisodeArrays,
    EpisodeSource,
    Flaw,
    Images,
)
from robovlms_ros.training.data.processes import in_processes

BLOCK = 64
"""Frames that are decoded together."""
FORMAT = "kept images 1"
REPORTED = 10
"""Lines of progress while files are written."""


class KeptImages:
    """`source` with every image squashed to `size` pixels a side (None: as recorded); see
    `EpisodeSource`.

    folder: of the files, which every process maps into its memory; written by `write`, read by
    every later run. None: in the memory of each process that reads, 3 size^2 bytes an image, an
    episode at a time when it is first read.
    """

    def __init__(
        self, source: EpisodeSource, size: int | None, folder: Path | None = None
    ) -> None:
        self._source = source
        self._size = size
        self._folder = folder
        self._kept: dict[int, Images] = {}
        self.cameras = source.cameras
        self.rate_hz = source.rate_hz
        self.flaws: Sequence[Flaw] = source.flaws
        self.notes: Sequence[str] = source.notes
        self.accept: Sequence[str] = source.accept
        self.dropped: Mapping[str, str] = source.dropped

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

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
            self._kept[i] = self._read(i) if self._folder is None else self._mapped(i, self._folder)
        return {camera: frames[np.asarray(steps)] for camera, frames in self._kept[i].items()}

    def write(self, jobs: Any, log: Callable[[str], None]) -> None:
        """Write the files that the folder lacks, `jobs` episodes at a time.

        Raises DataError for an image that does not decode, a folder that cannot be written, and
        one with too little space.
        """
        assert self._folder is not None
        folder = self._folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: images cannot be kept there ({error}). Name another folder "
                            "(data.keep_images).") from error
        absent = [i for i in range(len(self)) if not self._written(i, folder)]
        log(f"images: {len(self) - len(absent)} of {len(self)} episodes are in {folder}")
        if not absent:
            return
        self._require_space(absent, folder)
        marks = {round(k * len(absent) / REPORTED) for k in range(1, REPORTED + 1)}
        written = in_processes(_write, [(i,) for i in absent], jobs, _share, (self,))
        for done, _ in enumerate(written, 1):
            if done in marks:
                log(f"images: {done} of {len(absent)} episodes written")

    def write_episode(self, i: int) -> None:
        """Write the files of one episode, each in the place of any other of its name."""
        assert self._folder is not None
        frames = self._source.length(i)
        targets = {camera: self._file(i, camera, self._folder) for camera in self.cameras}
        parts = {camera: path.with_suffix(f".{os.getpid()}") for camera, path in targets.items()}
        stores: Images = {}
        try:
            for begin in range(0, frames, BLOCK):
                steps = np.arange(begin, min(begin + BLOCK, frames))
                for camera, pictures in self._squashed(i, steps).items():
                    if camera not in stores:
                        shape = (frames, *pictures.shape[1:])
                        stores[camera] = np.lib.format.open_memmap(
                            parts[camera], "w+", np.uint8, shape
                        )
                    stores[camera][steps] = pictures
            stores.clear()
            for camera, part in parts.items():
                part.replace(targets[camera])
        except OSError as error:
            raise DataError(f"{self._folder}: images of {self.origin(i)} cannot be written "
                            f"({error}). Make room, or name another folder "
                            "(data.keep_images).") from error
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)

    def _written(self, i: int, folder: Path) -> bool:
        """Test whether the files exist and still begin with the episode's first images."""
        files = {camera: self._file(i, camera, folder) for camera in self.cameras}
        if not all(path.is_file() for path in files.values()):
            return False
        first = self._squashed(i, np.arange(1))
        kept = self._mapped(i, folder)
        return all(np.array_equal(kept[camera][:1], first[camera]) for camera in self.cameras)

    def _require_space(self, absent: Sequence[int], folder: Path) -> None:
        """Raise DataError unless the images of these episodes fit into what the disk has left."""
        first = self._squashed(absent[0], np.arange(1))
        each = sum(pictures.nbytes for pictures in first.values())
        needed = each * sum(self._source.length(i) for i in absent)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise DataError(
                f"{folder}: the images take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are "
                "free. Name a folder on another disk (data.keep_images), or train on fewer episodes."
            )

    def _file(self, i: int, camera: str, folder: Path) -> Path:
        """The file of an episode and camera, named by what it is made from."""
        arrays = self._source.arrays(i)
        digest = hashlib.sha256(f"{FORMAT}|{self.origin(i)}|{camera}|{self._size}".encode())
        digest.update(arrays.stamps_ns.tobytes())
        digest.update(arrays.actions.tobytes())
        return folder / f"{digest.hexdigest()[:32]}.npy"

    def _mapped(self, i: int, folder: Path) -> Images:
        found: Images = {}
        for camera in self.cameras:
            path = self._file(i, camera, folder)
            try:
                found[camera] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: kept images of {self.origin(i)} cannot be read "
                                f"({error}). Remove the file, and run the same command "
                                "again.") from error
        return found

    def _read(self, i: int) -> Images:
        return self._squashed(i, np.arange(self._source.length(i)))

    def _squashed(self, i: int, steps: NDArray[np.int64]) -> Images:
        found = self._source.images(i, steps)
        if self._size is None:
            return found
        return {camera: squash(frames, self._size) for camera, frames in found.items()}


_shared: KeptImages | None = None
"""The images whose files this process writes."""


def _share(images: KeptImages) -> None:
    global _shared
    _shared = images


def _write(i: int) -> None:
    assert _shared is not None
    _shared.write_episode(i)


def squash(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(n, H, W, 3) to (n, size, size, 3), as the running policy does it."""
    if frames.shape[1:3] == (size, size):
        return frames
    resized = [
        np.asarray(Image.fromarray(f).resize((size, size), Image.Resampling.BICUBIC))
        for f in frames
    ]
    return np.stack(resized)
