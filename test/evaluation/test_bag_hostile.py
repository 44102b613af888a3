"""Bags that are damaged or made to harm.

- One damaged message of a SQLite bag costs that message; rows of other types than rosbag2's are counted and left out.
- A view or a computed column in place of a table is refused; so are a pipe and a folder in place of a file.
- Sizes are checked before memory is allocated: zstd files, zstd messages, MCAP chunks and records, PNG headers. The
  message names the cap.
- A bag's own definition of a standard type that lacks a field costs the topic, with a note; an extra field does not.
- ROS 1 and protobuf recordings are named with a converter.
"""

import io
import os
import sqlite3
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from robovlms_ros.core.types import ObservationError
from robovlms_ros.evaluation.bags.reader import Bag, BagError, RawMessage
from robovlms_ros.observations.images import to_rgb

SQLITE = StoragePlugin.SQLITE3


def read(path):
    with Bag(path) as bag:
        messages = [m for m in bag.messages() if isinstance(m, RawMessage)]
        decoded = [bag.decode(m) for m in messages]
        return messages, decoded, bag.notes


def database(path):
    return sqlite3.connect(next(path.glob("*.db3")), isolation_level=None)


@pytest.mark.parametrize("content", [b"no zstd frame", b"\x28\xb5\x2f\xfd\x20\x05\x00", b""])
def test_one_damaged_message_costs_that_message(tools, tmp_path, content):
    path = tools.write_bag(tmp_path / "bag", 0.5, plugin=SQLITE, compression=CompressionMode.MESSAGE)
    count = len(read(path)[0])
    with database(path) as rows:
        rows.execute("UPDATE messages SET data = ? WHERE id = 20", [content])
    messages, decoded, notes = read(path)
    assert len(messages) == count - 1 and None not in decoded
    assert any(note.startswith("1 messages on") and "do not decompress" in note for note in notes), notes


def test_a_message_that_decompresses_beyond_the_cap_is_left_out(tools, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 0.5, plugin=SQLITE, compression=CompressionMode.MESSAGE)
    count = len(read(path)[0])
    compressor = zstandard.ZstdCompressor().compressobj(size=300 * 2**20)
    bomb = b"".join(compressor.compress(bytes(2**20)) for _ in range(300)) + compressor.flush()
    with database(path) as rows:
        rows.execute("UPDATE messages SET data = ? WHERE id = 20", [bomb])
    messages, _, notes = read(path)
    assert len(messages) == count - 1 and any("MAX_MESSAGE_BYTES" in note for note in notes)


@pytest.mark.parametrize(("column", "value"), [("timestamp", "yesterday"), ("data", "text"), ("data", None),
                                               ("timestamp", 1.5)])
def test_rows_of_other_types_are_left_out(tools, tmp_path, column, value):
    path = tools.write_bag(tmp_path / "bag", 0.5, plugin=SQLITE)
    count = len(read(path)[0])
    with database(path) as rows:
        rows.execute("CREATE TABLE loose AS SELECT * FROM messages")
        rows.execute(f"UPDATE loose SET {column} = ? WHERE id = 20", [value])
        if value is None:
            rows.execute("UPDATE loose SET topic_id = 77 WHERE id = 21")  # of no topic
            count -= 1
        rows.execute("DROP TABLE messages")
        rows.execute("ALTER TABLE loose RENAME TO messages")
    messages, _, notes = read(path)
    assert len(messages) == count - 1
    assert any("1 messages have no whole number as time" in note for note in notes), notes


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS id, 1 AS topic_id, i AS " \
          "timestamp, zeroblob(9) AS data FROM n"


def test_a_view_is_refused(tools, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 0.2, plugin=SQLITE)
    with database(path) as rows:
        rows.execute("DROP TABLE messages")
        rows.execute(f"CREATE VIEW Messages AS {ENDLESS}")
    with pytest.raises(BagError, match=r"\.db3: not readable: 'Messages' is a view: must be a table"), Bag(path):
        pass


def test_a_computed_column_is_refused(tools, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 0.2, plugin=SQLITE)
    with database(path) as rows:
        rows.execute("DROP TABLE messages")
        rows.execute("CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id, timestamp, data AS (zeroblob(1e9)))")
    with pytest.raises(BagError, match=r"column 'data' of table 'messages' is computed"), Bag(path):
        pass


@pytest.mark.parametrize("name", ["a.mcap", "a.db3", "a.mcap.zstd"])
def test_a_pipe_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(BagError, match=r"a pipe or a device: must be a regular file"), Bag(tmp_path):
        pass


def test_metadata_that_is_a_pipe_or_nonsense_is_left_aside(tools, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 0.2)
    texts = (b"\xff\xfe", b"[" * 10_000, b"rosbag2_bagfile_information: [1]", b"a: 2001-99-99", b"x: " + b"y" * 2**23)
    for text in texts:
        (path / "metadata.yaml").write_bytes(text)
        messages, _, notes = read(path)
        assert len(messages) > 20 and "metadata.yaml cannot be read" in notes[0]
    (path / "metadata.yaml").unlink()
    os.mkfifo(path / "metadata.yaml")
    assert len(read(path)[0]) > 20


def test_a_file_that_decompresses_beyond_the_cap_is_refused(tmp_path):
    compressor = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(2**22)
    bomb = b"".join(compressor.compress(zeros) for _ in range(80)) + compressor.flush()
    assert len(bomb) < 2**18
    (tmp_path / "a.mcap.zstd").write_bytes(bomb)
    with pytest.raises(BagError, match=r"MAX_DECOMPRESSED_BYTES.*zstd -d"), Bag(tmp_path / "a.mcap.zstd"):
        pass


def mcap_file(tmp_path, encoding="cdr", schema="ros2msg", definition=b"string data", kind="std_msgs/msg/String",
              data=b"\x00\x01\x00\x00\x03\x00\x00\x00hi\x00", **options):
    from mcap.writer import Writer

    stream = io.BytesIO()
    writer = Writer(stream, **options)
    writer.start()
    number = writer.register_schema(kind, schema, definition)
    channel = writer.register_channel("/words", encoding, number)
    for i in range(5):
        writer.add_message(channel, i, data, i)
    writer.finish()
    path = tmp_path / "made.mcap"
    path.write_bytes(stream.getvalue())
    return path


@pytest.mark.parametrize(("opcode", "length"), [(0x06, 2**63 + 5), (0x05, 2**64 - 1), (0x03, 2**40), (0x20, 2**63)])
def test_lengths_beyond_the_file_end_it(tmp_path, opcode, length):
    from mcap.writer import CompressionType

    path = mcap_file(tmp_path, use_chunking=False, compression=CompressionType.NONE)
    data = bytearray(path.read_bytes())
    end = data.index(b"\x0f\x04\x00\x00\x00\x00\x00\x00\x00")  # DataEnd
    path.write_bytes(data[:end] + struct.pack("<BQ", opcode, length) + b"rest")
    _, decoded, notes = read(path)
    assert [d.data for d in decoded] == ["hi"] * 5
    assert any("cut off" in note for note in notes), notes


def test_a_chunk_that_names_a_size_beyond_the_cap_is_left_out(tmp_path):
    from mcap.writer import CompressionType

    path = mcap_file(tmp_path, compression=CompressionType.ZSTD)
    data = bytearray(path.read_bytes())
    chunk = data.index(b"\x04\x00\x00\x00zstd")
    struct.pack_into("<Q", data, chunk - 12, 2**40)  # its uncompressed size, before the CRC
    path.write_bytes(data)
    messages, _, notes = read(path)
    assert messages == [] and any("MAX_CHUNK_BYTES" in note for note in notes)


IMAGE = "sensor_msgs/msg/Image"


@pytest.mark.parametrize(("definition", "lacks"), [
    (b"string data", "sensor_msgs/msg/Image has no field 'header'"),
    (b"std_msgs/Header header\nuint32 height\nfloat64 width\nstring encoding\nuint8 is_bigendian\nuint32 step\n"
     b"uint8[] data\n" + b"=" * 80 + b"\nMSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\nstring frame_id\n"
     + b"=" * 80 + b"\nMSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec",
     "field 'width' of sensor_msgs/msg/Image is of another type"),
    (b"std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\n"
     b"uint8[] data\n" + b"=" * 80 + b"\nMSG: std_msgs/Header\nstring frame_id",
     "std_msgs/msg/Header has no field 'stamp'"),
])
def test_a_redefined_image_costs_the_topic(tmp_path, definition, lacks):
    path = mcap_file(tmp_path, kind=IMAGE, definition=definition)
    messages, decoded, notes = read(path)
    assert len(messages) == 5 and decoded == [None] * 5
    assert any(lacks in note for note in notes), notes


def test_a_definition_with_an_extra_field_is_read(tmp_path):
    data = b"\x00\x01\x00\x00\x03\x00\x00\x00hi\x00\x07"
    path = mcap_file(tmp_path, definition=b"string data\nuint8 more", data=data)
    assert [d.data for d in read(path)[1]] == ["hi"] * 5


@pytest.mark.parametrize(("encoding", "schema", "converter"), [
    ("ros1", "ros1msg", "ROS 1.*rosbags-convert --src"), ("protobuf", "protobuf", "protobuf.*mcap-ros2-support"),
    ("json", "jsonschema", "json, for which no converter is known"),
])
def test_another_encoding_is_named_with_its_converter(tmp_path, encoding, schema, converter):
    path = mcap_file(tmp_path, encoding, schema)
    with pytest.raises(BagError, match=rf"1 topics are not encoded as ROS 2 \(cdr\) but as {converter}"), Bag(path):
        pass


def png(width, height):
    """A PNG of this size with hardly any pixels in it."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("side", "named"), [(12_000, "12000 x 12000 pixels by its header"), (25_000, "exceeds limit")])
def test_a_png_beyond_the_pixel_cap_is_refused_by_its_header(side, named):
    message = SimpleNamespace(format="png", data=np.frombuffer(png(side, side), np.uint8))
    with pytest.raises(ObservationError, match=rf"{named}.*MAX_IMAGE_PIXELS"):
        to_rgb(message)
