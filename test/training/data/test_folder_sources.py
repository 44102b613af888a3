"""LeRobot and CALVIN folders, against folders that the tests write with pyarrow, PyAV and NumPy.

- LeRobot v2.1: the same episodes in files of their own give the same arrays and images; damaged
  JSON Lines are named.
- LeRobot: episodes out of several chunked files, the frames of the episode's own part of a video in any order, images
  in the table too, actions and states scaled and their columns chosen, instructions by task.
- CALVIN: annotated episodes with both ends, relative actions in metres and radians, proprioception, default cameras;
  overlapping annotations are one recording.
- Spawned workers read what the process itself reads.
- The annotations' pickle runs nothing: whatever else it names is refused by that name.
- LeRobot: images by frame number where the timestamps are another clock's, never those of the next episode; scale and
  offset of each joint, both readings of an SO-101's numbers; missing videos named once; interrupted tables left out.
- Refused: paths that leave the folder, frame numbers that do not count, images beyond the pixel cap.
- Refused with a remedy: version 1, slow frames, a camera that is not there, too few columns, rows
  missing, a cut-off video, annotations of another shape.
"""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.training.data.checks import check_data
from robovlms_ros.training.data.episodes import DataError
from robovlms_ros.training.data.open_sources import open_sources
from robovlms_ros.training.data.windows import WindowDataset

EEF = {"space": "eef_delta", "frame": "base", "rotation": "euler_xyz_extrinsic", "composition": "chained",
       "units": {"translation": 0.02, "rotation": 0.05}, "gripper": {"open_value": 1}}
FPS = 10


def config(step: float, cameras: tuple[str, ...] = ("static", "wrist"), **blocks: Any) -> Any:
    blocks.setdefault("action", EEF)
    blocks["action"] = {**blocks["action"], "step_duration": step}
    model = {"backbone": "paligemma", "history_length": 1, "action_chunk_size": 2}
    return config_from_mapping({"model": model, "cameras": list(cameras), **blocks})


def shade(episode: int, frame: int) -> int:
    """A grey that survives a lossy codec."""
    return (40 * episode + 8 * frame) % 230 + 10


LENGTHS = (5, 4, 6)


def write_lerobot(root: Path, version: str = "v3.0") -> Path:
    """Three episodes in two data files and two videos of one camera; the other's images in tables.

    Version 2 has a data file and a video for each episode, two of them in a folder, and JSON Lines.
    """
    av, pa, pq = pytest.importorskip("av"), pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    old = version.startswith("v2")
    files = {e: (e // 2, e) for e in range(3)} if old else {0: (0, 0), 1: (0, 0), 2: (0, 1)}
    features = {
        "observation.images.static": {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channels"]},
        "observation.images.wrist": {"dtype": "image", "shape": [8, 8, 3], "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": [8], "names": [f"m{i}" for i in range(8)]},
        "observation.state": {"dtype": "float32", "shape": [4], "names": ["x", "y", "z", "g"]},
    }
    info = {"codebase_version": version, "robot_type": "made_up", "total_episodes": 3, "total_frames": 15, "fps": FPS,
            "chunks_size": 2 if old else 1000, "features": features,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"}
    if old:
        info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        name = "episode_{episode_index:06d}.mp4"
        info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/" + name
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    tasks = pa.table({"task_index": pa.array([0, 1]), "__index_level_0__": ["open it", "close it"]})
    pq.write_table(tasks, root / "meta" / "tasks.parquet")
    episodes, rows, videos = [], {}, {}
    for e, length in enumerate(LENGTHS):
        chunk, file = files[e]
        start = len(videos.setdefault(file, []))
        videos[file] += [shade(e, t) for t in range(length)]
        episodes.append({
            "episode_index": e, "length": length, "tasks": ["open it"], "data/chunk_index": chunk,
            "data/file_index": file, "videos/observation.images.static/chunk_index": chunk,
            "videos/observation.images.static/file_index": file,
            "videos/observation.images.static/from_timestamp": start / FPS, "stats/action/min": [0.0] * 8})
        for t in range(length):
            rows.setdefault(file, []).append({
                "action": action(e, t).tolist(), "observation.state": [0.1 * t, 0.2, 0.3, 50.0], "timestamp": t / FPS,
                "frame_index": t, "episode_index": e, "index": 100 * e + t, "task_index": e % 2,
                "observation.images.wrist": {"bytes": encoded(e, t), "path": f"frame-{t}.png"}})
    pq.write_table(pa.Table.from_pylist(episodes), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    if old:
        (root / "meta/tasks.parquet").unlink()
        shutil.rmtree(root / "meta/episodes")
        lines = [{"task_index": i, "task": text} for i, text in enumerate(("open it", "close it"))]
        write_lines(root / "meta/tasks.jsonl", lines)
        write_lines(root / "meta/episodes.jsonl", [
            {k: e[k] for k in ("episode_index", "tasks", "length")} for e in episodes])
    for file, table in rows.items():
        numbers = {"chunk_index": 0, "file_index": file}
        numbers |= {"episode_chunk": file // 2, "episode_index": file}
        path = root / info["data_path"].format(**numbers)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(table), path)
    for file, greys in videos.items():
        numbers = {"chunk_index": 0, "file_index": file}
        numbers |= {"episode_chunk": file // 2, "episode_index": file}
        path = root / info["video_path"].format(video_key="observation.images.static", **numbers)
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=FPS)
            stream.width = stream.height = 32
            stream.pix_fmt, stream.gop_size = "yuv420p", 4
            for grey in greys:
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return root


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def action(episode: int, frame: int) -> np.ndarray:
    """Gripper first (0 closed to 100 open), six numbers of the arm, one that nobody uses."""
    return np.array([100.0 * (frame % 2), *(episode + 0.1 * frame + 0.01 * np.arange(6)), 9.0], np.float32)


def encoded(episode: int, frame: int) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade(episode, frame), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


LEROBOT = {"lerobot": {"arm": [1, 2, 3, 4, 5, 6], "gripper": 0, "gripper_open": 100.0, "scale": [0.5],
                       "proprioception": {"eef_position": [0, 1, 2], "gripper": [3]}}}
STATES = {"proprioception": {"names": ["gripper", "eef_position"]}}


def test_lerobot_folder(tmp_path):
    source = open_sources([write_lerobot(tmp_path / "set")], config(0.1, **STATES), LEROBOT)
    assert [source.length(i) for i in range(len(source))] == list(LENGTHS) and source.rate_hz == FPS
    for e in range(3):
        arrays = source.arrays(e)
        recorded = np.stack([action(e, t) for t in range(LENGTHS[e])]).astype(np.float64)
        assert np.allclose(arrays.actions, np.column_stack([0.5 * recorded[:, 1:7], recorded[:, 0] / 100]))
        assert np.array_equal(arrays.stamps_ns, np.arange(LENGTHS[e]) * 100_000_000)
        assert arrays.instruction == ("open it", "close it", "open it")[e]
        assert np.allclose(arrays.proprioception[2], [0.5, 0.2, 0.2, 0.3])
        for steps in ([3, 0, 1], range(LENGTHS[e])):
            images = source.images(e, list(steps))
            expected = np.array([shade(e, t) for t in steps])
            assert np.abs(images["static"].mean(axis=(1, 2, 3)) - expected).max() < 3
            assert np.array_equal(images["wrist"][:, 0, 0, 0], expected)
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.images(2, [5])["static"], source.images(2, [5])["static"])


def test_frames_of_a_person_in_a_lerobot_folder(tmp_path):
    root = write_lerobot(tmp_path / "set")
    features = json.loads((root / "meta" / "info.json").read_text())["features"]
    features["intervention"] = {"dtype": "bool", "shape": [1], "names": None}
    edit_info(root, features=features)
    for file in sorted((root / "data").rglob("*.parquet")):
        edit_table(file, lambda row: {**row, "intervention": row["frame_index"] == 2})
    takeover = open_sources([root], config(0.1), LEROBOT).arrays(0).takeover
    assert np.allclose(takeover[:3], [0.2, 0.1, 0.0]) and np.isinf(takeover[3:]).all()


def test_version_2_gives_what_version_3_gives(tmp_path):
    roots = [write_lerobot(tmp_path / version, version) for version in ("v2.1", "v3.0")]
    assert (roots[0] / "data/chunk-001/episode_000002.parquet").is_file()
    old, new = (open_sources([root], config(0.1, **STATES), LEROBOT) for root in roots)
    assert len(old) == len(new) == 3 and any("LeRobot v2.1" in note for note in old.notes)
    for e in range(3):
        mine, theirs = old.arrays(e), new.arrays(e)
        assert mine.instruction == theirs.instruction
        for name in ("stamps_ns", "actions", "proprioception"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name))
        images, others = (source.images(e, range(LENGTHS[e])) for source in (old, new))
        assert np.array_equal(images["wrist"], others["wrist"])
        assert np.abs(images["static"].astype(int) - others["static"]).max() < 6  # other key frames
    (roots[0] / "videos/chunk-000/observation.images.static/episode_000001.mp4").unlink()
    assert len(open_sources([roots[0]], config(0.1), LEROBOT)) == 2


def test_damaged_lines_of_version_2_are_named(tmp_path):
    root = write_lerobot(tmp_path / "set", "v2.1")
    lines = root / "meta/episodes.jsonl"
    whole = lines.read_text()
    for text, words in ((whole + "{", "line 4"), (whole + "7\n", "line 4: 7: must be an object"),
                        ('{"length": 5}', "episode_index = None: must be a whole number"),
                        ("", "holds no episode"), ('{"episode_index": 0, "length": 5}', "")):
        lines.write_text(text)
        if words:
            with pytest.raises(DataError, match=words):
                open_sources([root], config(0.1), LEROBOT)
    assert len(open_sources([root], config(0.1), LEROBOT)) == 1
    edit_info(root, chunks_size=0)
    with pytest.raises(DataError, match=r"chunks_size = 0: must be a whole number, 1 or more"):
        open_sources([root], config(0.1), LEROBOT)
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0}')
    with pytest.raises(DataError, match=r"tasks.jsonl: not readable \(KeyError: 'task'\)"):
        open_sources([root], config(0.1), LEROBOT)


def test_lerobot_refusals(tmp_path):
    root = write_lerobot(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"step_duration = 0.05 s.*10 Hz: must be 0.08 s or more"):
        open_sources([root], config(0.05), LEROBOT)
    with pytest.raises(DataError, match=r"camera 'front'; image features there: observation.images.static"):
        open_sources([root], config(0.1, ("static", "front")), LEROBOT)
    with pytest.raises(DataError, match=r"8 columns .* 7 of them taken"):
        open_sources([root], config(0.1))
    with pytest.raises(ConfigError, match=r"proprioception.gripper is missing"):
        open_sources([root], config(0.1, **STATES), {"lerobot": {"arm": [1, 2, 3, 4, 5, 6], "gripper": 0}})
    with pytest.raises(DataError, match=r"version v1.6: must be v2 or v3"):
        open_sources([write_lerobot(tmp_path / "old", "v1.6")], config(0.1), LEROBOT)
    source = open_sources([root], config(0.1), LEROBOT)
    video = root / "videos/observation.images.static/chunk-000/file-001.mp4"
    video.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"file-001.mp4: cannot be opened as a video"):
        source.images(2, [0])
    other = root / "videos/observation.images.static/chunk-000/file-000.mp4"
    video.write_bytes(other.read_bytes())  # nine frames: 0.9 s
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(table).to_pylist()
    rows[2]["videos/observation.images.static/from_timestamp"] = 5.0
    rows[1]["length"] = 7
    pq.write_table(pa.Table.from_pylist(rows), table)
    source = open_sources([root], config(0.1), LEROBOT)
    with pytest.raises(DataError, match=r"no frame at 5.000 s"):
        source.images(2, [0])
    with pytest.raises(DataError, match=r"4 rows of .*, meta/episodes says 7"):
        source.arrays(1)


def edit_table(file: Path, change: Any) -> None:
    """Rewrite a Parquet file with its rows changed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(file).to_pylist()
    pq.write_table(pa.Table.from_pylist([change(row) for row in rows]), file)


def edit_info(root: Path, **changes: Any) -> None:
    file = root / "meta/info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


DATA_FILE = "data/chunk-000/file-000.parquet"


@pytest.mark.parametrize("rate", [9.6, 10.4])
def test_images_are_found_by_frame_number_where_timestamps_are_of_another_clock(tmp_path, rate):
    root = write_lerobot(tmp_path / "set")
    edit_table(root / DATA_FILE, lambda row: {**row, "timestamp": 7 * row["frame_index"] / rate})
    source = open_sources([root], config(0.1), LEROBOT)
    for e in range(3):
        steps = np.arange(LENGTHS[e])
        images = source.images(e, steps)["static"]
        assert np.abs(images.mean(axis=(1, 2, 3)) - [shade(e, t) for t in steps]).max() < 3
    flaw = next(flaw for flaw in source.flaws if flaw.kind == "timestamps")
    assert "2 episodes" in flaw.where and "by frame_index" in flaw.text and not flaw.refuse


def test_an_image_of_the_next_episode_is_never_taken(tmp_path):
    root = write_lerobot(tmp_path / "set")
    video = root / "videos/observation.images.static/chunk-000/file-001.mp4"
    (root / "videos/observation.images.static/chunk-000/file-000.mp4").write_bytes(video.read_bytes())
    source = open_sources([root], config(0.1), LEROBOT)  # nine frames are expected, the video has six
    with pytest.raises(DataError, match=r"no frame at 0.800 s within 0.050 s, the nearest is at 0.500 s"):
        source.images(1, [3])
    with pytest.raises(DataError, match=r"steps 3 to 4 of 4"):
        source.images(1, [3, 4])


def test_scale_and_offset_of_each_joint(tmp_path):
    root = write_lerobot(tmp_path / "set")
    scale = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    offset = [0.5, -0.5, 0.0, 0.1, 0.2, 0.3]
    mapping = {"lerobot": {**LEROBOT["lerobot"], "scale": scale, "offset": offset}}
    mapping["lerobot"].pop("proprioception")
    arrays = open_sources([root], config(0.1), mapping).arrays(2)
    recorded = np.stack([action(2, t) for t in range(LENGTHS[2])]).astype(np.float64)[:, 1:7]
    assert np.allclose(arrays.actions[:, :6], recorded * scale + offset)
    with pytest.raises(ConfigError, match=r"data.lerobot.offset has 2 numbers: must be 1 or 6"):
        open_sources([root], config(0.1), {"lerobot": {**mapping["lerobot"], "offset": [1.0, 2.0]}})
    with pytest.raises(ConfigError, match=r"data.lerobot.scale = .*other than 0"):
        open_sources([root], config(0.1), {"lerobot": {**mapping["lerobot"], "scale": [0.0]}})


@pytest.mark.parametrize("robot", ["so101_follower", "so100", "SO-101"])
def test_both_readings_of_an_so101_are_named(tmp_path, robot):
    root = write_lerobot(tmp_path / "set")
    edit_info(root, robot_type=robot)
    edit_table(root / DATA_FILE, lambda row: {**row, "action": [100.0 * x for x in row["action"]]})
    joints = {"space": "joint_position", "units": {"joint": 1.0}, "names": [*(f"j{i}" for i in range(6)), "gripper"]}
    settings = config(0.1, action={**EEF, **joints})
    mapping = {"lerobot": {**LEROBOT["lerobot"], "gripper_open": 10_000.0}}
    source = open_sources([root], settings, mapping)
    assert any("degrees (scale 0.017453)" in note and "-100..100" in note for note in source.notes)
    flaws, _ = check_data(source, settings)
    units = [flaw.text for flaw in flaws if flaw.kind == "units"]
    assert units and all("degrees (scale 0.017453)" in text and "-100..100" in text for text in units)


@pytest.mark.parametrize(("key", "pattern"), [
    ("data_path", "../{chunk_index:03d}.parquet"), ("data_path", "/etc/{chunk_index}/passwd"),
    ("video_path", "videos/../../{video_key}.mp4"), ("video_path", "C:\\{video_key}.mp4"),
    ("data_path", "{chunk_index:03000000000d}"), ("data_path", "{chunk_index.__class__}"), ("data_path", 7),
])
def test_paths_that_leave_the_folder_are_refused(tmp_path, key, pattern):
    root = write_lerobot(tmp_path / "set")
    edit_info(root, **{key: pattern})
    with pytest.raises(DataError, match=key):
        open_sources([root], config(0.1), LEROBOT)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/secret.png"])
def test_an_image_outside_the_folder_is_refused(tmp_path, path):
    root = write_lerobot(tmp_path / "set")
    edit_table(root / DATA_FILE, lambda row: {**row, "observation.images.wrist": {"bytes": None, "path": path}})
    source = open_sources([root], config(0.1), LEROBOT)
    with pytest.raises(DataError, match=r"must be a relative path that stays inside the folder"):
        source.images(0, [0])


def test_missing_videos_are_named_once(tmp_path):
    root = write_lerobot(tmp_path / "set")
    (root / "videos/observation.images.static/chunk-000/file-000.mp4").unlink()
    source = open_sources([root], config(0.1), LEROBOT)
    assert len(source) == 1 and source.images(0, [0])["static"].shape == (1, 32, 32, 3)
    flaws, _ = check_data(source, config(0.1))
    missing = [flaw for flaw in flaws if flaw.kind == "missing"]
    assert len(missing) == 1 and missing[0].refuse
    assert "1 video files are missing or Git LFS pointers, 2 episodes need them: videos/" in missing[0].text
    excluded = open_sources([root], config(0.1), {**LEROBOT, "exclude": [f"{root}, episode {e}" for e in (0, 1)]})
    assert not [flaw for flaw in excluded.flaws if flaw.kind == "missing"]
    with pytest.raises(DataError, match=r"there is no '.*, episode 17'"):
        open_sources([root], config(0.1), {**LEROBOT, "exclude": [f"{root}, episode 17"]})
    pointer = root / "videos/observation.images.static/chunk-000/file-001.mp4"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"no episode can be read. 2 video files are missing"):
        open_sources([root], config(0.1), LEROBOT)


def test_an_interrupted_table_costs_its_own_episodes_only(tmp_path):
    root = write_lerobot(tmp_path / "set")
    table = root / DATA_FILE
    table.write_bytes(table.read_bytes()[:-200])
    source = open_sources([root], config(0.1), LEROBOT)
    assert [source.origin(i) for i in range(len(source))] == [f"{root}, episode 2"]
    flaw = next(flaw for flaw in source.flaws if flaw.kind == "interrupted")
    assert flaw.refuse and "file-000.parquet: the recording was interrupted" in flaw.text
    assert "2 episodes of it are left out" in flaw.text
    meta = root / "meta/episodes/chunk-000/file-000.parquet"
    meta.write_bytes(meta.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"meta/episodes holds no episode.*the recording was interrupted"):
        open_sources([root], config(0.1), LEROBOT)


def test_frame_numbers_that_do_not_count_are_refused(tmp_path):
    root = write_lerobot(tmp_path / "set")
    edit_table(root / DATA_FILE, lambda row: {**row, "frame_index": 2 * row["frame_index"]})
    source = open_sources([root], config(0.1), LEROBOT)
    with pytest.raises(DataError, match=r"frame_index of .*episode 0 goes from 0 to 8: must count from 0 to 4"):
        source.arrays(0)


def write_calvin(root: Path, annotations: Any = None) -> Path:
    """Twelve steps; three annotated episodes, two of which overlap."""
    (root / "lang_annotations").mkdir(parents=True)
    rng = np.random.default_rng(3)
    for index in range(100, 112):
        np.savez(root / f"episode_{index:07d}.npz", rgb_static=np.full((20, 20, 3), index, np.uint8),
                 rgb_gripper=np.full((8, 8, 3), 255 - index, np.uint8),
                 rel_actions=np.append(rng.uniform(-1, 1, 6), 1.0 if index % 2 else -1.0),
                 actions=rng.uniform(-1, 1, 7), robot_obs=np.arange(15) / 100, scene_obs=np.zeros(24))
    np.save(root / "ep_start_end_ids.npy", np.array([[100, 111]]))
    if annotations is None:
        annotations = {"language": {"ann": ["turn on", "push it", "lift it"], "task": ["a", "b", "c"],
                                    "emb": rng.normal(size=(3, 1, 4)).astype(np.float32)},
                       "info": {"episodes": [], "indx": [(100, 104), (103, 106), (107, np.int64(111))]}}
    np.save(root / "lang_annotations" / "auto_lang_ann.npy", annotations, allow_pickle=True)
    return root


def test_calvin_folder(tmp_path):
    root = write_calvin(tmp_path / "training")
    names = ["eef_position", "eef_rotation_vector", "gripper", "joint_positions"]
    source = open_sources([root], config(1 / 30, proprioception={"names": names, "joints": 7}))
    assert [source.length(i) for i in range(3)] == [5, 4, 5] and source.rate_hz == 30
    assert source.origin(0) == source.origin(1) != source.origin(2)
    arrays = source.arrays(1)
    assert arrays.instruction == "push it"
    for t, index in enumerate(range(103, 107)):
        recorded = np.load(root / f"episode_{index:07d}.npz")["rel_actions"]
        expected = [*(recorded[:3] / 50), *(recorded[3:6] / 20), float(recorded[6] > 0)]
        assert np.allclose(arrays.actions[t], expected)
    state = arrays.proprioception[0]
    assert np.allclose(state[:3], [0, 0.01, 0.02]) and np.allclose(state[6:], [0.06 / 0.08, *np.arange(7, 14) / 100])
    angles = np.array([0.03, 0.04, 0.05])
    assert np.allclose(state[3:6], angles, atol=2e-3)  # small angles: the order hardly matters
    images = source.images(2, [4, 0])
    assert np.array_equal(images["static"][:, 0, 0, 0], [111, 107])
    assert np.array_equal(images["wrist"][:, 0, 0, 0], [255 - 111, 255 - 107])


def test_calvin_without_annotations_and_absolute(tmp_path):
    root = write_calvin(tmp_path / "training")
    (root / "lang_annotations" / "auto_lang_ann.npy").unlink()
    with pytest.raises(DataError, match=r"nothing says what was done"):
        open_sources([root], config(1 / 30))
    absolute = {**EEF, "space": "eef_pose", "units": {"translation": 1.0, "rotation": 1.0}}
    source = open_sources([root], config(1 / 30, action=absolute), {"calvin": {"instruction": "play"}})
    assert len(source) == 1 and source.arrays(0).instruction == "play"
    recorded = np.load(root / "episode_0000105.npz")["actions"]
    assert np.allclose(source.arrays(0).actions[5, :6], recorded[:6])
    (root / "episode_0000104.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"episode_0000104.npz: a step of the episode is missing or damaged"):
        source.arrays(0)


def test_calvin_words_in_a_folder_of_a_language_model(tmp_path):
    root = write_calvin(tmp_path / "training")
    (root / "lang_annotations").rename(root / "lang_MiniLM-L3")
    source = open_sources([root], config(1 / 30))
    assert source.arrays(1).instruction == "push it"
    assert "instructions: lang_MiniLM-L3/auto_lang_ann.npy" in source.notes


@pytest.mark.parametrize(("key", "remedy"), [
    ("rel_actions", r"no 'rel_actions' .*The relative actions are in it.*`action.space: eef_pose`"),
    ("robot_obs", r"no 'robot_obs' .*leave `proprioception` out"),
    ("rgb_static", r"no 'rgb_static' .*cameras: \{NAME: KEY\}"),
])
def test_calvin_names_what_is_missing(tmp_path, key, remedy):
    root = write_calvin(tmp_path / "training")
    for file in root.glob("*.npz"):
        with np.load(file) as step:
            kept = {name: step[name] for name in step if name != key}
        np.savez(file, **kept)
    with pytest.raises(DataError, match=remedy):
        open_sources([root], config(1 / 30, proprioception={"names": ["gripper"]}))


@pytest.mark.parametrize("spans", [[(0, 10**15)], [(-5, 3)], [(0, 2_000_000)]])
def test_calvin_episodes_without_end_are_refused(tmp_path, spans):
    root = write_calvin(tmp_path / "training", {"info": {"indx": spans}, "language": {"ann": ["go"]}})
    with pytest.raises(DataError, match=r"MAX_EPISODE"):
        open_sources([root], config(1 / 30))


def test_aliases_in_annotations_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("robovlms_ros.training.data.sources.restricted_pickle.MAX_PICKLE_ITEMS", 10_000)
    bomb: Any = ["x"]
    for _ in range(40):
        bomb = [bomb, bomb]
    root = write_calvin(tmp_path / "training", {"info": {"indx": bomb}, "language": {"ann": []}})
    with pytest.raises(DataError, match=r"more than 10000 values \(MAX_PICKLE_ITEMS\)"):
        open_sources([root], config(1 / 30))


def test_memo_numbers_of_gigabytes_are_refused(tmp_path):
    root = write_calvin(tmp_path / "training")
    file = root / "lang_annotations" / "auto_lang_ann.npy"
    data = file.read_bytes()
    begin = data.index(b"\n") + 1
    file.write_bytes(data[:begin] + b"\x80\x04]r\xff\xff\xff\x7f.")
    with pytest.raises(DataError, match=r"it numbers its 3th object 2147483647"):
        open_sources([root], config(1 / 30))


def test_spawned_workers_read_the_same(tmp_path):
    settings = config(1 / 30)
    data = WindowDataset(open_sources([write_calvin(tmp_path / "training")], settings), [0, 1, 2], settings)
    own, theirs = (list(DataLoader(data, 4, num_workers=workers, multiprocessing_context="spawn" if workers else None))
                   for workers in (0, 1))
    assert len(own) == len(theirs) == 4
    for a, b in zip(own, theirs, strict=True):
        assert torch.equal(a["images"]["wrist"], b["images"]["wrist"]) and torch.equal(a["actions"], b["actions"])


class Evil:
    """Content that an attacker would put into the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_annotations_run_nothing(tmp_path):
    marker = tmp_path / "ran"
    root = write_calvin(tmp_path / "evil", {"info": {"indx": Evil(marker)}, "language": {"ann": []}})
    with pytest.raises(DataError, match=r"auto_lang_ann.npy: refused: it asks for (posix|nt).system"):
        open_sources([root], config(1 / 30))
    assert not marker.exists()
    root = write_calvin(tmp_path / "wrong", {"info": {"indices": []}, "language": {"ann": []}})
    with pytest.raises(DataError, match=r"not CALVIN's annotations"):
        open_sources([root], config(1 / 30))
    np.save(root / "lang_annotations" / "auto_lang_ann.npy", np.arange(3))
    with pytest.raises(DataError, match=r"array of numbers"):
        open_sources([root], config(1 / 30))
