"""The boundary of a file format: a library's exception becomes one of this package's errors, with
file and place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import RoboVLMsError

PANIC = "PanicException"
"""The name of pyo3's exception for a panic in a library written in Rust."""

REASON = 200
"""Characters of a library's message that are repeated."""


@contextmanager
def file_boundary(
    kind: type[RoboVLMsError], place: str | Path, remedy: str, contents: str = ""
) -> Iterator[None]:
    """Raise `kind` in place of every exception but this package's own. Damaged bytes raise anything
    in a parser.

    place: the file, and the position in it where one is known. remedy: a sentence. contents: the
        file's format.
    """
    try:
        yield
    except RoboVLMsError:
        raise
    except BaseException as error:
        # A panic of a library in Rust is no Exception; Ctrl-C and the end of the process are none
        # of ours.
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        reason = printable(f"{type(error).__name__}: {error}", REASON).rstrip(".")
        failed = f"cannot be read as {contents}" if contents else "not readable"
        raise kind(f"{place}: {failed} ({reason}). {remedy}") from error


def require_file(kind: type[RoboVLMsError], path: Path, most: int, cap: str) -> int:
    """The size of a regular file in bytes. Raises `kind` for a missing one, a FIFO or device, and
    one above the cap.

    cap: the name of `most` in robovlms_ros/core/caps.py.
    """
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise kind(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if not path.is_file():
        raise kind(f"{path}: is a folder, a pipe or a device: must be a regular file.")
    if size > most:
        raise kind(f"{path}: {size} bytes, at most {most} are read ({cap}).")
    return size
