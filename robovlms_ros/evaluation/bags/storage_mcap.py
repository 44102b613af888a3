"""MCAP files as they are found: chunked or not, lz4 or zstd, with or without an index, cut off in the middle.

Format: https://mcap.dev/spec. The index is used where there is one (schemas, channels); messages are found by walking
the records, which works as well for a file that lost its end. Nothing here holds more than one chunk.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

MAGIC = b"\x89MCAP0\r\n"
FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, DATA_END = 0x02, 0x03, 0x04, 0x05, 0x06, 0x0F
FOOTER_SIZE = 37
BLOCK = 4 << 20


class McapError(Exception):
    """The bytes are not MCAP, or not from here on."""


@dataclass(frozen=True)
class Block:
    """Where messages lie: one chunk, or a run of messages outside chunks. Times are log times, ns.

    begin, end are 0 for a run, whose times are known once it is read.
    """

    offset: int
    length: int
    begin: int
    end: int
    chunk: bool


@dataclass
class McapStorage:
    """One MCAP file. `open` finds its channels and blocks; `notes` says in words what was lost, `damaged` whether."""

    path: Path
    channels: dict[int, tuple[str, str]] = field(default_factory=dict)  # id -> (topic, type)
    definitions: dict[str, tuple[str, str]] = field(default_factory=dict)  # type -> (encoding, text)
    counts: dict[str, int] | None = None
    blocks: list[Block] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _schemas: dict[int, str] = field(default_factory=dict)
    _size: int = 0

    def open(self) -> None:
        """Find channels and blocks. Raises McapError when the file is not MCAP at all."""
        with self.path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise McapError("it does not begin as an MCAP file")
            self._size = self.path.stat().st_size
            complete = self._read_summary(file)
            self._walk(file, complete)
        if not complete:
            self._learn_channels()

    def _read_summary(self, file: BinaryIO) -> bool:
        """Schemas and channels out of the summary section; False when the file has none (or no end)."""
        if self._size < FOOTER_SIZE + len(MAGIC):
            return False
        file.seek(-FOOTER_SIZE, 2)
        footer = file.read(FOOTER_SIZE)
        if footer[-len(MAGIC):] != MAGIC or footer[0] != FOOTER:
            return False
        (summary,) = struct.unpack_from("<Q", footer, 9)
        if not summary:
            return False
        file.seek(summary)
        for operation, payload in _records(file.read(self._size - FOOTER_SIZE - summary)):
            self._learn(operation, payload)
            if operation == 0x0B:  # statistics
                self.counts = self._read_counts(payload)
        return bool(self.channels) or self.counts == {}

    def _read_counts(self, payload: memoryview) -> dict[str, int]:
        counts: dict[str, int] = {}
        (length,) = struct.unpack_from("<I", payload, 42)
        for offset in range(46, 46 + length, 10):
            channel, count = struct.unpack_from("<HQ", payload, offset)
            if channel in self.channels:
                topic = self.channels[channel][0]
                counts[topic] = counts.get(topic, 0) + count
        return counts

    def _walk(self, file: BinaryIO, complete: bool) -> None:
        """The blocks, by hopping from record to record."""
        file.seek(len(MAGIC))
        run_begin, position = None, file.tell()
        while position + 9 <= self._size:
            file.seek(position)
            head = file.read(9 + 32)
            operation, (length,) = head[0], struct.unpack_from("<Q", head, 1)
            end = position + 9 + length
            if operation in (DATA_END, FOOTER):
                break
            if operation == 0 or end > self._size:
                self._note_cut(position, operation, end)
                if operation == CHUNK:
                    self.blocks.append(_chunk_block(head, position, self._size - position))
                position = end
                break
            if operation == MESSAGE:
                run_begin = position if run_begin is None else run_begin
            if run_begin is not None and (operation == CHUNK or end - run_begin > BLOCK):
                stop = position if operation == CHUNK else end
                self.blocks.append(Block(run_begin, stop - run_begin, 0, 0, False))
                run_begin = None
            if operation == CHUNK:
                self.blocks.append(_chunk_block(head, position, 9 + length))
            position = end
        else:
            if not complete:
                self.notes.append(f"{self.path.name} has no end (its recording was interrupted).")
        if run_begin is not None:
            self.blocks.append(Block(run_begin, min(position, self._size) - run_begin, 0, 0, False))

    def _note_cut(self, position: int, operation: int, end: int) -> None:
        what = "its last chunk" if operation == CHUNK else "a record"
        self.notes.append(
            f"{self.path.name} is cut off: {what} at byte {position} should end at {end}, the file ends at "
            f"{self._size}. What can be read of it is used."
        )

    def _learn_channels(self) -> None:
        """Channels and counts of a file without summary: every record is looked at once."""
        self.counts = {}
        before = len(self.notes)
        with self.path.open("rb") as file:
            file.seek(len(MAGIC))
            first = self.blocks[0].offset if self.blocks else self._size
            for operation, payload in _records(file.read(first - len(MAGIC))):
                self._learn(operation, payload)
            for block in self.blocks:
                for operation, payload in self._block_records(file, block):
                    self._learn(operation, payload)
                    if operation == MESSAGE:
                        (channel,) = struct.unpack_from("<H", payload)
                        topic = self.channels.get(channel, ("?", "?"))[0]
                        self.counts[topic] = self.counts.get(topic, 0) + 1
        del self.notes[before:]  # reading says it again

    def _learn(self, operation: int, payload: memoryview) -> None:
        if operation == SCHEMA:
            (key,) = struct.unpack_from("<H", payload)
            name, offset = _string(payload, 2)
            encoding, offset = _string(payload, offset)
            text, _ = _string(payload, offset)
            self._schemas[key] = name
            self.definitions[name] = (encoding, text)
        elif operation == CHANNEL:
            key, schema = struct.unpack_from("<HH", payload)
            topic, _ = _string(payload, 4)
            self.channels[key] = (topic, self._schemas.get(schema, ""))

    def _block_records(self, file: BinaryIO, block: Block) -> Iterator[tuple[int, memoryview]]:
        file.seek(block.offset)
        data = file.read(block.length)
        if not block.chunk:
            yield from _records(data)
            return
        try:
            _, _, size, _ = struct.unpack_from("<QQQI", data, 9)
            compression, offset = _string(memoryview(data), 9 + 28)
            (length,) = struct.unpack_from("<Q", data, offset)
            content = data[offset + 8:offset + 8 + length]
        except (struct.error, IndexError):
            return  # the cut fell into the chunk's head
        records, whole = _decompress(compression, content, size)
        if not whole:
            self.notes.append(
                f"{self.path.name}: the chunk at byte {block.offset} is damaged or cut off; "
                f"{len(records)} of {size} bytes of it are used."
            )
        yield from _records(records)

    def messages(self, wanted: set[str] | None) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, log time ns, bytes) in the order of the file."""
        with self.path.open("rb") as file:
            for block in self.blocks:
                yield from self._block_messages(file, block, wanted)

    def block_messages(self, block: Block, wanted: set[str] | None) -> Iterator[tuple[str, str, int, bytes]]:
        """The messages of one block, in the order of the file."""
        with self.path.open("rb") as file:
            yield from self._block_messages(file, block, wanted)

    def _block_messages(
        self, file: BinaryIO, block: Block, wanted: set[str] | None
    ) -> Iterator[tuple[str, str, int, bytes]]:
        for operation, payload in self._block_records(file, block):
            if operation != MESSAGE:
                continue
            channel, _, log_time, _ = struct.unpack_from("<HIQQ", payload)
            topic, kind = self.channels.get(channel, ("", ""))
            if topic and (wanted is None or topic in wanted):
                yield topic, kind, log_time, bytes(payload[22:])


def _chunk_block(head: bytes, offset: int, length: int) -> Block:
    begin, end = struct.unpack_from("<QQ", head, 9)
    return Block(offset, length, begin, end, True)


def _string(payload: memoryview, offset: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", payload, offset)
    return bytes(payload[offset + 4:offset + 4 + length]).decode("utf-8", "replace"), offset + 4 + length


def _records(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """(operation, payload) of every whole record."""
    view, position = memoryview(data), 0
    while position + 9 <= len(view):
        (length,) = struct.unpack_from("<Q", view, position + 1)
        end = position + 9 + length
        if end > len(view):
            return
        yield view[position], view[position + 9:end]
        position = end


def _decompress(compression: str, data: bytes, size: int) -> tuple[bytes, bool]:
    """What the data holds, and whether that is all of `size` bytes."""
    if compression == "":
        return data, len(data) == size
    pieces = bytearray()
    try:
        for piece in _stream(compression, data):
            pieces += piece
    except _errors():
        return bytes(pieces), False
    return bytes(pieces), len(pieces) == size


def _errors() -> tuple[type[Exception], ...]:
    import zstandard

    return (zstandard.ZstdError, RuntimeError, EOFError)


def _stream(compression: str, data: bytes) -> Iterator[bytes]:
    """Decompressed pieces, small ones, so that a cut loses little."""
    if compression == "zstd":
        import zstandard

        decompress = zstandard.ZstdDecompressor().decompressobj().decompress
    elif compression == "lz4":
        import lz4.frame

        decompress = lz4.frame.LZ4FrameDecompressor().decompress
    else:
        raise McapError(f"chunks compressed with '{compression}' are unknown: must be lz4, zstd or none")
    for offset in range(0, len(data), 1 << 14):
        yield decompress(data[offset:offset + (1 << 14)])
