"""`robovlms export` and `robovlms data`.

- A bag with marks and a take-over, written as a LeRobot folder, gives back the same numbers,
  instructions, outcomes, interventions and images, by this package's own reader: PNGs exactly,
  video nearly.
- The folder's metadata are those that the lerobot package looks up; statistics are the numbers'.
- Nothing is written over, an interrupted export leaves nothing behind, images of odd sizes are
  refused with a remedy.
- Selections by mark, instruction, take-over and share name episodes of recordings that stay as they
  are; a selection is read in the place of recordings, wherever the program runs; damaged ones are
  refused.
"""

import json

import numpy as np
import pytest

from robovlms_ros.cli.main import main
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.training.data.episodes import DataError
from robovlms_ros.training.data.lerobot_export import LeRobotExport
from robovlms_ros.training.data.open_sources import open_sources
from robovlms_ros.training.data.selection import read_selections
from robovlms_ros.training.data.sources.bag_episodes import OUTCOMES

STATE = {"proprioception": {"names": ["joint_positions", "gripper"], "joints": 7}}
LEROBOT = {"lerobot": {"proprioception": {"joint_positions": list(range(7)), "gripper": [7]}}}
MARKED = {
    "bag": {
        "robot": "panda",
        "topics": {"commands": "/leader/joint_states"},
        "outcomes": list(OUTCOMES),
    }
}


def marked(bags, path):
    """Three episodes: a success in which a person takes over, a failure, one without a mark."""
    texts = {
        0: ("/episode", "first"),
        95: ("/episode", "success"),
        100: ("/instruction", "push the bowl"),
        101: ("/episode", "second"),
        195: ("/episode", "failure"),
        200: ("/episode", "third"),
    }

    def also(bag, tick, now):
        if tick in texts:
            bag.text(texts[tick][0], now, texts[tick][1])
        if tick in (40, 65):  # the first command of the person is that of tick 45
            fields = {"POLICY": "policy", "HUMAN": "human", "HOLD": "hold", "reason": ""}
            bag._write(
                "/vla_node/control_source",
                "robovlms_ros/msg/ControlSource",
                now,
                header=bag._header(now),
                source="human" if tick == 40 else "policy",
                since=bag._header(now).stamp,
                **fields,
            )

    return bags.write(path, also=also, cameras=("static", "wrist"))


def opened(bags, path, mapping=MARKED, **blocks):
    settings = bags.config(cameras=("static", "wrist"), **STATE, **blocks)
    return open_sources([path], settings, mapping), settings


@pytest.mark.parametrize("images", ["png", "video"])
def test_an_exported_folder_gives_the_recording_back(bags, tmp_path, images):
    source, settings = opened(bags, marked(bags, tmp_path / "bag"))
    assert [source.arrays(i).outcome for i in range(len(source))] == [
        "success",
        "failure",
        "unknown",
    ]
    folder = tmp_path / "made" / "set"
    LeRobotExport(source, settings, "panda", images).write(folder, lambda line: None)
    copy = open_sources([folder], settings, LEROBOT)
    assert len(copy) == len(source) == 3 and copy.rate_hz == 20
    for i in range(3):
        mine, theirs = source.arrays(i), copy.arrays(i)
        assert theirs.instruction == mine.instruction and theirs.outcome == mine.outcome
        assert theirs.robot_type == "panda"
        assert np.array_equal(theirs.actions, mine.actions.astype(np.float32))
        assert np.array_equal(theirs.proprioception, mine.proprioception.astype(np.float32))
        assert np.array_equal(theirs.takeover == 0, mine.takeover == 0)
        assert np.allclose(theirs.stamps_ns, mine.stamps_ns - mine.stamps_ns[0], atol=100)
        steps = [3, 0, len(mine) - 1]
        for camera, pixels in source.images(i, steps).items():
            found = copy.images(i, steps)[camera]
            # noise of 8 x 8 pixels is more than a codec with halved colours keeps
            assert (
                np.array_equal(found, pixels)
                if images == "png"
                else np.abs(found.mean() - pixels.mean()) < 4
            )
    assert (source.arrays(0).takeover == 0).sum() == 4


def test_metadata_are_those_that_lerobot_looks_up(bags, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    source, settings = opened(bags, marked(bags, tmp_path / "bag"))
    LeRobotExport(source, settings, "panda").write(tmp_path / "set", lambda line: None)
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    lengths = [source.length(i) for i in range(3)]
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == ("v3.0", 20, 3)
    assert info["total_frames"] == sum(lengths) and info["total_tasks"] == 2
    assert (
        info["features"]["next.success"]["dtype"]
        == info["features"]["intervention"]["dtype"]
        == "bool"
    )
    assert info["features"]["action"]["names"][-1] == "gripper"
    assert info["features"]["observation.images.wrist"]["shape"] == [8, 8, 3]
    rows = parquet.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_to_index"] - row["dataset_from_index"] for row in rows] == lengths
    assert rows[1]["dataset_from_index"] == lengths[0] and rows[1]["data/file_index"] == 1
    assert rows[2]["videos/observation.images.static/to_timestamp"] == lengths[2] / 20
    table = parquet.read_table(tmp_path / "set/data/chunk-000/file-000.parquet")
    assert table["next.success"].to_pylist() == [False] * (lengths[0] - 1) + [True]
    tasks = parquet.read_table(tmp_path / "set/meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    actions = np.concatenate([source.arrays(i).actions for i in range(3)])
    for name, expected in (
        ("mean", actions.mean(0)),
        ("std", actions.std(0)),
        ("max", actions.max(0)),
    ):
        assert np.allclose(stats["action"][name], expected)
    assert np.shape(stats["observation.images.static"]["mean"]) == (3, 1, 1)
    assert stats["action"]["count"] == [sum(lengths)]


def test_nothing_is_written_over_and_nothing_half_is_left(bags, tmp_path, monkeypatch):
    source, settings = opened(bags, marked(bags, tmp_path / "bag"))
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match=r"set: exists already, it is not written over"):
        LeRobotExport(source, settings).write(tmp_path / "set")
    real = source.images
    monkeypatch.setattr(
        source,
        "images",
        lambda i, steps: {name: frames[:, :7] for name, frames in real(i, steps).items()},
    )
    with pytest.raises(
        DataError, match=r"images of 8 x 7 pixels: a video needs even numbers.*--images png"
    ):
        LeRobotExport(source, settings).write(tmp_path / "odd")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bag", "set"]


@pytest.fixture
def training(bags, tmp_path):
    """A file of `--config`."""
    config = {
        "model": {"backbone": "paligemma", "history_length": 1, "action_chunk_size": 4},
        "action_head": {"action_dim": 8},
        "cameras": ["static"],
        "data": {"bag": {"topics": {"commands": "/leader/joint_states"}}},
        "action": {**bags.ACTION, "robot": "panda"},
    }
    (tmp_path / "train.json").write_text(json.dumps(config))
    return ["--config", str(tmp_path / "train.json")]


def test_selections_by_marks(bags, tmp_path, training, capsys, monkeypatch):
    bag = marked(bags, tmp_path / "bags" / "one")
    other = bags.write(tmp_path / "bags" / "two", instruction="lift the cube")
    content = sorted(file.stat().st_mtime_ns for file in bag.iterdir())

    def data(*arguments):
        code = main(["data", *map(str, arguments)])
        return code, capsys.readouterr()

    code, said = data("stats", bag, other, *training)
    assert code == 0
    assert [line.split()[1:] for line in said.out.splitlines()[2:4]] == [
        ["3", "0.05", "1", "1", "1", "0.2"],
        ["1", "0.05", "0", "0", "1", "0.0"],
    ]
    cases = [
        (["--outcome", "success"], {bag: {1, 2}}),
        (["--instruction", "LIFT*"], {bag: {1, 2}, other: set()}),
        (["--outcome", "success", "unknown"], {bag: {1}, other: set()}),
        (["--interventions"], {bag: {1, 2}}),
    ]
    for number, (options, expected) in enumerate(cases):
        file = tmp_path / f"{number}.yaml"
        assert data("filter", bag, other, *training, *options, "--output", file)[0] == 0
        found = read_selections([file])
        assert found == {
            path: {f"{path}, episode {n}" for n in names} for path, names in expected.items()
        }
        assert data("filter", bag, *training, *options, "--output", file)[1].err.endswith(
            "Name a new file.\n"
        )
    monkeypatch.chdir(tmp_path)
    selected = open_sources(["0.yaml"], bags.config(), MARKED)
    assert len(selected) == 1 and selected.arrays(0).outcome == "success"
    assert (
        data(
            "filter", "0.yaml", other, *training, "--instruction", "lift*", "--output", "twice.yaml"
        )[0]
        == 0
    )
    assert len(open_sources(["twice.yaml"], bags.config(), MARKED)) == 2
    assert data("filter", bag, *training, "--instruction", "sing", "--output", "no.yaml")[0] == 1
    assert not (tmp_path / "no.yaml").exists()
    assert (
        data(
            "split",
            bag,
            other,
            *training,
            "--fraction",
            "0.25",
            "--output",
            "a.yaml",
            "--held",
            "b.yaml",
        )[0]
        == 0
    )
    parts = [open_sources([name], bags.config(), MARKED) for name in ("a.yaml", "b.yaml")]
    names = [{part.origin(i) for i in range(len(part))} for part in parts]
    assert [len(part) for part in names] == [3, 1] and not names[0] & names[1]
    assert data("merge", "a.yaml", "b.yaml", "--output", "whole/all.yaml")[0] == 0
    assert len(open_sources(["whole/all.yaml"], bags.config(), MARKED)) == 4
    assert sorted(file.stat().st_mtime_ns for file in bag.iterdir()) == content
    assert main(["export", "twice.yaml", *training, "--lerobot", "set", "--images", "png"]) == 0
    assert len(open_sources(["set"], bags.config(**STATE), LEROBOT)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recordings: 7", "recordings"),
        ("recording: []", "unknown key 'recording'.*recordings"),
        ("recordings: [{path: x, excluded: [a]}]", "unknown key 'excluded'"),
        ("[", "not valid YAML"),
    ],
)
def test_damaged_selections_are_refused(tmp_path, text, words):
    (tmp_path / "selection.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_selections([tmp_path / "selection.yaml"])
