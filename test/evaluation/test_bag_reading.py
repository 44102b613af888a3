"""Reading rosbags without ROS.

- rosbags' and the mcap libraries' files read alike: MCAP and SQLite, plain, lz4, zstd, file- and message-compressed;
- a cut-off file gives what is there, in order, and says so; so does a folder without metadata.yaml;
- an empty bag is no error; a file that is no bag is one, in words;
- messages come by time; a clock that goes back is reported as a jump, a file written topic by topic is not one;
- definitions embedded in the bag win over those that are built in.
"""

import io

import pytest
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from robovlms_ros.evaluation.bags.reader import Bag, BagError, ClockJump, RawMessage

MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3
KINDS = [(MCAP, None), (MCAP, CompressionMode.STORAGE), (MCAP, CompressionMode.FILE), (MCAP, CompressionMode.MESSAGE),
         (SQLITE, None), (SQLITE, CompressionMode.FILE), (SQLITE, CompressionMode.MESSAGE)]


def read(path, topics=None):
    with Bag(path) as bag:
        messages = list(bag.messages(topics))
        decoded = [bag.decode(m) for m in messages if isinstance(m, RawMessage)]
        return messages, decoded, bag.notes


@pytest.mark.parametrize(("plugin", "compression"), KINDS)
def test_every_kind_of_storage_reads_alike(tools, tmp_path, plugin, compression):
    path = tools.write_bag(tmp_path / "bag", 1.0, plugin=plugin, compression=compression)
    messages, decoded, notes = read(path)
    assert notes == []
    assert len(messages) == 1 + 100 + 2 * 20 + 5 and None not in decoded
    assert [m.log_ns for m in messages] == sorted(m.log_ns for m in messages)
    states = [d for m, d in zip(messages, decoded, strict=True) if m.topic == "/joint_states"]
    assert states[14].position[:7].tolist() == tools.motion(tools.BEGIN_NS + 140_000_000).tolist()


@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
def test_a_single_file_reads_like_its_folder(tools, tmp_path, suffix):
    path = tools.write_bag(tmp_path / "bag", 0.5, plugin=MCAP if suffix == ".mcap" else SQLITE)
    file = next(path.glob(f"*{suffix}"))
    assert [m.data for m in read(file)[0]] == [m.data for m in read(path)[0]]


@pytest.mark.parametrize("compression", ["NONE", "LZ4", "ZSTD"])
@pytest.mark.parametrize("chunked", [True, False])
def test_files_of_the_mcap_libraries(tools, tmp_path, compression, chunked):
    from mcap import writer as writer_module
    from mcap_ros2.writer import Writer as Ros2Writer

    stream = io.BytesIO()
    options = {"compression": writer_module.CompressionType[compression], "use_chunking": chunked, "chunk_size": 2000}
    try:
        writer = Ros2Writer(stream, **options)
    except TypeError:  # older releases know fewer options
        writer = Ros2Writer(stream)
    schema = writer.register_msgdef("my_robot/msg/Pair", "float64 left\nstring[] words")
    for i in range(100):
        writer.write_message("/pairs", schema, {"left": float(i), "words": ["a", str(i)]}, log_time=1000 + i,
                             publish_time=1000 + i, sequence=i)
    writer.finish()
    path = tmp_path / "theirs.mcap"
    path.write_bytes(stream.getvalue())
    messages, decoded, notes = read(path)
    assert notes == []
    assert [m.log_ns for m in messages] == list(range(1000, 1100))
    assert [(d.left, d.words) for d in decoded] == [(float(i), ["a", str(i)]) for i in range(100)]


# SQLite compresses whole files or messages only.
@pytest.mark.parametrize(("plugin", "compression"), [(MCAP, None), (MCAP, CompressionMode.STORAGE), (SQLITE, None)])
@pytest.mark.parametrize("share", [0.4, 0.97])
def test_a_cut_off_file_gives_what_is_there(tools, tmp_path, plugin, compression, share):
    whole = tools.write_bag(tmp_path / "bag", 8.0, plugin=plugin, compression=compression)
    file = next(p for p in whole.iterdir() if p.suffix in (".mcap", ".db3"))
    cut = tmp_path / f"cut{file.suffix}"
    data = file.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    messages, decoded, notes = read(cut)
    everything = read(whole)[0]
    assert 0.5 * share * len(everything) < len(messages) < len(everything)
    assert None not in decoded
    assert [m.data for m in messages] == [m.data for m in everything[: len(messages)]]
    assert any("cut off" in note or "damaged" in note for note in notes), notes


def test_a_folder_without_metadata(tools, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 0.5)
    (path / "metadata.yaml").unlink()
    messages, _, notes = read(path)
    assert len(messages) > 40
    assert "metadata.yaml is missing" in notes[0]


def test_a_split_bag_with_a_missing_part(tools, tmp_path):
    path = tools.write_bag(tmp_path / "bag", 0.5)
    metadata = path / "metadata.yaml"
    text = metadata.read_text()
    metadata.write_text(text.replace("- bag.mcap", "- bag.mcap\n  - bag_1.mcap", 1))
    messages, _, notes = read(path)
    assert len(messages) > 40
    assert any("bag_1.mcap is listed" in note for note in notes), notes


@pytest.mark.parametrize("plugin", [MCAP, SQLITE])
def test_an_empty_bag(tools, tmp_path, plugin):
    with tools.BagWriter(tmp_path / "bag", plugin):
        pass
    assert read(tmp_path / "bag") == ([], [], [])


def test_what_is_no_bag_is_refused_in_words(tmp_path):
    with pytest.raises(BagError, match="no such bag"), Bag(tmp_path / "nowhere"):
        pass
    (tmp_path / "text.mcap").write_text("hello, this is not a recording")
    with pytest.raises(BagError, match="does not begin as an MCAP file"), Bag(tmp_path / "text.mcap"):
        pass
    (tmp_path / "text.db3").write_text("hello, this is not a recording")
    with pytest.raises(BagError, match="not readable"), Bag(tmp_path / "text.db3"):
        pass
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match="holds no"), Bag(tmp_path / "empty"):
        pass
    (tmp_path / "a.bag").write_text("")
    with pytest.raises(BagError, match=r"\.mcap, \.db3"), Bag(tmp_path / "a.bag"):
        pass


@pytest.mark.parametrize("plugin", [MCAP, SQLITE])
def test_jitter_is_sorted_away(tools, tmp_path, plugin):
    times = [0, 40, 20, 60, 100, 80, 300, 120]
    with tools.BagWriter(tmp_path / "bag", plugin) as bag:
        for t in times:
            bag.joints(tools.BEGIN_NS + t * 1_000_000)
    messages, _, notes = read(tmp_path / "bag")
    assert [(m.log_ns - tools.BEGIN_NS) // 1_000_000 for m in messages] == sorted(times)
    assert notes == []


@pytest.mark.parametrize("plugin", [MCAP, SQLITE])
def test_a_clock_that_goes_back_is_a_jump(tools, tmp_path, plugin):
    with tools.BagWriter(tmp_path / "bag", plugin) as bag:
        for t in [*range(0, 5000, 100), *range(0, 3000, 100)]:
            bag.joints(tools.BEGIN_NS + t * 1_000_000)
    messages, *_ = read(tmp_path / "bag")
    kinds = [isinstance(m, ClockJump) for m in messages]
    assert kinds.count(True) == 1 and kinds.index(True) == 50
    assert messages[51].log_ns == tools.BEGIN_NS


@pytest.mark.parametrize("plugin", [MCAP, SQLITE])
def test_a_file_written_topic_by_topic_is_merged(tools, tmp_path, plugin):
    with tools.BagWriter(tmp_path / "bag", plugin) as bag:
        for topic in ("/a", "/b"):
            for t in range(0, 4000, 10):
                bag.joints(tools.BEGIN_NS + t * 1_000_000, topic=topic)
    messages, *_ = read(tmp_path / "bag")
    assert not any(isinstance(m, ClockJump) for m in messages)
    assert [m.log_ns for m in messages] == sorted(m.log_ns for m in messages) and len(messages) == 800


def test_bytes_that_do_not_fit_their_type_are_counted(tools, tmp_path):
    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.joints(tools.BEGIN_NS)
        bag.writer.write(bag.connections["/joint_states"], tools.BEGIN_NS + 1, b"\x00\x01\x00\x00\xff\xff\xff\xff")
    _, decoded, notes = read(tmp_path / "bag")
    assert decoded[1] is None
    assert notes == ["1 messages on /joint_states do not decode and are left out."]


def test_goals_of_a_gripper_action_are_the_gripper_commands():
    from types import SimpleNamespace

    from robovlms_ros.control.robot import load_robot
    from robovlms_ros.evaluation.bags import mapping
    from robovlms_ros.evaluation.replay.tracks import CommandTrack

    robot = load_robot("ur5e")
    bag = SimpleNamespace(topics={"/a/vla_node/gripper_command": mapping.JOINT_STATE,
                                  "/a/joint_states": mapping.JOINT_STATE})
    assert mapping._gripper(bag, robot, None, []) == "/a/vla_node/gripper_command"
    assert mapping._joint_states(bag, robot, []) == "/a/joint_states"
    commands = mapping._commands(bag, mapping.TopicsConfig(), robot, "/a/joint_states", [])
    assert commands == (None, None)
    track = CommandTrack("joint_trajectory", robot, 0)
    goal = SimpleNamespace(name=[robot.gripper.joint], position=[robot.gripper.closed_position])
    track.add_gripper(goal, 1000)
    assert track.gripper([2000]) == [0.0]


def test_a_person_and_a_shadow_are_neither_the_arm_nor_the_policy():
    """Topics whose names sort before the node's own are passed over."""
    from types import SimpleNamespace

    from robovlms_ros.evaluation.bags import mapping

    topics = {
        "/a/human/joint_states": mapping.JOINT_STATE,
        "/a/shadow/disagreement": mapping.JOINT_STATE,
        "/arm/joint_states": mapping.JOINT_STATE,
        "/a/shadow/chunk": mapping.CHUNK,
        "/vla_node/action_chunk": mapping.CHUNK,
        "/a/human/twist": "geometry_msgs/msg/TwistStamped",
    }
    bag = SimpleNamespace(topics=topics)
    assert mapping._of_type(bag, (mapping.JOINT_STATE,)) == ["/arm/joint_states"]
    assert mapping._first(bag, mapping.CHUNK) == "/vla_node/action_chunk"
    robot = SimpleNamespace(controller=None, gripper=None, joints=())
    assert mapping._joint_states(bag, robot, []) == "/arm/joint_states"
    commands = mapping._commands(bag, mapping.TopicsConfig(), robot, "/arm/joint_states", [])
    assert commands == (None, None)
