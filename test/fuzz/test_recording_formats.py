"""Seeded mutations of every format of recordings: whatever the bytes, a result or one of this package's errors.

- Formats: MCAP (chunked with zstd and lz4, without chunks), SQLite (plain, compressed messages), a compressed file,
  metadata.yaml, Parquet, info.json, NumPy's .npz and .npy of objects, MP4, PNG and JPEG in messages.
- Mutations: bits flipped, bytes replaced by extremes, cut off, pieces repeated, removed and exchanged.
- ROBOVLMS_FUZZ sets the number of mutations of each format (default 200); the seeds are the numbers below it.
"""

import io
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from mcap.writer import CompressionType, Writer
from PIL import Image

from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.evaluation.bags.reader import Bag, RawMessage
from robovlms_ros.observations.images import to_rgb
from robovlms_ros.training.data.checks import check_data
from robovlms_ros.training.data.open_sources import open_sources

MUTATIONS = int(os.environ.get("ROBOVLMS_FUZZ", "200"))
EXTREMES = (b"\x00", b"\xff", b"\x7f", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x00" * 8, b"\x80")
FPS = 10

pytestmark = pytest.mark.filterwarnings("ignore")


def mutated(data: bytes, seed: int) -> bytes:
    """The bytes with one to eight changes, drawn by the seed."""
    rng = np.random.default_rng(seed)
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        place = int(rng.integers(len(changed))) if changed else 0
        length = int(rng.integers(1, 65))
        kind = int(rng.integers(7))
        if kind == 0 and changed:
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            extreme = EXTREMES[int(rng.integers(len(EXTREMES)))]
            changed[place : place + len(extreme)] = extreme
        elif kind == 2 and seed % 4 == 0:
            del changed[place:]
        elif kind == 3:
            changed[place:place] = changed[place : place + length]
        elif kind == 4:
            del changed[place : place + length]
        elif kind == 5 and changed:
            other = int(rng.integers(len(changed)))
            changed[place : place + length] = changed[other : other + length]
        else:
            changed[place : place + length] = rng.bytes(length)
    return bytes(changed)


def run(file: Path, read: Callable[[], object]) -> Counter[str]:
    """Read after each mutation of the file; every exception but this package's own ends the test with its seed."""
    whole = file.read_bytes()
    outcomes: Counter[str] = Counter()
    for seed in range(MUTATIONS):
        file.write_bytes(mutated(whole, seed))
        try:
            read()
            outcomes["read"] += 1
        except RoboVLMsError as error:
            assert str(error), seed
            outcomes["refused"] += 1
        except BaseException as error:
            error.add_note(f"seed {seed} of {file.name}")
            raise
    file.write_bytes(whole)
    read()
    return outcomes


WORDS = b"\x00\x01\x00\x00\x03\x00\x00\x00hi\x00"
HEADER = b"builtin_interfaces/Time stamp\nstring frame_id"


def mcap_bytes(**options) -> bytes:
    stream = io.BytesIO()
    writer = Writer(stream, chunk_size=400, **options)
    writer.start()
    words = writer.register_schema("std_msgs/msg/String", "ros2msg", b"string data")
    own = writer.register_schema("made_up/msg/Pair", "ros2msg", b"float64 left\nstring[] words\nuint8[<=4] rest")
    channels = [writer.register_channel("/words", "cdr", words), writer.register_channel("/pairs", "cdr", own)]
    for i in range(40):
        writer.add_message(channels[i % 2], 10**9 + i * 10**8, WORDS if i % 2 == 0 else WORDS * 4, i)
    writer.finish()
    return stream.getvalue()


def read_bag(path: Path) -> None:
    with Bag(path) as bag:
        for message in bag.messages():
            if isinstance(message, RawMessage):
                bag.decode(message)
        for message in bag.between(set(bag.topics), 10**9, 2 * 10**9):
            bag.decode(message)
        assert all(isinstance(note, str) for note in bag.notes)


MCAPS = {
    "zstd": {"compression": CompressionType.ZSTD}, "lz4": {"compression": CompressionType.LZ4},
    "plain": {"compression": CompressionType.NONE}, "no chunks": {"use_chunking": False},
    "no index": {"compression": CompressionType.ZSTD, "use_statistics": False},
}


@pytest.mark.parametrize("kind", MCAPS)
def test_mcap(tmp_path, kind):
    file = tmp_path / "a.mcap"
    file.write_bytes(mcap_bytes(**MCAPS[kind]))
    assert run(file, lambda: read_bag(file))["read"] > 0


def sqlite_file(path: Path, compressed: bool) -> None:
    database = sqlite3.connect(path)
    database.executescript(
        "CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);"
        "INSERT INTO schema VALUES (4, 'jazzy');"
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
        "serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);"
        "INSERT INTO topics VALUES (1, '/words', 'std_msgs/msg/String', 'cdr', '');"
        "CREATE TABLE message_definitions(id INTEGER PRIMARY KEY, topic_type TEXT, encoding TEXT, "
        "encoded_message_definition TEXT, type_description_hash TEXT);"
        "INSERT INTO message_definitions VALUES (1, 'std_msgs/msg/String', 'ros2msg', 'string data', '');"
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL, "
        "data BLOB NOT NULL);"
        "CREATE INDEX timestamp_idx ON messages (timestamp ASC);")
    data = zstandard.compress(WORDS) if compressed else WORDS
    database.executemany("INSERT INTO messages VALUES (?, 1, ?, ?)",
                         [(i, 10**9 + i * 10**8, data) for i in range(1, 60)])
    database.commit()
    database.close()


METADATA = """rosbag2_bagfile_information:
  version: 9
  storage_identifier: sqlite3
  relative_file_paths: [a.db3]
  duration: {nanoseconds: 5000000000}
  compression_format: zstd
  compression_mode: MODE
  ros_distro: jazzy
  files: &files
    - {path: a.db3, message_count: 59}
  more: [*files, 2001-12-14, 1.5e3, !!binary aGk=, ~]
"""


@pytest.mark.parametrize("mode", ["none", "message"])
def test_sqlite(tmp_path, mode):
    sqlite_file(tmp_path / "a.db3", mode == "message")
    (tmp_path / "metadata.yaml").write_text(METADATA.replace("MODE", mode))
    assert run(tmp_path / "a.db3", lambda: read_bag(tmp_path))["read"] > 0


def test_metadata(tmp_path):
    sqlite_file(tmp_path / "a.db3", True)
    (tmp_path / "metadata.yaml").write_text(METADATA.replace("MODE", "message"))
    assert run(tmp_path / "metadata.yaml", lambda: read_bag(tmp_path))["read"] > 0


def test_compressed_file(tmp_path):
    file = tmp_path / "a.mcap.zstd"
    file.write_bytes(zstandard.compress(mcap_bytes(compression=CompressionType.NONE)))
    assert run(file, lambda: read_bag(file))["read"] > 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_compressed_images(tmp_path, kind):
    file = tmp_path / "image"
    pixels = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    outcomes = run(file, lambda: to_rgb(SimpleNamespace(format=kind.lower(), data=file.read_bytes())))
    assert outcomes["refused"] > 0


def policy(step: float):
    action = {"space": "eef_delta", "frame": "base", "rotation": "euler_xyz_extrinsic", "composition": "chained",
              "units": {"translation": 0.02, "rotation": 0.05}, "gripper": {"open_value": 1}, "step_duration": step}
    model = {"backbone": "paligemma", "history_length": 1, "action_chunk_size": 2}
    return config_from_mapping({"model": model, "cameras": ["static"], "action": action,
                                "proprioception": {"names": ["gripper"]}})


def read_folder(root: Path, step: float, mapping: dict) -> None:
    settings = policy(step)
    source = open_sources([root], settings, mapping)
    check_data(source, settings)
    for i in range(len(source)):
        try:
            source.images(i, [0, source.length(i) - 1])
        except RoboVLMsError:
            continue


LEROBOT = {"lerobot": {"proprioception": {"gripper": [0]}}}


def lerobot_folder(root: Path) -> Path:
    av, pa, pq = pytest.importorskip("av"), pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    key = "observation.images.static"
    features = {key: {"dtype": "video", "shape": [32, 32, 3]}, "action": {"dtype": "float32", "shape": [7]},
                "observation.state": {"dtype": "float32", "shape": [2]}}
    info = {"codebase_version": "v3.0", "robot_type": "so101", "fps": FPS, "features": features,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"}
    for folder in ("meta/episodes", "data/chunk-000", f"videos/{key}/chunk-000"):
        (root / folder).mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    pq.write_table(pa.table({"task_index": [0], "__index_level_0__": ["go"]}), root / "meta/tasks.parquet")
    episodes = [{"episode_index": e, "length": 5, "data/chunk_index": 0, "data/file_index": 0,
                 f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0,
                 f"videos/{key}/from_timestamp": 0.5 * e} for e in range(2)]
    pq.write_table(pa.Table.from_pylist(episodes), root / "meta/episodes/file-000.parquet")
    rows = [{"action": [0.1 * t] * 6 + [t % 2], "observation.state": [0.5, 0.5], "timestamp": t / FPS, "frame_index": t,
             "episode_index": e, "task_index": 0} for e in range(2) for t in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), root / "data/chunk-000/file-000.parquet")
    with av.open(str(root / f"videos/{key}/chunk-000/file-000.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for t in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * t, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return root


@pytest.mark.parametrize("name", ["meta/info.json", "meta/tasks.parquet", "meta/episodes/file-000.parquet",
                                  "data/chunk-000/file-000.parquet",
                                  "videos/observation.images.static/chunk-000/file-000.mp4"])
def test_lerobot(tmp_path, name):
    root = lerobot_folder(tmp_path / "set")
    outcomes = run(root / name, lambda: read_folder(root, 1 / FPS, LEROBOT))
    assert sum(outcomes.values()) == MUTATIONS


@pytest.mark.parametrize("name", ["meta/tasks.jsonl", "meta/episodes.jsonl"])
def test_lerobot_lines_of_version_2(tmp_path, name):
    root = lerobot_folder(tmp_path / "set")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "codebase_version": "v2.1"}))
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "go"}\n')
    (root / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 5}\n')
    outcomes = run(root / name, lambda: read_folder(root, 1 / FPS, LEROBOT))
    assert sum(outcomes.values()) == MUTATIONS


@pytest.mark.parametrize("name", ["episode_0000001.npz", "lang_annotations/auto_lang_ann.npy", "ep_start_end_ids.npy"])
def test_calvin(tmp_path, name):
    root = tmp_path / "training"
    (root / "lang_annotations").mkdir(parents=True)
    for index in range(4):
        np.savez_compressed(root / f"episode_{index:07d}.npz", rgb_static=np.full((8, 8, 3), index, np.uint8),
                            rel_actions=np.linspace(-1, 1, 7), robot_obs=np.arange(15) / 100)
    np.save(root / "ep_start_end_ids.npy", np.array([[0, 3]]))
    words = {"language": {"ann": ["go", "stop"], "emb": np.zeros((2, 3), np.float32)},
             "info": {"indx": [(0, 1), (2, np.int64(3))]}}
    np.save(root / "lang_annotations/auto_lang_ann.npy", words, allow_pickle=True)
    if name == "ep_start_end_ids.npy":
        (root / "lang_annotations/auto_lang_ann.npy").unlink()
    outcomes = run(root / name, lambda: read_folder(root, 1 / 30, {"calvin": {"instruction": "go"}}))
    assert sum(outcomes.values()) == MUTATIONS
