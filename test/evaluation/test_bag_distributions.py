"""Bags of every distribution from Humble to Kilted, as their rosbag2 writes them.

- Humble: metadata version 5, SQLite with schema 3 and without message definitions; Iron: version 8, definitions and
  hashes; Jazzy and Kilted: version 9, quality of service in words; Foxy's version 4 besides;
- all read alike, the metadata's or the database's distribution decides on the types that are not embedded.
"""

import sqlite3

import pytest
import yaml
from rosbags.rosbag2 import StoragePlugin, Writer

from robovlms_ros.evaluation.bags.reader import Bag

QOS = """- history: 1
  depth: 10
  reliability: 1
  durability: 2
  deadline: {sec: 9223372036, nsec: 854775807}
  lifespan: {sec: 9223372036, nsec: 854775807}
  liveliness: 1
  liveliness_lease_duration: {sec: 9223372036, nsec: 854775807}
  avoid_ros_namespace_conventions: false
"""


def write(tools, path, version, plugin):
    """The usual short bag with the metadata version that this distribution has; 4 and 5 are made out of 8."""
    with tools.BagWriter(path, plugin) as bag:
        pass
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    bag = tools.BagWriter(path, plugin)
    bag.writer = Writer(path, version=max(version, 8), storage_plugin=plugin)
    with bag:
        bag.instruction("go", tools.BEGIN_NS)
        for tick in range(50):
            now = tools.BEGIN_NS + tick * 10_000_000
            bag.joints(now)
            if tick % 5 == 0:
                bag.image("/static/image_raw", now)
    return path


def make_older(path, version, distribution):
    """Take away what the metadata and the database of that time did not have."""
    file = path / "metadata.yaml"
    information = yaml.safe_load(file.read_text())["rosbag2_bagfile_information"]
    information["version"] = version
    for name in ("custom_data", "ros_distro", *(("files",) if version < 5 else ())):
        information.pop(name, None)
    for topic in information["topics_with_message_count"]:
        topic["topic_metadata"].pop("type_description_hash", None)
        topic["topic_metadata"]["offered_qos_profiles"] = QOS
    file.write_text(yaml.safe_dump({"rosbag2_bagfile_information": information}))
    for database in path.glob("*.db3"):
        with sqlite3.connect(database) as connection:
            connection.execute("DROP TABLE message_definitions")
            connection.execute("ALTER TABLE topics DROP COLUMN type_description_hash")
            if version < 5:
                connection.execute("DROP TABLE schema")
                connection.execute("DROP TABLE metadata")
            else:
                connection.execute("UPDATE schema SET schema_version = 3, ros_distro = ?", (distribution,))
        connection.close()


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3], ids=["mcap", "sqlite3"])
@pytest.mark.parametrize(("distribution", "version"), [("foxy", 4), ("humble", 5), ("iron", 8), ("jazzy", 9),
                                                       ("kilted", 9)])
def test_every_distribution_reads_alike(tools, tmp_path, distribution, version, plugin):
    path = write(tools, tmp_path / "bag", version, plugin)
    if version < 8:
        make_older(path, version, distribution)
    else:
        metadata = path / "metadata.yaml"
        metadata.write_text(metadata.read_text().replace("ros_distro: rosbags", f"ros_distro: {distribution}"))
    with Bag(path) as bag:
        assert bag.notes == []
        assert bag.topics == {"/instruction": "std_msgs/msg/String", "/joint_states": "sensor_msgs/msg/JointState",
                              "/static/image_raw": "sensor_msgs/msg/Image"}
        assert bag.counts == {"/instruction": 1, "/joint_states": 50, "/static/image_raw": 10}
        if version >= 8 or (version == 5 and plugin == StoragePlugin.SQLITE3):
            assert bag.distribution == distribution
        decoded = [(raw, bag.decode(raw)) for raw in bag.messages()]
        assert (bag.embedded == set()) == (version < 8 and plugin == StoragePlugin.SQLITE3)
    assert len(decoded) == 61 and all(message is not None for _, message in decoded)
    for raw, message in decoded:
        if raw.topic == "/joint_states":
            assert message.position[:7].tolist() == tools.motion(raw.log_ns).tolist()
        elif raw.topic == "/static/image_raw":
            assert (message.data.reshape(32, 32, 3) == tools.test_image(raw.topic, raw.log_ns)).all()
