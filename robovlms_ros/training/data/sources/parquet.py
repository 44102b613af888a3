"""Parquet files, with pyarrow: the boundary of that format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robovlms_ros.core.caps import MAX_TABLE_BYTES, MAX_TABLE_GROUP_BYTES, MAX_TABLE_ROWS
from robovlms_ros.core.file_boundary import file_boundary, require_file
from robovlms_ros.training.data.episodes import DataError

MAGIC = b"PAR1"
POINTER = b"version https://git-lfs"
"""Beginning of a Git LFS pointer."""
REMEDY = "Download or record the file again."


class InterruptedTableError(DataError):
    """A Parquet file without its footer: the process that wrote it ended before it closed the file."""


def read_table(path: Path, columns: Sequence[str], episode: int | None = None) -> Any:
    """The columns of a Parquet file as a pyarrow table. episode: only the rows of this `episode_index`.

    Raises InterruptedTableError for a file without footer, DataError for another unreadable one, for a missing column
    and beyond a cap.
    """
    import pyarrow.parquet as parquet

    _require_footer(path)
    with file_boundary(DataError, path, REMEDY), parquet.ParquetFile(path) as file:
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
    with file_boundary(DataError, path, REMEDY):
        return list(parquet.read_schema(path).names)


def _require_footer(path: Path) -> None:
    size = require_file(DataError, path, MAX_TABLE_BYTES, "MAX_TABLE_BYTES")
    with file_boundary(DataError, path, REMEDY), path.open("rb") as file:
        head = file.read(64)
        file.seek(max(size - len(MAGIC), 0))
        tail = file.read()
    if head.startswith(POINTER):
        raise DataError(f"{path}: a Git LFS pointer, not the file itself: `git lfs pull` downloads it.")
    if not head.startswith(MAGIC) and head.strip(b"\0"):
        raise DataError(f"{path}: not a Parquet file: it does not begin with PAR1. {REMEDY}")
    if tail != MAGIC:
        raise InterruptedTableError(
            f"{path}: the recording was interrupted: the file ends without the footer that describes it. Remove the "
            "file, or finalise the recording again."
        )


def _require_caps(path: Path, metadata: Any) -> None:
    """Refuse sizes beyond the caps before anything is allocated for them."""
    if metadata.num_rows > MAX_TABLE_ROWS:
        raise DataError(f"{path}: {metadata.num_rows} rows, at most {MAX_TABLE_ROWS} are read (MAX_TABLE_ROWS).")
    # A column's own metadata is not asked for: pyarrow 26 ends the process where it is damaged.
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).total_byte_size
        if size > MAX_TABLE_GROUP_BYTES:
            raise DataError(f"{path}: row group {group} takes {size} bytes uncompressed, at most "
                            f"{MAX_TABLE_GROUP_BYTES} are read (MAX_TABLE_GROUP_BYTES).")
