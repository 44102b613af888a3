"""Shares of data sets, and data sets by their names on the hub.

- Patterns share what is drawn by their numbers, whatever the sizes; windows of one pattern are
  drawn alike.
- A recording without a pattern or with two, a pattern without recordings, and shares that are none
  are refused.
- A data set OWNER/NAME is found where lerobot records, in its download cache and in the hub's; the
  newest counts.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from robovlms_ros.core.schema import ConfigError
from robovlms_ros.training.data.episodes import DataError
from robovlms_ros.training.data.mixture import read_mixture, window_shares
from robovlms_ros.training.data.selection import read_selections
from robovlms_ros.training.engine.batches import EpochSampler


class Windows:
    """Three episodes with 60, 20 and 20 windows."""

    def __len__(self) -> int:
        return 100

    def spans(self) -> list[tuple[int, int, int]]:
        return [(0, 0, 60), (1, 60, 20), (2, 80, 20)]


class Source:
    """The first episode is of `large`, the others of `day1` and `day2`."""

    names = ("/data/large, episode 0", "/data/day1, episode 0", "/data/day2, episode 0")

    def origin(self, i: int) -> str:
        return self.names[i]


RECORDINGS = {Path(name.partition(",")[0]): {name} for name in Source.names}


def shares(mixture: dict[str, float]) -> np.ndarray:
    return window_shares(Windows(), Source(), RECORDINGS, mixture)


def test_patterns_share_what_is_drawn():
    found = shares({"large": 1, "/data/day*": 3})
    assert found[:60] == pytest.approx(0.25 / 60) and found[60:] == pytest.approx(0.75 / 40)
    sampler = EpochSampler(100, 7, found)
    drawn = []
    for epoch in range(50):
        sampler.begin(epoch, 0)
        drawn += list(sampler)
    assert len(drawn) == 5000 and np.mean(np.array(drawn) >= 60) == pytest.approx(0.75, abs=0.03)
    sampler.begin(3, 90)
    assert list(sampler) == drawn[390:400] and len(sampler) == 10


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match="/data/day1 matches none of large: must match exactly one"):
        shares({"large": 1})
    with pytest.raises(ConfigError, match=r"/data/day1 matches day\*, day1 of"):
        shares({"large": 1, "day*": 1, "day1": 1})
    with pytest.raises(ConfigError, match="no recording to train on matches other"):
        shares({"large": 1, "day*": 1, "other": 1})
    for value in ({"a": 0}, {"a": float("nan")}, {"a": True}, {"a": "x"}):
        with pytest.raises(ConfigError, match=r"data\.mixture\.a = .*: must be a number above 0"):
            read_mixture(value, "data.mixture")
    for value in ({}, [1], "a"):
        with pytest.raises(ConfigError, match="must be a mapping from recordings"):
            read_mixture(value, "data.mixture")
    assert read_mixture(None, "data.mixture") == {}


def dataset(folder: Path, age: int = 0) -> Path:
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text("{}")
    os.utime(folder, (1e9 - age, 1e9 - age))
    return folder


def test_downloaded_data_sets_are_found_by_name(tmp_path, monkeypatch):
    for name in ("HF_LEROBOT_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(DataError, match="me/pick: does not exist, .* searched: .*lerobot/me/pick.*hf download"):
        read_selections(["me/pick"])
    snapshots = "datasets--me--pick/snapshots"
    dataset(tmp_path / "hub" / snapshots / "old", age=9)
    newest = dataset(tmp_path / "hub" / snapshots / "new")
    assert list(read_selections(["me/pick"])) == [newest]
    dataset(tmp_path / "lerobot" / "hub" / snapshots / "a", age=5)
    assert list(read_selections(["me/pick"])) == [newest]
    recorded = dataset(tmp_path / "lerobot" / "me" / "pick")
    assert list(read_selections(["me/pick"])) == [recorded]
    elsewhere = dataset(tmp_path / "own" / "me" / "pick")
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "own"))
    assert list(read_selections(["me/pick"])) == [elsewhere]
    assert list(read_selections(["one/of/three"])) == [Path("one/of/three")]
