"""The picture of an episode's preview: a row for each camera, the path drawn in."""

import numpy as np
import pytest
from PIL import Image


def test_picture_of_an_episode(tmp_path):
    pytest.importorskip("robosuite", reason="the simulator is not installed")
    from robovlms_ros.control.preview import COLOURS
    from robovlms_ros.sim.preview_picture import GAP, IMAGE_SIZE, MOMENTS, draw_episode

    path = tmp_path / "preview.png"
    draw_episode(path, "demo", 1, limit=1.0)
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    side = IMAGE_SIZE + GAP
    assert picture.shape == (2 * side - GAP, MOMENTS * side - GAP, 3)
    colours = np.array(list(COLOURS.values()))
    for row in range(2):
        tile = picture[row * side + 40 : row * side + IMAGE_SIZE, :IMAGE_SIZE]
        nearest = np.abs(tile[:, :, None] - colours).sum(axis=3).min(axis=2)
        assert (nearest < 60).sum() > 30, "a path below the caption"
