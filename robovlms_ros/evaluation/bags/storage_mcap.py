"""MCAP files as they are found: chunked or not, lz4 or zstd, with or without an index, cut off in the middle.

The `mcap` library reads the records. What it has no answer to is here: messages in the order of recording with only one
chunk in memory (its ordered reader sorts a clock that jumped back away), and what is left of a damaged or cut-off chunk
(it raises, or takes half a record for a whole one).
"""

import dataclasses
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, BinaryIO

import lz4.frame
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import EndOfFile, McapError
from mcap.opcode import Opcode
from mcap.reader import make_reader
from mcap.records import Channel, Chunk, DataEnd, Footer, McapRecord, Message, Schema
from mcap.stream_reader import MAGIC_SIZE, StreamReader, breakup_chunk
from mcap.summary import Summary

from robovlms_ros.core.caps import MAX_CHUNK_BYTES
from robovlms_ros.core.text_safety import printable

BLOCK = 4 << 20
HEADER = 9
PIECE = 1 << 14
COMPRESSIONS = ("", "lz4", "zstd")
DEFINITIONS = ("ros2msg", "ros2idl", "")
"""Schema encodings of ROS 2."""
CDR = ("cdr", "")
"""Message encodings of ROS 2; older writers leave the encoding out."""
DAMAGED = (McapError, struct.error, UnicodeDecodeError, ValueError, RuntimeError, EOFError, zstandard.ZstdError,
           OverflowError, MemoryError, OSError)
"""Exceptions of reading broken bytes, here and in the libraries."""


@dataclass(frozen=True)
class McapBlock:
    """Where messages lie: one chunk, or a run of messages outside chunks. Times are log times, ns.

    cut: a chunk that the file's end cuts off.
    """

    offset: int
    length: int
    begin: int
    end: int
    cut: bool = False


class Exact:
    """A stream that never gives less than was asked for: `mcap` takes what is left of a cut record for the whole.

    A length beyond MAX_CHUNK_BYTES or beyond the end is refused before memory is allocated for it.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._size = _size_of(stream)

    def read(self, length: int) -> bytes:
        """`length` bytes. Raises EndOfFile and McapError."""
        if length > self._size - self._stream.tell():
            raise EndOfFile()
        if length > MAX_CHUNK_BYTES:
            raise McapError(f"a record of {length} bytes: at most {MAX_CHUNK_BYTES} are read (MAX_CHUNK_BYTES)")
        data = self._stream.read(length)
        if len(data) < length:
            raise EndOfFile()
        return data


class Clamped:
    """A stream that gives what is left where more is asked for, without allocating memory for the rest."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._size = _size_of(stream)

    def read(self, length: int = -1) -> bytes:
        """At most `length` bytes. Raises McapError beyond MAX_CHUNK_BYTES."""
        left = max(self._size - self._stream.tell(), 0)
        wanted = left if length < 0 else min(length, left)
        if wanted > MAX_CHUNK_BYTES:
            raise McapError(f"a record of {wanted} bytes: at most {MAX_CHUNK_BYTES} are read (MAX_CHUNK_BYTES)")
        return self._stream.read(wanted)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """As of a file."""
        return self._stream.tell()

    def seekable(self) -> bool:
        """As of a file."""
        return True


def _size_of(stream: IO[bytes]) -> int:
    here = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(here)
    return size


@dataclass
class McapStorage:
    """One MCAP file. `open` finds its channels and blocks; `notes` says in words what was lost."""

    path: Path
    channels: dict[int, tuple[str, str]] = field(default_factory=dict)  # id -> (topic, type)
    definitions: dict[str, tuple[str, str]] = field(default_factory=dict)  # type -> (encoding, text)
    foreign: dict[str, str] = field(default_factory=dict)  # topic -> an encoding that is not ROS 2's
    counts: dict[str, int] | None = None
    blocks: list[McapBlock] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _schemas: dict[int, str] = field(default_factory=dict)

    def open(self) -> None:
        """Find channels and blocks. Raises McapError when the file is not MCAP at all."""
        with self.path.open("rb") as file:
            if not file.read(MAGIC_SIZE).startswith(b"\x89MCAP0"):
                raise McapError("it does not begin as an MCAP file")
            summary = _summary(file)
            if summary is None or not _indexes_everything(summary):
                file.seek(MAGIC_SIZE)
                self._scan(file)
                return
        self._learn([*summary.schemas.values(), *summary.channels.values()])
        self.counts = dict.fromkeys((topic for topic, _ in self.channels.values()), 0)
        assert summary.statistics is not None
        for channel, count in summary.statistics.channel_message_counts.items():
            if channel in self.channels:
                self.counts[self.channels[channel][0]] += count
        self.blocks = [McapBlock(c.chunk_start_offset, c.chunk_length, c.message_start_time, c.message_end_time)
                       for c in sorted(summary.chunk_indexes, key=lambda index: index.chunk_start_offset)]

    def messages(self, wanted: set[str] | None) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, log time ns, bytes) in the order of the file."""
        with self.path.open("rb") as file:
            for block in self.blocks:
                yield from self._block_messages(file, block, wanted)

    def block_messages(self, block: McapBlock, wanted: set[str] | None) -> Iterator[tuple[str, str, int, bytes]]:
        """The messages of one block, in the order of the file."""
        with self.path.open("rb") as file:
            yield from self._block_messages(file, block, wanted)

    def _block_messages(
        self, file: BinaryIO, block: McapBlock, wanted: set[str] | None
    ) -> Iterator[tuple[str, str, int, bytes]]:
        records = self._block_records(file, block)
        while True:
            try:
                record = next(records, None)
            except DAMAGED as error:
                self.notes.append(f"{self.path.name}: the block at byte {block.offset} is damaged and left out "
                                  f"({printable(f'{type(error).__name__}: {error}')}).")
                return
            if record is None:
                return
            if isinstance(record, Message):
                topic, kind = self.channels.get(record.channel_id, ("", ""))
                if topic and (wanted is None or topic in wanted):
                    yield topic, kind, record.log_time, record.data

    def _block_records(self, file: BinaryIO, block: McapBlock) -> Iterator[McapRecord]:
        """A chunk's records, or those of a run until it ends."""
        if block.cut:
            file.seek(block.offset + HEADER)
            # As far as it goes.
            yield from self._chunk_records(Chunk.read(ReadDataStream(Clamped(file))), block.offset)  # type: ignore[arg-type]
            return
        file.seek(block.offset)
        for record in _stream(file):
            if isinstance(record, Chunk):
                yield from self._chunk_records(record, block.offset)
            else:
                yield record
            if file.tell() >= block.offset + block.length:
                return

    def _chunk_records(self, chunk: Chunk, offset: int) -> list[McapRecord]:
        """A chunk's records; what can be had of them, and a note, when it is damaged."""
        if chunk.compression not in COMPRESSIONS:
            self.notes.append(f"{self.path.name}: the chunk at byte {offset} is compressed with "
                              f"'{printable(chunk.compression)}', must be lz4, zstd or none: it is left out.")
            return []
        if chunk.uncompressed_size > MAX_CHUNK_BYTES:
            self.notes.append(f"{self.path.name}: the chunk at byte {offset} is {chunk.uncompressed_size} bytes "
                              f"uncompressed, at most {MAX_CHUNK_BYTES} are read (MAX_CHUNK_BYTES): it is left out.")
            return []
        whole = chunk
        if not _size_is_true(chunk):
            whole = dataclasses.replace(chunk, compression="", data=content_of(chunk))
        try:
            if whole.compression or len(whole.data) == chunk.uncompressed_size:
                return breakup_chunk(whole)
        except DAMAGED:
            pass  # the readable beginning is used, and noted
        records, used = salvaged(chunk)
        self.notes.append(
            f"{self.path.name}: the chunk at byte {offset} is damaged or cut off; {used} of {chunk.uncompressed_size} "
            "bytes of it are used."
        )
        return records

    def _scan(self, file: BinaryIO) -> None:
        """Channels, blocks and counts of a file without an index: every record is looked at once."""
        self.counts = {}
        start = begin = file.tell()  # of the record, of the run of messages outside chunks
        times: list[int] = []
        try:
            for record in _stream(file):
                end = file.tell()
                if isinstance(record, DataEnd | Footer):
                    break
                if isinstance(record, Chunk):
                    self._add_run(begin, start, times)
                    self._learn(self._chunk_records(record, start))
                    self.blocks.append(
                        McapBlock(
                            start, end - start, record.message_start_time, record.message_end_time
                        )
                    )
                elif isinstance(record, Message):
                    times.append(record.log_time)
                    self._learn([record])
                    if end - begin > BLOCK:
                        self._add_run(begin, end, times)
                else:
                    self._learn([record])
                start, begin = end, begin if times else end
            self._add_run(begin, start, times)
        except DAMAGED:
            self._add_run(begin, start, times)
            self._cut_off(file, start)

    def _add_run(self, begin: int, end: int, times: list[int]) -> None:
        """A run of messages as a block; `times`, its log times, is empty after."""
        if times:
            self.blocks.append(McapBlock(begin, end - begin, min(times), max(times)))
            times.clear()

    def _cut_off(self, file: BinaryIO, start: int) -> None:
        """Say where the file breaks off, and use what is left of a chunk there."""
        file.seek(start)
        head, size = file.read(HEADER), self.path.stat().st_size
        if len(head) < HEADER:
            self.notes.append(f"{self.path.name} has no end (its recording was interrupted).")
            return
        chunk, end = head[0] == Opcode.CHUNK, start + HEADER + struct.unpack_from("<Q", head, 1)[0]
        self.notes.append(
            f"{self.path.name} is cut off: {'its last chunk' if chunk else 'a record'} at byte {start} should end at "
            f"{end}, the file ends at {size}. What can be read of it is used."
        )
        if not chunk:
            return
        try:
            record = Chunk.read(ReadDataStream(Clamped(file)))  # type: ignore[arg-type]
        except DAMAGED:
            return  # the cut fell into the chunk's head
        self._learn(self._chunk_records(record, start))
        self.blocks.append(McapBlock(start, size - start, record.message_start_time, record.message_end_time, cut=True))

    def _learn(self, records: Iterable[McapRecord]) -> None:
        for record in records:
            if isinstance(record, Schema):
                self._schemas[record.id] = record.name
                if record.encoding not in DEFINITIONS:
                    continue
                self.definitions[record.name] = (record.encoding, record.data.decode("utf-8", "replace"))
            elif isinstance(record, Channel) and record.message_encoding not in CDR:
                self.foreign[record.topic] = record.message_encoding
            elif isinstance(record, Channel):
                self.channels[record.id] = (record.topic, self._schemas.get(record.schema_id, ""))
            elif isinstance(record, Message) and self.counts is not None and record.channel_id in self.channels:
                topic = self.channels[record.channel_id][0]
                self.counts[topic] = self.counts.get(topic, 0) + 1


def _stream(file: IO[bytes]) -> Iterator[McapRecord]:
    """The records from here on, chunks whole. Raises one of DAMAGED at the first that is not all there."""
    yield from StreamReader(Exact(file), skip_magic=True, emit_chunks=True).records  # type: ignore[arg-type]


def _summary(file: BinaryIO) -> Summary | None:
    """The index at the file's end; None when there is none, or no end."""
    file.seek(0)
    try:
        return make_reader(Clamped(file)).get_summary()  # type: ignore[arg-type]
    except (*DAMAGED, OSError):
        return None


def _indexes_everything(summary: Summary) -> bool:
    """Whether the index names every message: all chunks and channels, and nothing between the chunks."""
    statistics, chunks = summary.statistics, sorted(summary.chunk_indexes, key=lambda index: index.chunk_start_offset)
    if statistics is None or len(chunks) != statistics.chunk_count or (not chunks and statistics.message_count):
        return False
    ends = [chunk.chunk_start_offset + chunk.chunk_length + chunk.message_index_length for chunk in chunks]
    gaps = any(end != chunk.chunk_start_offset for end, chunk in zip(ends, chunks[1:], strict=False))
    known = all(channel.schema_id in summary.schemas for channel in summary.channels.values())
    return not gaps and known and statistics.channel_message_counts.keys() <= summary.channels.keys()


def _size_is_true(chunk: Chunk) -> bool:
    """True where the chunk's data itself names its uncompressed size, so that a library allocates no more."""
    try:
        if chunk.compression == "zstd":
            return bool(zstandard.get_frame_parameters(chunk.data).content_size == chunk.uncompressed_size)
        if chunk.compression == "lz4":
            return bool(lz4.frame.get_frame_info(chunk.data)["content_size"] == chunk.uncompressed_size)
    except DAMAGED:
        return False
    return len(chunk.data) == chunk.uncompressed_size


def salvaged(chunk: Chunk) -> tuple[list[McapRecord], int]:
    """The whole records at the beginning of a broken chunk, and how many bytes of its content could be had."""
    content = content_of(chunk)
    records: list[McapRecord] = []
    try:
        for record in _stream(BytesIO(content)):
            records.append(record)
    except DAMAGED:
        pass  # the records end where the bytes do
    return records, len(content)


def content_of(chunk: Chunk) -> bytes:
    """A chunk's content as far as it decompresses, at most MAX_CHUNK_BYTES and a piece."""
    content = bytearray()
    try:
        for piece in _pieces(chunk):
            content += piece
            if len(content) > MAX_CHUNK_BYTES:
                break
    except DAMAGED:
        pass  # the content ends at the damage
    return bytes(content)


def _pieces(chunk: Chunk) -> Iterator[bytes]:
    """Decompressed pieces, small ones, so that a cut loses little."""
    decompress: Callable[[bytes], bytes] = bytes
    if chunk.compression == "zstd":
        # A few compressed bytes may hold gigabytes: the reader's pieces are of the decompressed data.
        with zstandard.ZstdDecompressor().stream_reader(chunk.data) as reader:
            while piece := reader.read(PIECE):
                yield piece
        return
    if chunk.compression == "lz4":
        decompress = lz4.frame.LZ4FrameDecompressor().decompress
    for offset in range(0, len(chunk.data), PIECE):
        yield decompress(chunk.data[offset:offset + PIECE])
