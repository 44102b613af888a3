"""MCAP files: chunked or not, lz4 or zstd, with or without an index, whole or cut off.

The `mcap` library (1.4.0) reads the index and the records. Its `iter_messages` does not serve:
in file order it queues every message before the first one (335 MB at the peak and 1.0 s for 63,000
messages of 335 MB; by blocks 2.5 MB and 0.3 s), by log time it sorts a clock that jumped back away,
at damage it raises and the rest of the file is lost, it takes a record that the file's end cuts
off for a whole one, and it allocates the sizes that a file names.
"""

import dataclasses
import heapq
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO, Any, BinaryIO

import lz4.frame
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import EndOfFile, McapError
from mcap.opcode import Opcode
from mcap.reader import make_reader
from mcap.records import Channel, Chunk, ChunkIndex, DataEnd, Footer, McapRecord, Message, Schema
from mcap.stream_reader import MAGIC_SIZE, StreamReader, breakup_chunk
from mcap.summary import Summary

from robovlms_ros.core.caps import MAX_CHUNK_BYTES
from robovlms_ros.core.text_safety import printable
from robovlms_ros.evaluation.bags.storage import (
    JUMP_NS,
    BagStorage,
    StorageError,
    StoredMessage,
    written_by_topic,
)

BLOCK = 4 << 20
HEADER = 9
PIECE = 1 << 14
COMPRESSIONS = ("", "lz4", "zstd")
DEFINITIONS = ("ros2msg", "ros2idl", "")
"""Schema encodings of ROS 2."""
CDR = ("cdr", "")
"""Message encodings of ROS 2; older writers leave the encoding out."""
DAMAGED = (McapError, struct.error, UnicodeDecodeError, ValueError, RuntimeError, EOFError,
           zstandard.ZstdError, OverflowError, MemoryError, OSError)
"""Exceptions of reading broken bytes, here and in the libraries."""


@dataclass(frozen=True)
class McapBlock:
    """The bytes of messages: one chunk, or a run of messages outside chunks.

    begin, end: log times, ns. cut: a chunk that the file's end cuts off.
    """

    offset: int
    length: int
    begin: int
    end: int
    cut: bool = False


class Exact:
    """A stream whose `read` returns as many bytes as requested, or raises before allocation."""

    def __init__(self, stream: IO[bytes]) -> None:
        here = stream.tell()
        self._size = stream.seek(0, 2)
        stream.seek(here)
        self._stream = stream
        self.seek = stream.seek
        self.seekable = stream.seekable

    def read(self, length: int) -> bytes:
        """`length` bytes. Raises EndOfFile and McapError."""
        if length > self._size - self._stream.tell():
            raise EndOfFile()
        if length > MAX_CHUNK_BYTES:
            raise McapError(
                f"a record of {length} bytes: at most {MAX_CHUNK_BYTES} are read (MAX_CHUNK_BYTES)"
            )
        return self._stream.read(length)


@dataclass
class McapStorage(BagStorage):
    """One MCAP file. `open` finds its channels and blocks."""

    blocks: list[McapBlock] = field(default_factory=list)
    _schemas: dict[int, str] = field(default_factory=dict)

    def open(self) -> None:
        """Find channels and blocks. Raises StorageError when the file is not MCAP at all."""
        with self.path.open("rb") as file:
            if not file.read(MAGIC_SIZE).startswith(b"\x89MCAP0"):
                raise StorageError("it does not begin as an MCAP file")
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
        self.blocks = [
            McapBlock(
                c.chunk_start_offset, c.chunk_length, c.message_start_time, c.message_end_time
            )
            for c in _in_file_order(summary)
        ]

    def messages(self, topics: set[str] | None) -> Iterator[StoredMessage]:
        """The messages of `topics` (None: all) in the order of the file, or by time where
        `written_by_topic`; no more than the blocks that overlap in time are in memory."""
        everything = (message for block in self.blocks for message in self._block(block, None))
        if self._steps_back() and written_by_topic(_times(everything)):
            # A block is read when its first message is due.
            merged = heapq.merge(*(self._due(i, topics) for i in range(len(self.blocks))))
            yield from (message for *_, message in merged if message is not None)
            return
        for block in self.blocks:
            messages = list(self._block(block, topics))
            if written_by_topic(_times(messages)):
                messages.sort(key=lambda message: message[2])
            yield from messages

    def between(self, topics: set[str], begin: int, end: int) -> Iterator[StoredMessage]:
        """The messages logged from `begin` to `end`, ns, both included."""
        for block in self.blocks:
            if block.begin <= end and begin <= block.end:
                for message in self._block(block, topics):
                    if begin <= message[2] <= end:
                        yield message

    def _steps_back(self) -> bool:
        newest = 0
        for block in self.blocks:
            if block.begin < newest - JUMP_NS:
                return True
            newest = max(newest, block.end)
        return False

    def _due(self, index: int, topics: set[str] | None) -> Iterator[tuple[Any, ...]]:
        """(time, block, number, message) of one block by time, after an entry without a message."""
        block = self.blocks[index]
        yield block.begin, index, -1, None
        messages = sorted(self._block(block, topics), key=lambda message: message[2])
        for number, message in enumerate(messages):
            yield message[2], index, number, message

    def _block(self, block: McapBlock, topics: set[str] | None) -> Iterator[StoredMessage]:
        """The messages of one block, in the order of the file."""
        with self.path.open("rb") as file:
            records = self._block_records(file, block)
            while True:
                try:
                    record = next(records, None)
                except DAMAGED as error:
                    reason = printable(f"{type(error).__name__}: {error}")
                    where = f"the block at byte {block.offset}"
                    self._note(f"{where} is damaged and left out ({reason}).")
                    return
                if record is None:
                    return
                if isinstance(record, Message):
                    topic, kind = self.channels.get(record.channel_id, ("", ""))
                    if topic and (topics is None or topic in topics):
                        yield topic, kind, record.log_time, record.data

    def _block_records(self, file: BinaryIO, block: McapBlock) -> Iterator[McapRecord]:
        """A chunk's records, or those of a run until it ends."""
        if block.cut:
            yield from self._chunk_records(_cut_chunk(file, block.offset), block.offset)
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
        """A chunk's records; of a damaged one those before the damage, and a note."""
        chunk_is = f"the chunk at byte {offset} is"
        if chunk.compression not in COMPRESSIONS:
            self._note(f"{chunk_is} compressed with '{printable(chunk.compression)}', must be lz4, "
                       "zstd or none: it is left out.")
            return []
        if chunk.uncompressed_size > MAX_CHUNK_BYTES:
            self._note(f"{chunk_is} {chunk.uncompressed_size} bytes uncompressed, at most "
                       f"{MAX_CHUNK_BYTES} are read (MAX_CHUNK_BYTES): it is left out.")
            return []
        content = content_of(chunk)
        if len(content) == chunk.uncompressed_size:
            with suppress(*DAMAGED):
                return breakup_chunk(dataclasses.replace(chunk, compression="", data=content))
        records: list[McapRecord] = []
        with suppress(*DAMAGED):
            for record in _stream(BytesIO(content)):
                records.append(record)
        self._note(f"{chunk_is} damaged or cut off; {len(content)} of {chunk.uncompressed_size} "
                   "bytes of it are used.")
        return records

    def _note(self, text: str) -> None:
        self.notes.append(f"{self.path.name}: {text}")

    def _scan(self, file: BinaryIO) -> None:
        """Channels, blocks and counts of a file without an index: every record is read once."""
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
                    span = (record.message_start_time, record.message_end_time)
                    self.blocks.append(McapBlock(start, end - start, *span))
                elif isinstance(record, Message):
                    times.append(record.log_time)
                    self._learn([record])
                    if end - begin > BLOCK:
                        self._add_run(begin, end, times)
                else:
                    self._learn([record])
                start = end
                begin = begin if times else end
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
        """Note the byte at which the file breaks off, and use the rest of a chunk there."""
        file.seek(start)
        head = file.read(HEADER)
        size = self.path.stat().st_size
        if len(head) < HEADER:
            self.notes.append(f"{self.path.name} has no end (its recording was interrupted).")
            return
        chunk = head[0] == Opcode.CHUNK
        end = start + HEADER + struct.unpack_from("<Q", head, 1)[0]
        self.notes.append(
            f"{self.path.name} is cut off: {'its last chunk' if chunk else 'a record'} at byte "
            f"{start} should end at {end}, the file ends at {size}. What can be read of it is used."
        )
        if not chunk:
            return
        try:
            record = _cut_chunk(file, start)
        except DAMAGED:
            return  # the cut fell into the chunk's head
        self._learn(self._chunk_records(record, start))
        span = (record.message_start_time, record.message_end_time)
        self.blocks.append(McapBlock(start, size - start, *span, cut=True))

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
            elif isinstance(record, Message) and self.counts is not None:
                topic, _ = self.channels.get(record.channel_id, ("", ""))
                if not topic:
                    continue
                self.counts[topic] = self.counts.get(topic, 0) + 1


def _stream(file: IO[bytes]) -> Iterator[McapRecord]:
    """The records from here on, chunks whole. Raises one of DAMAGED at the first incomplete one."""
    exact: Any = Exact(file)
    yield from StreamReader(exact, skip_magic=True, emit_chunks=True).records


def _cut_chunk(file: BinaryIO, offset: int) -> Chunk:
    """The chunk that the file's end cuts off, with the data that is left. Raises one of DAMAGED."""
    file.seek(offset + HEADER)
    return Chunk.read(ReadDataStream(BytesIO(file.read(MAX_CHUNK_BYTES))))


def _summary(file: BinaryIO) -> Summary | None:
    """The index at the file's end; None when there is none, or no end."""
    file.seek(0)
    try:
        exact: Any = Exact(file)
        return make_reader(exact).get_summary()
    except DAMAGED:
        return None


def _in_file_order(summary: Summary) -> list[ChunkIndex]:
    return sorted(summary.chunk_indexes, key=lambda index: index.chunk_start_offset)


def _times(messages: Iterable[StoredMessage]) -> Iterator[tuple[str, int]]:
    return ((topic, time) for topic, _, time, _ in messages)


def _indexes_everything(summary: Summary) -> bool:
    """True if the index names every message: all chunks and channels, no gap between chunks."""
    statistics = summary.statistics
    chunks = _in_file_order(summary)
    if statistics is None or len(chunks) != statistics.chunk_count:
        return False
    if not chunks and statistics.message_count:
        return False
    ends = [c.chunk_start_offset + c.chunk_length + c.message_index_length for c in chunks]
    gaps = any(end != c.chunk_start_offset for end, c in zip(ends, chunks[1:], strict=False))
    known = all(channel.schema_id in summary.schemas for channel in summary.channels.values())
    named = statistics.channel_message_counts.keys() <= summary.channels.keys()
    return not gaps and known and named


def content_of(chunk: Chunk) -> bytes:
    """A chunk's content as far as it decompresses, at most the size that the chunk names."""
    if not chunk.compression:
        return chunk.data
    # Streams, because a whole frame is decompressed into the size that the frame names.
    with suppress(*DAMAGED):
        return _decompressed(chunk).read(chunk.uncompressed_size)
    content = bytearray()
    reader = _decompressed(chunk)
    with suppress(*DAMAGED):  # small pieces, so that the damage costs little
        while len(content) < chunk.uncompressed_size and (piece := reader.read1(PIECE)):
            content += piece
    return bytes(content)


def _decompressed(chunk: Chunk) -> Any:
    """The content as a stream."""
    if chunk.compression == "zstd":
        return zstandard.ZstdDecompressor().stream_reader(chunk.data)
    return lz4.frame.LZ4FrameFile(BytesIO(chunk.data))
