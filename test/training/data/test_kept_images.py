"""Images kept in memory or in files.

- Both give the squashed images of the source, in the order of the steps, also in another process.
- Files are written once and read by the next run; those of another recording under the same name,
  and of other images, are written again.
- A full disk, a folder that cannot be made and a damaged file are named; no half file stays.
"""

import pickle
import shutil
from typing import Any

import numpy as np
import pytest

from robovlms_ros.training.data.episodes import DataError, EpisodeArrays
from robovlms_ros.training.data.kept_images import BLOCK, KeptImages, squash


class Episodes:
    """Two episodes of two cameras; counts the images that are decoded."""

    cameras = ("front", "wrist")
    rate_hz = 10.0
    notes = flaws = accept = ()
    dropped: Any = {}  # noqa: RUF012

    def __init__(self, shift: float = 0.0, first: int = 0, fail_at: int | None = None):
        self.shift, self.first, self.fail_at, self.decoded = shift, first, fail_at, 0

    def __len__(self) -> int:
        return 2

    def length(self, i: int) -> int:
        return (BLOCK + 7, 5)[i]

    def origin(self, i: int) -> str:
        return f"bag, episode {i}"

    def arrays(self, i: int) -> EpisodeArrays:
        count = self.length(i)
        actions = np.full((count, 7), self.shift)
        return EpisodeArrays(np.arange(count), actions, None, "lift", self.origin(i))

    def images(self, i: int, steps: Any) -> dict[str, np.ndarray]:
        if self.fail_at is not None and self.fail_at in steps:
            raise DataError("does not decode")
        self.decoded += len(steps)
        rng = [np.random.default_rng([self.first, i, int(t)]) for t in steps]
        made = {"front": (12, 16), "wrist": (9, 9)}
        return {
            camera: np.stack([r.integers(0, 256, (*size, 3), np.uint8) for r in rng])
            for camera, size in made.items()
        }


def silent(text: str) -> None:
    pass


@pytest.mark.parametrize("in_files", [False, True])
def test_kept_images_are_the_squashed_ones(tmp_path, in_files):
    kept = KeptImages(Episodes(), 8, tmp_path / "kept" if in_files else None)
    if in_files:
        kept.write(1, silent)
    steps = [BLOCK + 3, 0, 2, 2]
    copy = pickle.loads(pickle.dumps(kept))
    for images in (kept, copy):
        found = images.images(0, steps)
        for camera, frames in Episodes().images(0, steps).items():
            assert np.array_equal(found[camera], squash(frames, 8))
    assert (len(kept), kept.length(1), kept.origin(1)) == (2, 5, "bag, episode 1")


def test_files_are_written_once(tmp_path):
    lines: list[str] = []
    KeptImages(Episodes(), 8, tmp_path).write(1, lines.append)
    assert lines[0].startswith("images: 0 of 2 episodes are in") and lines[-1] == "images: 2 of 2 episodes written"
    assert len(list(tmp_path.iterdir())) == 4
    again = Episodes()
    kept = KeptImages(again, 8, tmp_path)
    kept.write(1, lines.append)
    assert lines[-1].startswith("images: 2 of 2 episodes are in")
    kept.images(0, range(BLOCK))
    assert again.decoded == 2  # the first image of each episode, to compare


def test_other_recordings_and_other_images_are_written_again(tmp_path):
    KeptImages(Episodes(), 8, tmp_path).write(1, silent)
    for changed, files in ((Episodes(shift=1.0), 8), (Episodes(first=1), 8)):
        kept = KeptImages(changed, 8, tmp_path)
        kept.write(1, silent)
        assert np.array_equal(kept.images(1, [4])["wrist"], squash(changed.images(1, [4])["wrist"], 8))
        assert len(list(tmp_path.iterdir())) == files
    KeptImages(Episodes(), 4, tmp_path).write(1, silent)
    assert len(list(tmp_path.iterdir())) == 12


def test_what_cannot_be_written_or_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/kept: images cannot be kept there"):
        KeptImages(Episodes(), 8, tmp_path / "file" / "kept").write(1, silent)
    with pytest.raises(DataError, match="does not decode"):
        KeptImages(Episodes(fail_at=BLOCK + 1), 8, tmp_path / "a").write(1, silent)
    assert not list((tmp_path / "a").iterdir())
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(DataError, match="the images take 0.0 GiB, 0.0 GiB are free"):
            KeptImages(Episodes(), 8, tmp_path / "b").write(1, silent)
    kept = KeptImages(Episodes(), 8, tmp_path / "c")
    kept.write(1, silent)
    for path in (tmp_path / "c").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"kept images of bag, episode 0 cannot be read .* Remove the file"):
        kept.images(0, [0])
