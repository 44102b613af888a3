"""Episodes of any source as a LeRobot folder of version 3, which the lerobot package loads.

Each episode has a data file and a video for each camera of its own, so that an episode is read
without its neighbours. Numbers are those of the policy's `action` block, as `EpisodeArrays` has
them: SI units, the gripper's opening last.
"""

import io
import json
import shutil
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robovlms_ros.config.action import STATE_SIZES
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.training.data.episodes import UNKNOWN, DataError, EpisodeArrays, EpisodeSource
from robovlms_ros.training.data.sources.lerobot_metadata import OUTCOME, SUCCESS
from robovlms_ros.training.data.sources.video import VideoWriter
from robovlms_ros.training.data.statistics import Running

Stored = Literal["video", "png"]

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILES_PER_CHUNK = 1000
BLOCK = 64
"""Steps whose images are in memory at a time."""
EVERY_PIXEL = 4
"""Rows and columns of an image of which one takes part in the statistics."""
COUNTERS = {"timestamp": "float32"} | dict.fromkeys(
    ("frame_index", "episode_index", "index", "task_index"), "int64")


class LeRobotExport:
    """Writes one folder. robot_type: the name that the data set carries; by default the
    source's.

    images: `video` is H.264, which loses a little; `png` stores every image whole in the tables.
    Interventions and success are written where some episode of the source has them.
    """

    def __init__(
        self, source: EpisodeSource, config: PolicyConfig, robot_type: str = "",
        images: Stored = "video",
    ) -> None:
        assert config.action is not None
        self._source = source
        self._rate = _whole(source.rate_hz)
        self._names = {"action": list(config.action.names)}
        state = config.proprioception
        if state is not None:
            sizes = {name: STATE_SIZES.get(name, state.joints) for name in state.names}
            self._names["observation.state"] = [
                f"{name}_{k}" if size > 1 else name
                for name, size in sizes.items() for k in range(size)]
        self._images = images
        marked = [source.arrays(i) for i in range(len(source))]
        self._flags = [name for name, known in (
            (SUCCESS, any(arrays.outcome != UNKNOWN for arrays in marked)),
            ("intervention", any(arrays.takeover is not None for arrays in marked))) if known]
        self._robot_type = robot_type or max(arrays.robot_type for arrays in marked)
        self._tasks = list(dict.fromkeys(arrays.instruction for arrays in marked))
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._totals: dict[str, Running] = {}

    def write(self, folder: Path, log: Callable[[str], None] = print) -> None:
        """Write `folder`, which appears once it is whole. Raises DataError, also for a folder that
        exists."""
        if folder.exists():
            raise DataError(f"{folder}: exists already, it is not written over. Name a new folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part_", dir=folder.parent))
        try:
            frames = self._write_all(part, log)
            part.chmod(0o755)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        log(f"{folder}: {len(self._source)} episodes, {frames} frames, {len(self._tasks)} tasks")

    def _write_all(self, root: Path, log: Callable[[str], None]) -> int:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        rows = []
        begin = 0
        for i in range(len(self._source)):
            arrays = self._source.arrays(i)
            rows.append(self._write_episode(root, i, begin, arrays))
            begin += len(arrays)
            log(f"episode {i}: {arrays.source}, {len(arrays)} frames")
        path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(rows), path)
        # pandas reads the instructions as the table's index, which lerobot looks them up by
        kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        index = {"index_columns": ["task"], "column_indexes": [], "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored}
            | {"metadata": None} for name, kind, stored in kinds]}
        numbers = pa.array(range(len(self._tasks)), pa.int64())
        tasks = pa.table({"task_index": numbers, "task": self._tasks})
        tasks = tasks.replace_schema_metadata({"pandas": json.dumps(index)})
        parquet.write_table(tasks, root / "meta/tasks.parquet")
        totals = {name: self._summary(name, total) for name, total in self._totals.items()}
        write_json(root / "meta/stats.json", totals)
        write_json(root / "meta/info.json", self._info(begin))
        return begin

    def _info(self, frames: int) -> dict[str, Any]:
        count = len(self._source)
        features: dict[str, Any] = {}
        video = self._images == "video"
        for key, (height, width) in self._shapes.items():
            features[key] = {"dtype": "video" if video else "image", "shape": [height, width, 3],
                             "names": ["height", "width", "channels"]}
            if video:
                features[key]["info"] = {
                    "video.height": height, "video.width": width, "video.channels": 3,
                    "video.fps": self._rate, "video.codec": "h264", "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False, "has_audio": False}
        for key, names in self._names.items():
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
        for key, kind in {**dict.fromkeys(self._flags, "bool"), **COUNTERS}.items():
            features[key] = {"dtype": kind, "shape": [1], "names": None}
        return {"codebase_version": "v3.0", "robot_type": self._robot_type or None,
                "total_episodes": count, "total_frames": frames, "total_tasks": len(self._tasks),
                "chunks_size": FILES_PER_CHUNK, "data_files_size_in_mb": 100,
                "video_files_size_in_mb": 200, "fps": self._rate,
                "splits": {"train": f"0:{count}"}, "data_path": DATA_PATH,
                "video_path": VIDEO_PATH if video else None, "features": features}

    def _write_episode(
        self, root: Path, number: int, begin: int, arrays: EpisodeArrays
    ) -> dict[str, Any]:
        """Write its files; returns its row of meta/episodes."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        length = len(arrays)
        steps = np.arange(length)
        place = {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}
        statistics: dict[str, Running] = {}
        numbers = {"action": arrays.actions, "observation.state": arrays.proprioception}
        columns: dict[str, Any] = {}
        for key in self._names:
            values = numbers[key]
            assert values is not None
            if not np.isfinite(values).all():
                raise DataError(f"{arrays.source}: {key} is not finite. Exclude the episode.")
            self._count(statistics, key, values)
            flat = pa.array(values.astype(np.float32).reshape(-1))
            columns[key] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        person = np.zeros(length, dtype=bool) if arrays.takeover is None else arrays.takeover == 0
        succeeded = (steps == length - 1) & (arrays.outcome == "success")
        flags = {SUCCESS: succeeded, "intervention": person}
        columns |= {name: flags[name] for name in self._flags}
        pictures = self._write_images(root, number, place, arrays, statistics)
        columns |= {key: pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
                    for key, rows in pictures.items()}
        counters = (steps / self._rate, steps, np.full(length, number), begin + steps,
                    np.full(length, self._tasks.index(arrays.instruction)))
        for (key, kind), values in zip(COUNTERS.items(), counters, strict=True):
            columns[key] = values.astype(kind)
        path = root / DATA_PATH.format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(columns), path)
        row: dict[str, Any] = {
            "episode_index": number, "tasks": [arrays.instruction], "length": length,
            OUTCOME: arrays.outcome,
            "dataset_from_index": begin, "dataset_to_index": begin + length,
            "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        row |= {f"data/{name}": value for name, value in place.items()}
        if self._images == "video":
            for key in self._shapes:
                times = {"from_timestamp": 0.0, "to_timestamp": length / self._rate}
                row |= {f"videos/{key}/{name}": value for name, value in {**place, **times}.items()}
        for key, one in statistics.items():
            row |= {f"stats/{key}/{name}": value for name, value in self._summary(key, one).items()}
        return row

    def _write_images(
        self, root: Path, number: int, place: dict[str, int], arrays: EpisodeArrays,
        statistics: dict[str, Running],
    ) -> dict[str, list[dict[str, Any]]]:
        """Write the videos, or return the PNGs by feature."""
        writers: dict[str, VideoWriter] = {}
        pictures: dict[str, list[dict[str, Any]]] = {}
        for first in range(0, len(arrays), BLOCK):
            steps = np.arange(first, min(first + BLOCK, len(arrays)))
            for camera, frames in self._source.images(number, steps).items():
                key = f"observation.images.{camera}"
                size = frames.shape[1:3]
                if self._shapes.setdefault(key, size) != size:
                    raise DataError(
                        f"{arrays.source}: images of '{camera}' are {size}, those of an earlier "
                        f"episode {self._shapes[key]}: must be of one size (height, width). Export "
                        "them apart.")
                if self._images == "png":
                    pictures.setdefault(key, []).extend(
                        {"bytes": _png(frame), "path": f"frame-{step:06d}.png"}
                        for frame, step in zip(frames, steps, strict=True))
                else:
                    if key not in writers:
                        path = root / VIDEO_PATH.format(video_key=key, **place)
                        rate = Fraction(self._rate).limit_denominator(1000)
                        writers[key] = VideoWriter(path, rate, *size)
                    writers[key].add(frames)
                sample = frames[:, ::EVERY_PIXEL, ::EVERY_PIXEL].reshape(-1, 3)
                self._count(statistics, key, sample / 255)
        for writer in writers.values():
            writer.close()
        return pictures

    def _count(self, statistics: dict[str, Running], key: str, rows: NDArray[np.float64]) -> None:
        for found in (statistics, self._totals):
            found.setdefault(key, Running()).add(rows)

    def _summary(self, key: str, found: Running) -> dict[str, Any]:
        """The statistics of a feature as LeRobot stores them: of an image (3, 1, 1), in 0 to 1."""
        numbers = {"min": found.low, "max": found.high, "mean": found.mean, "std": found.std}
        for q in (0.01, 0.1, 0.5, 0.9, 0.99):
            numbers[f"q{round(100 * q):02d}"] = found.quantile(q)
        shape = (-1, 1, 1) if key in self._shapes else (-1,)
        lists = {name: values.reshape(shape).tolist() for name, values in numbers.items()}
        return lists | {"count": [found.count]}


def _whole(rate: float) -> float | int:
    """The rate in Hz, as a whole number where a step was given in rounded seconds (0.0333 s)."""
    return round(rate) if abs(rate - round(rate)) < 0.002 * rate else rate


def _png(frame: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "PNG")
    return stream.getvalue()
