"""Rosbags as training data, against bags that rosbags writes here with known numbers.

- Frames lie on the training rate's grid, each with the image of its stamp; a faster camera's nearest images are taken.
- Actions are the recorded commands at the step's time, for set points and for trajectories, absolute and as deltas.
- Steps after the episode's end are not known; markers and new instructions begin episodes.
- Discarded episodes are left out, others are chosen by `outcomes`; the last mark counts.
- SQLite, and compressed by message or file, gives what MCAP gives; compressed images are read, a damaged one is named.
- A pickled copy and forked workers read the same images; several processes open bags as one does.
"""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rosbags.rosbag2 import CompressionMode, StoragePlugin
from torch.utils.data import DataLoader

from robovlms_ros.core.resources import find
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import NANOSECONDS, ActionChunk
from robovlms_ros.evaluation.bags.chunks import CHUNK, message_of_chunk
from robovlms_ros.training.data.episodes import DataError
from robovlms_ros.training.data.open_sources import open_sources
from robovlms_ros.training.data.windows import WindowDataset

EEF_DELTA = {"action_head": {"action_dim": 7}, "action": {
    "space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
    "step_duration": 0.05, "units": {"translation": 1.0, "rotation": 1.0}, "gripper": {"open_value": 1}}}


def test_frames_and_set_points(bags, tmp_path):
    path = bags.write(tmp_path / "bag", cameras=("static", "wrist"), offset=3_000_000)
    source = open_sources([path], bags.config(cameras=("static", "wrist")), bags.MAPPING)
    assert len(source) == 1 and source.rate_hz == pytest.approx(20.0)
    arrays = source.arrays(0)
    stamps = bags.BEGIN + bags.STEP_NS * np.arange(len(arrays))
    assert np.array_equal(arrays.stamps_ns, stamps) and source.length(0) == len(arrays) >= 58
    assert arrays.instruction == "lift the cube"
    # A set point published at t is what the step from t leads to; the gripper's goes with it.
    assert np.allclose(arrays.actions[:, :7], [bags.told(int(t)) for t in stamps], atol=1e-12)
    assert np.allclose(arrays.actions[:, 7], [bags.opening(int(t)) for t in stamps], atol=1e-12)
    for t in (0, 20, 50):
        expected = [bags.told(int(stamps[t]) + k * bags.STEP_NS) for k in range(bags.HORIZON)]
        assert arrays.known[t].all() and np.allclose(arrays.chunks[t, :, :7], expected, atol=1e-12)
    assert not arrays.known[-1, 1:].any()
    steps = [40, 3, 4]
    for copy in (source, pickle.loads(pickle.dumps(source))):
        images = copy.images(0, steps)
        for camera, offset in (("static", 0), ("wrist", 3_000_000)):
            expected = [bags.pixels(f"/{camera}/image_raw", int(stamps[t]) + offset) for t in steps]
            assert np.array_equal(images[camera], expected)


def test_deltas_start_from_the_measured_arm(bags, tmp_path):
    source = open_sources([bags.write(tmp_path / "bag")], bags.config("joint_delta"), bags.MAPPING)
    arrays = source.arrays(0)
    stamp = int(arrays.stamps_ns[30])
    first = bags.told(stamp) - bags.told(stamp - NANOSECONDS // 10)
    assert np.allclose(arrays.actions[30, :7], first, atol=1e-9)
    assert np.allclose(arrays.chunks[30, 1, :7], bags.told(stamp + bags.STEP_NS) - bags.told(stamp), atol=1e-9)


def test_a_faster_camera_is_resampled(bags, tmp_path):
    source = open_sources([bags.write(tmp_path / "bag", rate=30)], bags.config(), bags.MAPPING)
    stamps = source.arrays(0).stamps_ns
    grid = stamps[0] + bags.STEP_NS * np.arange(len(stamps))
    assert len(source) == 1 and np.abs(stamps - grid).max() <= NANOSECONDS // 60 + 1
    assert np.array_equal(source.images(0, [7])["static"][0], bags.pixels("/static/image_raw", int(stamps[7])))


def test_a_gap_cuts_the_episode_and_both_pieces_are_one_recording(bags, tmp_path):
    with bags.Script(tmp_path / "bag") as bag:
        bag.text("/instruction", bags.BEGIN, "lift the cube")
        for tick in range(400):
            now = bags.BEGIN + tick * NANOSECONDS // 100
            bag.joints(now, np.append(bags.told(now), 0.0))
            if tick % 5 == 0:
                bag.joints(now, np.append(bags.told(now), 0.0), "/leader/joint_states")
                if not 150 < tick < 250:
                    bag.image("/static/image_raw", now)
    source = open_sources([tmp_path / "bag"], bags.config(), bags.MAPPING)
    assert len(source) == 2 and source.origin(0) == source.origin(1)
    assert [flaw.kind for flaw in source.flaws] == ["gap"] and "1.00 s" in source.flaws[0].text


@pytest.mark.parametrize("compression", [None, CompressionMode.MESSAGE, CompressionMode.FILE])
def test_sqlite_and_compressed_files_give_the_same(bags, tmp_path, compression):
    mcap = open_sources([bags.write(tmp_path / "a", 1.0)], bags.config(), bags.MAPPING)
    sqlite = bags.write(tmp_path / "b", 1.0, plugin=StoragePlugin.SQLITE3, compression=compression)
    other = open_sources([sqlite], bags.config(), bags.MAPPING)
    assert np.array_equal(mcap.arrays(0).actions, other.arrays(0).actions)
    assert np.array_equal(mcap.images(0, [5, 9])["static"], other.images(0, [5, 9])["static"])


def test_compressed_images_and_damaged_ones(bags, tmp_path):
    with bags.Script(tmp_path / "bag") as bag:
        bag.text("/instruction", bags.BEGIN, "lift the cube")
        for tick in range(100):
            now = bags.BEGIN + tick * NANOSECONDS // 100
            bag.joints(now, np.append(bags.told(now), 0.0))
            if tick % 5 == 0:
                bag.joints(now, np.append(bags.told(now), 0.0), "/leader/joint_states")
                bag.png("/static/image_raw/compressed", now, cut=tick == 50)
    source = open_sources([tmp_path / "bag"], bags.config(), bags.MAPPING)
    assert source.length(0) >= 18
    image = source.images(0, [4])["static"][0]
    assert np.array_equal(image, bags.pixels("/static/image_raw/compressed", bags.BEGIN + 4 * bags.STEP_NS))
    with pytest.raises(DataError, match=r"episode 0: an image of camera 'static' is damaged.*exclude"):
        source.images(0, [10])


def test_the_description_is_taken_from_the_bag(bags, tmp_path):
    shipped = find("panda", "config/robots")
    robot = yaml.safe_load(shipped.read_text())
    urdf = (shipped.parent / robot["description"]["file"]).read_text()
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**robot, "description": {"topic": "robot_description"}}))
    mapping = {"bag": {"robot": str(tmp_path / "own.yaml")}}
    delta = bags.config(**EEF_DELTA)
    described = bags.write(tmp_path / "described", 1.0, also=lambda bag, tick, now: tick or bag.text(
        "/robot_description", now, urdf))
    expected = open_sources([bags.write(tmp_path / "bag", 1.0)], delta, bags.MAPPING).arrays(0)
    assert np.allclose(open_sources([described], delta, mapping).arrays(0).actions, expected.actions)
    with pytest.raises(ConfigError, match=r"bag: no robot description on 'robot_description'"):
        open_sources([tmp_path / "bag"], delta, mapping)


def test_images_without_stamps_by_their_reception(bags, tmp_path):
    with bags.Script(tmp_path / "bag") as bag:
        bag.text("/instruction", bags.BEGIN, "lift the cube")
        for tick in range(200):
            now = bags.BEGIN + tick * NANOSECONDS // 100
            bag.joints(now, np.append(bags.told(now), 0.0))
            if tick % 5 == 0:
                bag.joints(now, np.append(bags.told(now), 0.0), "/leader/joint_states")
                bag.image("/static/image_raw", 0, now)
    with pytest.raises(DataError, match=r"the stamp is zero.*`stamps: bag`"):
        open_sources([tmp_path / "bag"], bags.config(), bags.MAPPING)
    mapping = {"bag": {**bags.MAPPING["bag"], "stamps": "bag"}}
    source = open_sources([tmp_path / "bag"], bags.config(), mapping)
    assert len(source) == 1 and source.length(0) >= 38
    assert np.array_equal(np.diff(source.arrays(0).stamps_ns), np.full(source.length(0) - 1, bags.STEP_NS))
    assert source.images(0, [3, 7])["static"].shape == (2, 8, 8, 3)
    assert any(note.startswith("stamps: bag: 40 images") for note in source.notes)


def test_markers_and_instructions_begin_episodes(bags, tmp_path):
    def also(bag: Any, tick: int, now: int) -> None:
        if tick in (50, 150):
            bag.text("/episode", now, "go")
        if tick == 250:
            bag.text("/instruction", now, "stack the cube")

    source = open_sources([bags.write(tmp_path / "bag", 4.0, also=also)], bags.config(), bags.MAPPING)
    assert [source.arrays(i).instruction for i in range(len(source))] == ["lift the cube"] * 2 + ["stack the cube"]
    assert [source.length(i) for i in (0, 1)] == [20, 20]  # what precedes the first marker is not an episode
    assert len({source.origin(i) for i in range(3)}) == 3
    first = source.arrays(0)
    assert not first.known[-1, 2:].any() and first.known[0].all()  # the next episode's commands are not this one's


def marked(bags, path, marks, **options):
    """A bag of 4 s with texts on the episode topic: tick (10 ms) -> text."""
    def also(bag: Any, tick: int, now: int) -> None:
        if tick in marks:
            bag.text("/episode", now, marks[tick])

    return bags.write(path, 4.0, also=also, **options)


def test_discarded_episodes_are_left_out_and_outcomes_chosen(bags, tmp_path):
    path = marked(bags, tmp_path / "bag", {
        20: "go", 80: "success", 100: "again", 160: "failure", 200: "third", 250: "discard",
        300: "fourth", 380: "end"})
    source = open_sources([path], bags.config(), bags.MAPPING)
    name = f"{path}, episode"
    assert [source.origin(i) for i in range(len(source))] == [f"{name} 0", f"{name} 3"]
    assert [source.length(i) for i in (0, 1)] == [12, 16]  # nothing of the time between episodes
    assert source.dropped[f"{name} 2"] == "it was discarded"
    assert "its outcome is failure, which data.bag.outcomes" in source.dropped[f"{name} 1"]
    assert any("left out: it was discarded" in note for note in source.notes)
    every = ["success", "failure", "unknown"]
    for outcomes, origins in ((every[:1], [0]), (every[1:2], [1]), (every, [0, 1, 3])):
        mapping = {"bag": {**bags.MAPPING["bag"], "outcomes": outcomes}}
        chosen = open_sources([path], bags.config(), mapping)
        assert [chosen.origin(i) for i in range(len(chosen))] == [f"{name} {k}" for k in origins]
    mapping = {"bag": {**bags.MAPPING["bag"], "outcomes": ["discard"]}}
    with pytest.raises(ConfigError, match=r"data.bag.outcomes.*discard.*some of success, failure"):
        open_sources([path], bags.config(), mapping)


def test_the_last_mark_counts_and_a_flaw_of_a_discarded_episode_does_not(bags, tmp_path):
    def also(bag: Any, tick: int, now: int) -> None:
        if tick == 30:
            bag.joints(now, np.full(8, np.nan), "/leader/joint_states")
        texts = {0: "one", 60: "success", 70: "discard", 100: "two", 150: "discard", 160: "success"}
        if tick in texts:
            bag.text("/episode", now, texts[tick])

    path = bags.write(tmp_path / "bag", 2.0, also=also)
    source = open_sources([path], bags.config(), bags.MAPPING)
    assert [source.origin(i) for i in range(len(source))] == [f"{path}, episode 1"]
    assert not any(flaw.refuse for flaw in source.flaws)


def test_marks_of_episodes_that_instructions_begin(bags, tmp_path):
    """Runs of a policy: the node publishes outcomes, and no marker begins an episode."""
    def also(bag: Any, tick: int, now: int) -> None:
        if tick in (100, 250):
            bag.text("/episode", now, "success" if tick == 100 else "failure")
        if tick == 150:
            bag.text("/instruction", now, "lift the cube")  # the same words once more

    path = bags.write(tmp_path / "bag", 4.0, also=also)
    mapping = {"bag": {**bags.MAPPING["bag"], "outcomes": ["success", "failure", "unknown"]}}
    source = open_sources([path], bags.config(), mapping)
    assert [source.length(i) for i in range(len(source))] == [20, 20]
    assert [source.origin(i) for i in range(2)] == [f"{path}, episode 0", f"{path}, episode 1"]
    dropped = open_sources([path], bags.config(), bags.MAPPING).dropped
    assert "its outcome is failure" in str(dropped)


def test_a_bag_with_nothing_but_discarded_episodes(bags, tmp_path):
    path = marked(bags, tmp_path / "bag", {0: "go", 300: "discard"})
    with pytest.raises(DataError, match=r"no episode is left.*episode 0: it was discarded"):
        open_sources([path], bags.config(), bags.MAPPING)
    other = bags.write(tmp_path / "other", 1.0)
    assert len(open_sources([path, other], bags.config(), bags.MAPPING)) == 1


def test_a_mark_without_images_concerns_no_earlier_episode(bags, tmp_path):
    path = marked(bags, tmp_path / "bag", {0: "go", 200: "end", 251: "by mistake", 253: "discard"})
    source = open_sources([path], bags.config(), bags.MAPPING)
    assert [source.length(i) for i in range(len(source))] == [40] and not source.dropped


def test_trajectories_and_the_motion_itself(bags, tmp_path):
    def also(bag: Any, tick: int, now: int) -> None:
        if tick % 20 == 0:
            times = [now + k * bags.STEP_NS for k in range(1, 30)]
            bag.trajectory(now, times, np.stack([bags.told(t) for t in times]))

    path = bags.write(tmp_path / "bag", commands=False, also=also)
    arrays = open_sources([path], bags.config(), bags.MAPPING).arrays(0)
    stamps = arrays.stamps_ns[4:40]
    assert np.allclose(arrays.actions[4:40, :7], [bags.told(int(t) + bags.STEP_NS) for t in stamps], atol=1e-3)
    motion = {"bag": {"robot": "panda", "topics": {"commands": "motion"}}}
    arrays = open_sources([path], bags.config(), motion).arrays(0)
    lag = NANOSECONDS // 10
    expected = [bags.told(int(t) + bags.STEP_NS - lag) for t in arrays.stamps_ns]
    assert np.allclose(arrays.actions[:, :7], expected, atol=1e-3)
    assert np.allclose(arrays.actions[:, 7], [bags.opening(int(t) + bags.STEP_NS) for t in arrays.stamps_ns], atol=0.51)


def test_end_effector_deltas_and_proprioception(bags, tmp_path):
    pin = pytest.importorskip("pinocchio")
    assert pin
    from robovlms_ros.control.kinematics import Kinematics
    from robovlms_ros.control.robot import load_robot

    eef = {"space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
           "step_duration": 0.05, "units": {"translation": 1.0, "rotation": 1.0}, "gripper": {"open_value": 1}}
    blocks = {"action": eef, "action_head": {"action_dim": 7}, "proprioception": {"names": ["eef_position", "gripper"]}}
    arrays = open_sources([bags.write(tmp_path / "bag")], bags.config(**blocks), bags.MAPPING).arrays(0)
    forward = Kinematics.for_robot(load_robot("panda")).forward
    for t in (10, 40):
        stamp = int(arrays.stamps_ns[t])
        here, there = forward(bags.told(stamp - NANOSECONDS // 10)), forward(bags.told(stamp))
        assert np.allclose(arrays.actions[t, :3], there[:3, 3] - here[:3, 3], atol=1e-9)
        assert np.allclose(arrays.proprioception[t], [*here[:3, 3], bags.opening(stamp)], atol=1e-6)


def test_poses_from_tf_and_pose_commands(bags, tmp_path):
    pytest.importorskip("pinocchio")
    from robovlms_ros.core.rotations import matrix_from_vector, quaternion_from_matrix

    def place(now: int) -> tuple[list[float], list[float]]:
        seconds = (now - bags.BEGIN) / NANOSECONDS
        w, x, y, z = quaternion_from_matrix(matrix_from_vector([0.0, 0.0, 0.2 * seconds]))
        return [0.4 + 0.1 * seconds, 0.0, 0.3], [x, y, z, w]

    with bags.Script(tmp_path / "bag") as bag:
        bag.text("/instruction", bags.BEGIN, "lift the cube")
        for tick in range(150):
            now = bags.BEGIN + tick * NANOSECONDS // 100
            bag.transform(now, *place(now))
            if tick % 5 == 0:
                bag.pose(now, *place(now + bags.STEP_NS))
                bag.numbers("/gripper", now, [0.04 * bags.opening(now)])
                bag.image("/static/image_raw", now)
    eef = {"space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
           "step_duration": 0.05, "units": {"translation": 1.0, "rotation": 1.0}, "gripper": {"open_value": 1}}
    blocks = {"action": eef, "action_head": {"action_dim": 7}}
    mapping = {"bag": {"robot": "panda", "topics": {"commands": "/target", "gripper_commands": "/gripper"}}}
    with pytest.raises(DataError, match="episode 0: the policy takes 7 joint positions"):
        open_sources([tmp_path / "bag"], bags.config(**{**blocks, "proprioception": {"names": ["joint_positions"],
                                                                              "joints": 7}}), mapping)
    arrays = open_sources([tmp_path / "bag"], bags.config(**blocks), mapping).arrays(0)
    assert np.allclose(arrays.chunks[3:20, :, :6], [0.005, 0, 0, 0, 0, 0.01], atol=1e-9)


def test_recorded_chunks_of_another_policy(bags, tmp_path):
    spec = bags.config().action.spec
    values = np.arange(bags.HORIZON * 8).reshape(bags.HORIZON, 8) / 100

    def also(bag: Any, tick: int, now: int) -> None:
        if tick % 5 == 0:
            data = message_of_chunk(bag.store, ActionChunk(now, values + tick / 1000, spec, "x", "teacher"), "base")
            message = bag.store.deserialize_cdr(data, CHUNK)
            bag._write("/chunks", CHUNK, now, **{name: getattr(message, name) for name in message.__dataclass_fields__
                                                 if not name.startswith("__")})

    path = bags.write(tmp_path / "bag", 6.0, commands=False, also=also)
    mapping = {"bag": {"robot": "panda", "topics": {"commands": "/chunks"}}}
    arrays = open_sources([path], bags.config(), mapping).arrays(0)
    assert len(arrays) == 120 and arrays.known.all()
    for t in (0, 7, 119):
        assert np.allclose(arrays.chunks[t], values + 5 * t / 1000)


def test_bags_opened_by_processes(bags, tmp_path):
    paths = [bags.write(tmp_path / name, seconds) for name, seconds in (("a", 1.0), ("b", 1.5))]
    said: list[str] = []
    alone = open_sources(paths, bags.config(), bags.MAPPING)
    both = open_sources(paths, bags.config(), {**bags.MAPPING, "jobs": 2}, said.append)
    assert len(both) == 2 and said[0].endswith("a: bag, 1 episodes")
    for i in range(2):
        assert both.origin(i) == alone.origin(i) and np.array_equal(both.arrays(i).chunks, alone.arrays(i).chunks)
        assert np.array_equal(both.images(i, [3])["static"], alone.images(i, [3])["static"])


def test_forked_workers_read_the_same(bags, tmp_path):
    settings = bags.config()
    data = WindowDataset(open_sources([bags.write(tmp_path / "bag", 1.5)], settings, bags.MAPPING), [0], settings)
    data[0]  # the parent has the bag open
    own, theirs = (list(DataLoader(data, 8, num_workers=workers)) for workers in (0, 2))
    for a, b in zip(own, theirs, strict=True):
        assert torch.equal(a["images"]["static"], b["images"]["static"]) and torch.equal(a["actions"], b["actions"])


def test_a_dropped_episode_may_be_excluded_by_name(bags, tmp_path):
    def also(bag: Any, tick: int, now: int) -> None:
        if tick in (0, 100, 102):
            bag.text("/episode", now, "go")

    path = bags.write(tmp_path / "bag", 2.0, also=also)
    source = open_sources([path], bags.config(), bags.MAPPING)
    dropped = list(source.dropped)
    names = {source.origin(i) for i in range(len(source))}
    assert dropped == [f"{path}, episode 1"] and not names & set(dropped)
    lines: list[str] = []
    excluded = open_sources([path], bags.config(), {**bags.MAPPING, "exclude": dropped}, lines.append)
    assert lines[-1].startswith(f"data.exclude: {path}, episode 1 was left out already: no 4 steps in a row")
    assert len(excluded) == len(source) and not excluded.dropped
    with pytest.raises(DataError, match=r"there is no '.*episode 9'"):
        open_sources([path], bags.config(), {**bags.MAPPING, "exclude": [f"{path}, episode 9"]})


def test_an_encoding_in_place_of_the_one_that_the_messages_name(bags, tmp_path):
    def write(path, compressed):
        with bags.Script(path) as bag:
            bag.text("/instruction", bags.BEGIN, "lift the cube")
            for tick in range(100):
                now = bags.BEGIN + tick * NANOSECONDS // 100
                bag.joints(now, np.append(bags.told(now), 0.0))
                if tick % 5 == 0:
                    bag.joints(now, np.append(bags.told(now), 0.0), "/leader/joint_states")
                    if compressed:
                        bag.png("/static/image_raw/compressed", now)
                    else:
                        bag.image("/static/image_raw", now, encoding="8UC3")
        return path

    def mapping(name, encoding):
        return {"bag": {**bags.MAPPING["bag"], "camera": {name: {"encoding": encoding}}}}

    raw = write(tmp_path / "raw", False)
    with pytest.raises(DataError, match="set `camera.NAME.encoding` to bgr8 or rgb8"):
        open_sources([raw], bags.config(), bags.MAPPING)
    source = open_sources([raw], bags.config(), mapping("static", "bgr8"))
    stamp = bags.BEGIN + 4 * bags.STEP_NS
    expected = bags.pixels("/static/image_raw", stamp)[..., ::-1]
    for copy in (source, pickle.loads(pickle.dumps(source))):
        assert np.array_equal(copy.images(0, [4])["static"][0], expected)
    place = "data.bag.camera"
    with pytest.raises(ConfigError, match=f"{place}.static.encoding = 'x': not allowed"):
        open_sources([raw], bags.config(), mapping("static", "x"))
    with pytest.raises(ConfigError, match=f"{place}.wrist: the policy has no such camera"):
        open_sources([raw], bags.config(), mapping("wrist", "bgr8"))
    compressed = write(tmp_path / "compressed", True)
    with pytest.raises(ConfigError, match=f"{place}.static.encoding = 'bgr8': only raw images"):
        open_sources([compressed], bags.config(), mapping("static", "bgr8"))
