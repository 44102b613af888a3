"""NumPy files of Python objects (CALVIN's annotations) without trusting them.

Such a file is a pickle, which can run anything when it is loaded. Here nothing of it is run and
nothing imported: every name that it may use becomes an inert record of its arguments, every
other name is refused. What comes out is made of dictionaries, lists, tuples, texts, numbers and
arrays of numbers.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from robovlms_ros.core.caps import MAX_ARRAY_BYTES, MAX_PICKLE_ITEMS
from robovlms_ros.core.file_boundary import require_file
from robovlms_ros.core.text_safety import printable
from robovlms_ros.training.data.episodes import DataError

ADMITTED = ("ndarray", "dtype", "scalar", "_reconstruct", "_frombuffer")
MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
PLAIN = (str, bytes, int, float, bool, type(None))


class Inert:
    """Construction requested by a pickle, recorded without a call."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name = name
        self.arguments = arguments
        self.state = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Maker:
    """Inert record in place of a class or function of NumPy's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> Inert:
        return Inert(self.name, arguments)


class _Reader(pickle.Unpickler):
    """Refuses every name but those of NumPy's arrays, which become records."""

    def find_class(self, module: str, name: str) -> Any:
        if module in MODULES and name in ADMITTED:
            return Maker(name)
        raise DataError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("it asks for an object outside the file")


def read_objects(path: Path) -> Any:
    """The single object in a .npy file. Raises DataError for anything but plain data and arrays of
    numbers."""
    require_file(DataError, path, MAX_ARRAY_BYTES, "MAX_ARRAY_BYTES")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, dtype = header(file)
            if not dtype.hasobject:
                raise DataError("it is an array of numbers, not of objects")
            data = file.read()
            _require_opcodes(data)
            return _Plain().of(_Reader(io.BytesIO(data)).load())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except DataError as error:
        raise DataError(f"{path}: refused: {error}. Only dictionaries, lists, texts, numbers and NumPy arrays of "
                        "numbers are taken from a file that could run code.") from error
    except Exception as error:  # broken bytes can raise anything in the reader
        raise DataError(f"{path}: not readable as a NumPy file of objects: {printable(error)}.") from error


def _require_opcodes(data: bytes) -> None:
    """Refuse memo numbers beyond the opcodes: the unpickler allocates memory up to the number."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data), start=1):
        if count > MAX_PICKLE_ITEMS:
            raise DataError(f"it has more than {MAX_PICKLE_ITEMS} opcodes (MAX_PICKLE_ITEMS)")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise DataError(f"it numbers its {count}th object {argument}")


class _Plain:
    """Turns records into plain data, and counts: a list that holds itself many times over has no
    end."""

    def __init__(self) -> None:
        self._count = 0

    def of(self, value: Any) -> Any:
        """The data in `value`; a 0-d array of one object is that object. Raises DataError."""
        self._count += 1
        if self._count > MAX_PICKLE_ITEMS:
            raise DataError(f"it holds more than {MAX_PICKLE_ITEMS} values (MAX_PICKLE_ITEMS)")
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, dict):
            return {self.of(k): self.of(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.of(v) for v in value)
        if isinstance(value, Inert):
            return self._numpy(value)
        raise DataError(f"it holds a {type(value).__name__}")

    def _numpy(self, record: Inert) -> Any:
        if record.name == "scalar":
            dtype, data = record.arguments
            return np.frombuffer(data, _dtype(dtype))[0].item()
        if record.name == "_frombuffer":
            data, dtype, shape, order = record.arguments
            return np.frombuffer(data, _dtype(dtype)).reshape(shape, order=order)
        if record.name != "_reconstruct" or not isinstance(record.state, tuple):
            raise DataError(f"it holds a {record.name} on its own")
        _, shape, dtype, fortran, data = record.state
        if isinstance(data, list):
            if len(data) != int(np.prod(shape)) or len(shape) > 1:
                raise DataError(f"it holds an array of objects of shape {shape}")
            return self.of(data[0]) if shape == () else [self.of(item) for item in data]
        return np.frombuffer(data, _dtype(dtype)).reshape(shape, order="F" if fortran else "C")


def _dtype(record: Any) -> np.dtype:
    """A dtype of numbers or fixed-length texts, of the byte order that the record names."""
    text = record.arguments[0] if isinstance(record, Inert) and record.name == "dtype" else "?"
    order = record.state[1] if isinstance(record, Inert) and isinstance(record.state, tuple) else "<"
    dtype = np.dtype(f"{order if order in '<>' else ''}{text}") if text[:1] in ("i", "u", "f", "b", "U", "S") else None
    if dtype is None or dtype.hasobject:
        raise DataError(f"it holds an array of type {text}")
    return dtype
