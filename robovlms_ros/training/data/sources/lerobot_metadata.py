"""Metadata of a LeRobot data set of version 2 or 3: description, tasks, episodes, and paths in it.

Version 3 keeps tasks and episodes in Parquet files, read with pyarrow. Version 2 keeps them in JSON
Lines and each episode in files of its own: its episodes become rows as version 3 has them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robovlms_ros.core.caps import (
    MAX_EPISODE_STEPS,
    MAX_EPISODES,
    MAX_FEATURE_WIDTH,
    MAX_JSON_BYTES,
    MAX_TABLE_BYTES,
    MAX_TABLE_GROUP_BYTES,
    MAX_TABLE_ROWS,
)
from robovlms_ros.core.file_boundary import file_boundary, require_file
from robovlms_ros.core.structured_text import from_json
from robovlms_ros.core.text_safety import printable
from robovlms_ros.training.data.episodes import DataError, Flaw

MAGIC = b"PAR1"
POINTER = b"version https://git-lfs"
"""Beginning of a Git LFS pointer."""
FILE_REMEDY = "Download or record the file again."


class InterruptedTableError(DataError):
    """A Parquet file without its footer: the process that wrote it ended before it closed the
    file."""


def read_table(path: Path, columns: Sequence[str], episode: int | None = None) -> Any:
    """The columns of a Parquet file as a pyarrow table. episode: only the rows of this
    `episode_index`.

    Raises InterruptedTableError for a file without footer, DataError for another unreadable one,
    for a missing column and beyond a cap.
    """
    import pyarrow.parquet as parquet

    _require_footer(path)
    with file_boundary(DataError, path, FILE_REMEDY), parquet.ParquetFile(path) as file:
        _require_caps(path, file.metadata)
        names = set(file.schema_arrow.names)
        missing = [name for name in columns if name not in names]
        if missing:
            raise DataError(f"{path}: no column '{missing[0]}'.")
        filters = None if episode is None else [("episode_index", "=", episode)]
        return parquet.read_table(path, columns=list(columns), filters=filters, partitioning=None)


def column_names(path: Path) -> list[str]:
    """The names of a Parquet file's columns. Raises as `read_table`."""
    import pyarrow.parquet as parquet

    _require_footer(path)
    with file_boundary(DataError, path, FILE_REMEDY):
        return list(parquet.read_schema(path).names)


def _require_footer(path: Path) -> None:
    size = require_file(DataError, path, MAX_TABLE_BYTES, "MAX_TABLE_BYTES")
    with file_boundary(DataError, path, FILE_REMEDY), path.open("rb") as file:
        head = file.read(64)
        file.seek(max(size - len(MAGIC), 0))
        tail = file.read()
    if head.startswith(POINTER):
        raise DataError(f"{path}: a Git LFS pointer, not the file itself: `git lfs pull` downloads it.")
    if not head.startswith(MAGIC) and head.strip(b"\0"):
        raise DataError(f"{path}: not a Parquet file: it does not begin with PAR1. {FILE_REMEDY}")
    if tail != MAGIC:
        raise InterruptedTableError(
            f"{path}: the recording was interrupted: the file ends without the footer that describes it. Remove the "
            "file, or finalise the recording again."
        )


def _require_caps(path: Path, metadata: Any) -> None:
    """Refuse sizes beyond the caps before anything is allocated for them."""
    if metadata.num_rows > MAX_TABLE_ROWS:
        raise DataError(f"{path}: {metadata.num_rows} rows, at most {MAX_TABLE_ROWS} are read (MAX_TABLE_ROWS).")
    # A column's own metadata is not read: pyarrow 26 ends the process where it is damaged.
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).total_byte_size
        if size > MAX_TABLE_GROUP_BYTES:
            raise DataError(f"{path}: row group {group} takes {size} bytes uncompressed, at most "
                            f"{MAX_TABLE_GROUP_BYTES} are read (MAX_TABLE_GROUP_BYTES).")


INDEX = "__index_level_0__"
OUTCOME = "outcome"
"""Column of meta/episodes with `success`, `failure` or `unknown`, of `robovlms export`."""
SUCCESS = "next.success"
"""LeRobot's feature that is true in the last frame of an episode that succeeded."""
FIELD = re.compile(
    r"\{(video_key|chunk_index|file_index|episode_chunk|episode_index)(?::0?\d{0,2}d?)?\}"
)
"""The fields in braces that a path of info.json may hold."""
REMEDY = "Download the data set again."


def path_inside(root: Path, name: str, pattern: Any, **fields: Any) -> Path:
    """A path of the data set's own description, its fields filled in. Raises DataError unless it
    stays in `root`.

    Links inside the folder are followed: download caches are made of them.
    """
    if not isinstance(pattern, str) or len(pattern) > 1000:
        raise DataError(f"{root}: {name} = {printable(pattern)}: must be a text of at most 1000 characters.")
    filled = pattern
    if fields:
        rest = FIELD.sub("", pattern)
        if "{" in rest or "}" in rest:
            raise DataError(
                f"{root}: {name} = {printable(pattern)}: only {{video_key}}, {{chunk_index:03d}}, "
                "{file_index:03d}, {episode_chunk:03d} and {episode_index:06d} are allowed in "
                "braces, with a width below 100.")
        with file_boundary(DataError, f"{root}: {name} = {printable(pattern)}", REMEDY):
            filled = pattern.format(**fields)
    parts = re.split(r"[/\\]", filled)
    if not filled or "\0" in filled or filled[0] in "/\\" or ".." in parts or ":" in parts[0]:
        raise DataError(f"{root}: {name} leads to {printable(filled)}: must be a relative path that stays inside the "
                        "folder, without `..`.")
    return root / filled


def is_downloaded(path: Path) -> bool:
    """False for a file that does not exist, and for a Git LFS pointer in its place."""
    if not path.is_file():
        return False
    with file_boundary(DataError, path, REMEDY), path.open("rb") as file:
        return file.read(len(POINTER)) != POINTER


def feature_width(root: Path, features: Mapping[str, Any], name: str) -> int:
    """The count of numbers that a feature has in a step. Raises DataError."""
    shape = features[name].get("shape")
    valid = isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape)
    width = math.prod(shape) if valid else 0
    if not 1 <= width <= MAX_FEATURE_WIDTH:
        raise DataError(f"{root / 'meta' / 'info.json'}: shape of '{printable(name)}' is {printable(shape)}: must be a "
                        f"list of whole numbers with 1 to {MAX_FEATURE_WIDTH} numbers a step (MAX_FEATURE_WIDTH).")
    return width


def interruption_flaw(root: Path, text: str, lost: int, episodes: tuple[str, ...]) -> Flaw:
    """The flaw of a table whose recording was interrupted.

    lost: episodes without the table; 0 where their number is unknown. episodes: their names.
    """
    count = f"{lost} episodes of it are left out" if lost else "its episodes are left out"
    remedy = "record them again, or train on the other episodes with `data: {accept: [interrupted]}`"
    return Flaw("interrupted", str(root), f"{text.rstrip('.')}; {count}", remedy, True, episodes)


def read_info(path: Path) -> dict[str, Any]:
    """meta/info.json of a folder of version 2 or 3. Raises DataError."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DataError(f"{path}: LeRobot's tables are read by pyarrow, which is not installed: pip install "
                        "pyarrow.") from error
    file = path / "meta" / "info.json"
    require_file(DataError, file, MAX_JSON_BYTES, "MAX_JSON_BYTES")
    with file_boundary(DataError, file, "It is not LeRobot's description of a dataset."):
        info = from_json(file.read_text(encoding="utf-8"))
    if not isinstance(info, dict) or "codebase_version" not in info:
        raise DataError(f"{file}: not LeRobot's description of a dataset (no codebase_version).")
    version = str(info["codebase_version"])
    if not version.startswith(("v2.", "v3.")):
        raise DataError(
            f"{path}: LeRobot dataset of version {printable(version)}: must be v2 or v3. The "
            "lerobot package has a converter for each older version, named convert_dataset_v*.py.")
    missing = [name for name in ("fps", "features", "data_path") if name not in info]
    if missing:
        raise DataError(f"{file}: no '{missing[0]}'.")
    fps = info["fps"]
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps <= 1000:
        raise DataError(f"{file}: fps = {printable(fps)}: must be above 0 and at most 1000 Hz.")
    features = info["features"]
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise DataError(f"{file}: features must be a mapping of names to mappings.")
    return info


def is_version_2(info: Mapping[str, Any]) -> bool:
    """True for a data set with files for each episode and its metadata in JSON Lines."""
    return str(info["codebase_version"]).startswith("v2.")


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a JSON Lines file. Raises DataError."""
    require_file(DataError, path, MAX_JSON_BYTES, "MAX_JSON_BYTES")
    with file_boundary(DataError, path, FILE_REMEDY):
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other line ends
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            with file_boundary(DataError, f"{path}, line {number}", FILE_REMEDY):
                row = from_json(line)
            if not isinstance(row, dict):
                place = f"{path}, line {number}"
                raise DataError(f"{place}: {printable(row)}: must be an object in braces.")
            rows.append(row)
    return rows


def read_tasks(path: Path, info: Mapping[str, Any]) -> dict[int, str]:
    """task index -> instruction; the texts of version 3 are the table's pandas index, or a column
    `task`."""
    if is_version_2(info):
        file = path / "meta" / "tasks.jsonl"
        with file_boundary(DataError, file, REMEDY):
            return {int(row["task_index"]): str(row["task"]) for row in read_lines(file)}
    file = path / "meta" / "tasks.parquet"
    texts = INDEX if INDEX in column_names(file) else "task"
    table = read_table(file, [texts, "task_index"])
    with file_boundary(DataError, file, REMEDY):
        pairs = zip(table["task_index"].to_pylist(), table[texts].to_pylist(), strict=True)
        return {int(number): str(text) for number, text in pairs}


def read_episodes(
    path: Path, info: Mapping[str, Any], videos: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Flaw]]:
    """The rows of meta/episodes in order, without statistics, and the files that were
    interrupted."""
    if is_version_2(info):
        return _own_files(path, info, videos), []
    whole = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    whole += [f"videos/{key}/{name}" for key in videos for name in ("chunk_index", "file_index")]
    columns = [*whole, *(f"videos/{key}/from_timestamp" for key in videos)]
    rows: list[dict[str, Any]] = []
    flaws: list[Flaw] = []
    for file in sorted((path / "meta" / "episodes").rglob("*.parquet")):
        try:
            known = [OUTCOME] if OUTCOME in column_names(file) else []
            found = read_table(file, [*columns, *known]).to_pylist()
        except InterruptedTableError as error:
            flaws.append(interruption_flaw(path, str(error), 0, ()))
            continue
        for row in found:
            _check_episode(file, row, whole)
        rows += found
        if len(rows) > MAX_EPISODES:
            raise DataError(f"{path}: over {MAX_EPISODES} episodes, no more are read (MAX_EPISODES).")
    if not rows:
        raise DataError(f"{path}: meta/episodes holds no episode. " + " ".join(f"{flaw.text}." for flaw in flaws))
    return sorted(rows, key=lambda row: row["episode_index"]), flaws


def _own_files(path: Path, info: Mapping[str, Any], videos: Sequence[str]) -> list[dict[str, Any]]:
    """The episodes of a version 2 folder as rows of version 3: files are numbered by episode."""
    file = path / "meta" / "episodes.jsonl"
    size = info.get("chunks_size", 1000)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise DataError(f"{path / 'meta' / 'info.json'}: chunks_size = {printable(size)}: must be "
                        "a whole number, 1 or more.")
    rows: list[dict[str, Any]] = []
    for line in read_lines(file):
        row: dict[str, Any] = {name: line.get(name) for name in ("episode_index", "length")}
        _check_episode(file, row, tuple(row))
        number = row["episode_index"]
        for part in ("data", *(f"videos/{key}" for key in videos)):
            row |= {f"{part}/chunk_index": number // size, f"{part}/file_index": number}
        rows.append(row | {f"videos/{key}/from_timestamp": 0.0 for key in videos})
    if not rows:
        raise DataError(f"{file}: holds no episode. {REMEDY}")
    return sorted(rows, key=lambda row: row["episode_index"])


def _check_episode(file: Path, row: Mapping[str, Any], whole: Sequence[str]) -> None:
    """Raise DataError for a number of an episode that cannot be one."""
    for name, value in row.items():
        if name == OUTCOME:
            continue
        if name in whole and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise DataError(f"{file}: {name} = {printable(value)}: must be a whole number, 0 or more.")
        if name not in whole and (not isinstance(value, int | float) or not 0 <= value < 1e9):
            raise DataError(f"{file}: {name} = {printable(value)}: must be a number of seconds, 0 or more.")
    if not 1 <= row["length"] <= MAX_EPISODE_STEPS:
        raise DataError(f"{file}: length = {row['length']} of episode {row['episode_index']}: must be 1 to "
                        f"{MAX_EPISODE_STEPS} steps (MAX_EPISODE_STEPS).")
