"""Videos as LeRobot records them by default (AV1), read by the process itself and by a DataLoader's
workers.

- A worker that is forked from a process with an open video reads too: it must not close what it
  inherited, whose decoder's threads exist in the parent alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from robovlms_ros.training.data.sources.video import VideoFrames

FPS = 10
FRAMES = 8


@pytest.fixture
def video(tmp_path) -> Path:
    av = pytest.importorskip("av")
    path = tmp_path / "episode.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libsvtav1", rate=FPS, options={"g": "2", "crf": "30"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(FRAMES):
            grey = np.full((64, 64, 3), 20 + 25 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


class Greys:
    """The grey of each frame."""

    def __init__(self, path: Path) -> None:
        self.path, self.frames = path, VideoFrames(0.5 / FPS)

    def __len__(self) -> int:
        return FRAMES

    def __getitem__(self, number: int) -> Any:
        return float(self.frames.at(self.path, [number / FPS])[0].mean())


def test_a_worker_of_a_process_that_decoded_reads_too(video):
    greys = Greys(video)
    expected = [20 + 25 * number for number in range(FRAMES)]
    assert greys[3] == pytest.approx(expected[3], abs=4)
    loader = DataLoader(greys, batch_size=None, num_workers=2, timeout=60)  # s, then it raises
    assert list(loader) == pytest.approx(expected, abs=4)
    assert greys[0] == pytest.approx(expected[0], abs=4)
