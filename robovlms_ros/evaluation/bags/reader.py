"""A rosbag2, folder or file, MCAP or SQLite, compressed or split, whole or damaged, as one stream
of messages.

Messages come in the order in which they were recorded, sorted over a short window, so that a
player's jitter does not matter and a clock that jumps back is seen as what it is. Nothing is held
but that window; nothing of ROS is needed.
"""

import heapq
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from robovlms_ros.core.caps import (
    MAX_BAG_BYTES,
    MAX_DECOMPRESSED_BYTES,
    MAX_DECOMPRESSED_RATIO,
    MAX_MESSAGE_BYTES,
    MAX_METADATA_BYTES,
    MAX_SCHEMA_BYTES,
)
from robovlms_ros.core.file_boundary import file_boundary, require_file
from robovlms_ros.core.resources import PACKAGE
from robovlms_ros.core.structured_text import from_yaml
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import NANOSECONDS, RoboVLMsError
from robovlms_ros.evaluation.bags.chunks import CHUNK, TRAJECTORY
from robovlms_ros.evaluation.bags.storage import JUMP_NS, BagStorage, StorageError
from robovlms_ros.evaluation.bags.storage_mcap import McapStorage
from robovlms_ros.evaluation.bags.storage_sqlite import SqliteStorage
from robovlms_ros.evaluation.bags.types import difference, lacking, typestore

WINDOW_NS = NANOSECONDS // 2
PIECE = 1 << 20
REMEDY = "`ros2 bag info` shows whether it is whole."
ROS1 = ("ROS 1. Convert the original .bag file: `pip install rosbags`, then `rosbags-convert --src FILE.bag --dst "
        "FOLDER`")
CONVERTERS = {
    "ros1": ROS1,
    "protobuf": "protobuf. Write its messages as ROS 2 ones into another MCAP file with the Python package "
    "mcap-ros2-support (`mcap_ros2.writer.Writer`), after reading them with mcap-protobuf-support",
}
SUFFIXES = (".mcap", ".db3")
DISTRIBUTIONS = {"humble": Stores.ROS2_HUMBLE, "iron": Stores.ROS2_IRON, "jazzy": Stores.ROS2_JAZZY,
                 "kilted": Stores.ROS2_KILTED, "foxy": Stores.ROS2_FOXY, "galactic": Stores.ROS2_GALACTIC}


class BagError(RoboVLMsError):
    """A bag cannot be read at all; what is merely damaged becomes a note."""


@dataclass(frozen=True)
class RawMessage:
    """One message as recorded. log_ns: when it was received; data: CDR."""

    topic: str
    type: str
    log_ns: int
    data: bytes


@dataclass(frozen=True)
class ClockJump:
    """The recording's clock went back: what follows belongs to another time line."""

    to_ns: int


@dataclass
class Bag:
    """An open rosbag2; use as a context manager.

    topics: name -> type. counts: name -> messages, None where the file has no index and must be
        read.
    notes: what was missing, repaired or lost, one sentence each; grows while the bag is read.
    foreign: name -> encoding of the topics that are not in ROS 2's and cannot be read.
    """

    path: Path
    topics: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] | None = None
    distribution: str = ""
    foreign: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        self._storages: list[BagStorage] = []
        self._stack = ExitStack()
        self._notes: list[str] = []
        self._undecodable: dict[str, int] = {}
        self._undecompressed: dict[str, int] = {}
        self._redefined: set[str] = set()

    @property
    def notes(self) -> list[str]:
        """One sentence for each thing that is not as it should be."""
        lost = [f"{count} messages on {topic} do not decode and are left out."
                for topic, count in self._undecodable.items()]
        lost += [f"{count} messages on {topic} do not decompress, or to more than {MAX_MESSAGE_BYTES} bytes "
                 "(MAX_MESSAGE_BYTES), and are left out." for topic, count in self._undecompressed.items()]
        return list(dict.fromkeys([*self._notes, *(n for s in self._storages for n in s.notes), *lost]))

    def __enter__(self) -> "Bag":
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self) -> None:
        if not self.path.exists():
            raise BagError(f"{self.path}: no such bag. Give a rosbag2 folder, or its .mcap or .db3 file.")
        files, self._mode = self._files()
        for file in files:
            self._storages.append(self._open_storage(file))
        for storage in self._storages:
            self.topics.update(dict(storage.channels.values()))
            self.foreign.update(storage.foreign)
            self.distribution = self.distribution or storage.distribution
        self._judge_encodings()
        totals: dict[str, int] = dict.fromkeys(self.topics, 0)
        for storage in self._storages:
            for topic, count in (storage.counts or {}).items():
                totals[topic] = totals.get(topic, 0) + count
        self.counts = None if any(storage.counts is None for storage in self._storages) else totals
        self._types = self._typestore()

    def _judge_encodings(self) -> None:
        """Raise BagError where no topic is in ROS 2's encoding; note the topics that are not."""
        if not self.foreign:
            return
        encodings = sorted(set(self.foreign.values()))
        words = "; ".join(CONVERTERS.get(name, f"{printable(name)}, for which no converter is known")
                          for name in encodings)
        text = f"{len(self.foreign)} topics are not encoded as ROS 2 (cdr) but as {words}."
        if not self.topics:
            raise BagError(f"{self.path}: {text}")
        self._notes.append(f"{text} They are left out.")

    def _files(self) -> tuple[list[Path], str]:
        """The storage files in order, decompressed where the whole file was, and the compression
        mode left."""
        if self.path.is_file():
            return [self._plain(self.path)], "none"
        information: dict[str, Any] = {}
        metadata = self.path / "metadata.yaml"
        try:
            if metadata.exists():
                require_file(BagError, metadata, MAX_METADATA_BYTES, "MAX_METADATA_BYTES")
            loaded = from_yaml(metadata.read_text(encoding="utf-8"))
            information = loaded["rosbag2_bagfile_information"]
            if not isinstance(information, dict):
                raise TypeError("rosbag2_bagfile_information is no mapping")
            names = [self.path / Path(name).name for name in information["relative_file_paths"]]
            names = [name for name in names if name.name.removesuffix(".zstd").endswith(SUFFIXES)]
        except Exception as error:  # damaged YAML raises anything in its parser
            information = {}
            reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
            self._notes.append(f"metadata.yaml {reason}; the files of {self.path.name} are read without it, by name.")
            names = sorted(p for p in self.path.iterdir() if p.name.removesuffix(".zstd").endswith(SUFFIXES))
        for name in [n for n in names if not n.exists()]:
            self._notes.append(f"{name.name} is listed in metadata.yaml and missing; the other files are used.")
        present = [name for name in names if name.exists()]
        if not present:
            raise BagError(f"{self.path}: holds no .mcap or .db3 file. Give a rosbag2 folder, or such a file.")
        self.distribution = str(information.get("ros_distro") or "").lower()
        mode = str(information.get("compression_mode") or "none").lower()
        return [self._plain(name) for name in present], mode if mode == "message" else "none"

    def _plain(self, path: Path) -> Path:
        """The file itself, or its decompressed copy in a folder that goes with this object."""
        size = require_file(BagError, path, MAX_BAG_BYTES, "MAX_BAG_BYTES")
        if path.suffix not in (".zstd", ".zst"):
            return path
        import zstandard

        most = max(MAX_DECOMPRESSED_BYTES, MAX_DECOMPRESSED_RATIO * size)
        written = 0

        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="robovlms_bag_")))
        target = folder / path.stem
        with file_boundary(BagError, path, REMEDY), path.open("rb") as source, target.open("wb") as sink:
            try:
                with zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True) as reader:
                    while piece := reader.read(PIECE):
                        written += len(piece)
                        if written > most:
                            raise BagError(
                                f"{path}: {size} bytes decompress to more than {most} (MAX_DECOMPRESSED_BYTES, "
                                "MAX_DECOMPRESSED_RATIO). If the recording is genuine, decompress it with "
                                "`zstd -d` and give the result."
                            )
                        sink.write(piece)
            except zstandard.ZstdError as error:
                self._notes.append(f"{path.name} is cut off or damaged ({error}); what was decompressed is used.")
        return target

    def _open_storage(self, path: Path) -> BagStorage:
        if path.suffix not in SUFFIXES:
            hint = f" It is encoded as {ROS1}." if path.suffix == ".bag" else ""
            raise BagError(f"{path}: '{path.suffix}' is not a rosbag2 file. Allowed: {', '.join(SUFFIXES)}, .zstd."
                           f"{hint}")
        storage = McapStorage(path) if path.suffix == ".mcap" else SqliteStorage(path)
        with file_boundary(BagError, path, REMEDY):
            try:
                storage.open()
            except StorageError as error:
                raise BagError(f"{path}: not readable: {printable(error, 300)}. {REMEDY}") from error
        return storage

    def _typestore(self) -> Typestore:
        """The definitions embedded in the bag; for types without one, the distribution's and this
        package's own."""
        known = _known_types(DISTRIBUTIONS.get(self.distribution, Stores.ROS2_JAZZY))
        store = get_typestore(Stores.EMPTY)
        embedded: set[str] = set()
        for storage in self._storages:
            for kind, (encoding, text) in storage.definitions.items():
                try:
                    if len(text) > MAX_SCHEMA_BYTES:
                        raise ValueError(f"{len(text)} characters, at most {MAX_SCHEMA_BYTES} (MAX_SCHEMA_BYTES)")
                    types = get_types_from_idl(text) if encoding == "ros2idl" else get_types_from_msg(text, kind)
                    store.register({name: value for name, value in types.items() if name not in embedded})
                    embedded |= types.keys()
                except Exception as error:  # a damaged text raises anything in the parser
                    self._notes.append(f"the definition of {printable(kind)} in the bag is unusable "
                                       f"({printable(error)}).")
        store.register(lacking([*self.topics.values(), CHUNK, TRAJECTORY], store, known))
        self.embedded = embedded
        self._judge_definitions(store, known)
        return store

    def _judge_definitions(self, store: Typestore, known: Typestore) -> None:
        """Find the embedded definitions of standard types whose messages this package could not
        read."""
        for kind in sorted(set(self.topics.values()) & self.embedded & known.fielddefs.keys()):
            found = None if kind.startswith(f"{PACKAGE}/") else difference(kind, store, known)
            if found:
                self._redefined.add(kind)
                self._notes.append(f"the bag defines {kind} otherwise than ROS 2: {found}. Its messages are left out.")

    @property
    def types(self) -> Typestore:
        """The message types of this bag."""
        return self._types

    def decode(self, message: RawMessage) -> Any | None:
        """The message object; None (and a note) when its bytes do not fit its type."""
        try:
            if message.type in self._redefined:
                raise TypeError("the type is redefined")
            return self._types.deserialize_cdr(message.data, message.type)
        except Exception:  # whatever broken bytes raise in generated code, the message is lost
            self._undecodable[message.topic] = self._undecodable.get(message.topic, 0) + 1
            return None

    def messages(self, topics: set[str] | None = None) -> Iterator[RawMessage | ClockJump]:
        """The messages of `topics` (None: all), with a ClockJump where recorded time goes back by
        over a second."""
        decompress = self._decompressor()
        heap: list[tuple[int, int, RawMessage]] = []
        newest = 0
        stored = (message for storage in self._storages for message in storage.messages(topics))
        for count, (topic, kind, time, data) in enumerate(stored):
            content = decompress(topic, data)
            if content is None:
                continue
            message = RawMessage(topic, kind, time, content)
            if time < newest - JUMP_NS:
                while heap:
                    yield heapq.heappop(heap)[2]
                yield ClockJump(time)
                newest = time
            newest = max(newest, time)
            heapq.heappush(heap, (time, count, message))
            while heap and heap[0][0] < newest - WINDOW_NS:
                yield heapq.heappop(heap)[2]
        while heap:
            yield heapq.heappop(heap)[2]

    def between(self, topics: set[str], begin_ns: int, end_ns: int) -> Iterator[RawMessage]:
        """The messages of `topics` received from `begin_ns` to `end_ns`, both included, in the
        order of the file.

        Only the parts of the file that may hold some are read.
        """
        decompress = self._decompressor()
        for storage in self._storages:
            for topic, kind, time, data in storage.between(topics, begin_ns, end_ns):
                content = decompress(topic, data)
                if content is not None:
                    yield RawMessage(topic, kind, time, content)

    def _decompressor(self) -> Any:
        """(topic, recorded bytes) -> CDR; None, counted in the notes, where they are damaged or
        beyond the cap."""
        if self._mode != "message":
            return lambda _, data: data
        import zstandard

        decompressor = zstandard.ZstdDecompressor()

        def decompress(topic: str, data: bytes) -> bytes | None:
            try:
                # The frame's own size is allocated at once: it is compared before.
                if zstandard.get_frame_parameters(data).content_size <= MAX_MESSAGE_BYTES:
                    return decompressor.decompress(data)
            except (zstandard.ZstdError, MemoryError, ValueError):
                pass  # counted below
            self._undecompressed[topic] = self._undecompressed.get(topic, 0) + 1
            return None

        return decompress


@cache
def _known_types(distribution: Stores) -> Typestore:
    """The types of a ROS distribution and of this package. Shared: they are read only."""
    return typestore(distribution)
