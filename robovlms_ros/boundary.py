"""The boundary between a file and the library that reads it: every exception becomes an error that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robovlms_ros.text_safety import printable
from robovlms_ros.types import RoboVLMsError

PANIC = "PanicException"
"""A panic in a library written in Rust; pyo3 derives it from BaseException."""


@contextmanager
def file_boundary(path: Path, kind: str, raised: type[RoboVLMsError], remedy: str) -> Iterator[None]:
    """Turn whatever a library raises on reading `path` as `kind` into `raised` with the reason and the remedy.

    Errors of this package, KeyboardInterrupt and SystemExit pass through.
    """
    try:
        yield
    except RoboVLMsError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        text = " ".join(str(error).split())
        reason = printable(text, 300) if text else type(error).__name__
        raise raised(f"{path}: cannot be read as {kind} ({reason}). {remedy}") from error
