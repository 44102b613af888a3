"""A recording goes on beside topics that it cannot take, ends before the disk is full with a bag
that reads, counts the messages that were lost on the way and the images that a camera left out,
writes its own markers once, and samples the state of trajectory controllers, whose type it defines
as the installed package does.
"""

import pytest

pytestmark = pytest.mark.ros


@pytest.fixture
def recorded(ros, tmp_path):
    """A node that records and publishes, not spun in a thread: (node, make(topics, **options), spin(condition))."""
    from rclpy.executors import SingleThreadedExecutor
    from ros_graph import wait_for

    from robovlms_ros.ros.checked_node import CheckedNode
    from robovlms_ros.ros.recorder import BagRecorder

    node = CheckedNode("recording_test", namespace="recording_test")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    recorders = []

    def make(topics, **options):
        recorders.append(BagRecorder(node, tmp_path / "bag", topics, **options))
        return recorders[-1]

    def spin(condition, what):
        def step():
            executor.spin_once(timeout_sec=0.05)
            return condition()

        wait_for(step, what)

    yield node, make, spin
    for recorder in recorders:
        recorder.close()
    executor.shutdown()
    node.destroy_node()


def messages_in(path):
    from rosbags.rosbag2 import Reader

    with Reader(path) as reader:
        return [connection.topic for connection, _, _ in reader.messages()]


def publish_until(node, publishers, recorder, spin, condition, what):
    def step():
        recorder.discover()
        for publisher in publishers:
            publisher.publish(publisher.msg_type(data="words"))
        return condition()

    spin(step, what)


def test_a_type_that_rosbags_does_not_know_is_recorded_as_installed(
        recorded, tmp_path, monkeypatch):
    from rosbags.typesys import Stores, get_typestore
    from std_msgs.msg import String

    import robovlms_ros.ros.recorder as module
    from robovlms_ros.evaluation.bags.reader import Bag

    node, make, spin = recorded
    monkeypatch.setattr(module, "typestore", lambda: get_typestore(Stores.EMPTY))
    recorder = make(("/recording_test/words",))
    publisher = node.create_publisher(String, "words", 10)
    publish_until(node, [publisher], recorder, spin,
                  lambda: recorder.counts.get("/recording_test/words"), "a message")
    recorder.close()
    with Bag(tmp_path / "bag") as bag:
        assert {bag.decode(raw).data for raw in bag.messages()} == {"words"}
        assert bag.embedded == {"std_msgs/msg/String"}


def test_a_type_without_a_definition_is_left_out(recorded, tmp_path, monkeypatch):
    from rosbags.typesys import Stores, get_typestore
    from std_msgs.msg import String

    import robovlms_ros.ros.recorder as module

    def fail(*_):
        raise FileNotFoundError("no definition of std_msgs/msg/String")

    node, make, spin = recorded
    monkeypatch.setattr(module, "typestore", lambda: get_typestore(Stores.EMPTY))
    monkeypatch.setattr(module, "register_installed", fail)
    recorder = make(("/recording_test/words",))
    publisher = node.create_publisher(String, "words", 10)
    publish_until(node, [publisher], recorder, spin, lambda: recorder.refused, "the refusal")
    assert "std_msgs/msg/String cannot be recorded here" in recorder.refused["/recording_test/words"]
    assert "Install std_msgs, its message package" in recorder.refused["/recording_test/words"]
    recorder.close()
    assert messages_in(tmp_path / "bag") == []


def test_definitions_of_installed_types_are_those_of_ros(ros):
    from rosbags.typesys import Stores, get_typestore

    from robovlms_ros.ros.message_definitions import register_installed

    store = get_typestore(Stores.EMPTY)
    kind = "trajectory_msgs/msg/JointTrajectory"
    register_installed(store, kind)
    assert store.hash_rihs01(kind) == get_typestore(Stores.ROS2_JAZZY).hash_rihs01(kind)


def test_a_controllers_state_is_sampled(recorded, tmp_path, monkeypatch):
    from std_msgs.msg import Int32

    import robovlms_ros.ros.recorder as module
    from robovlms_ros.evaluation.bags.reader import Bag

    node, make, spin = recorded
    monkeypatch.setattr(module, "SAMPLED", ("std_msgs/msg/Int32",))
    monkeypatch.setattr(module, "SAMPLE_PERIOD", 0.2)
    recorder = make(("/recording_test/state",))
    publisher = node.create_publisher(Int32, "state", 10)
    sent = []

    def step():
        recorder.discover()
        for _ in range(5):
            sent.append(len(sent))
            publisher.publish(Int32(data=sent[-1]))
        return recorder.counts.get("/recording_test/state", 0) >= 3

    spin(step, "samples")
    assert recorder.state_of("/recording_test/state") == "" and recorder.loss_warnings() == {}
    recorder.close()
    with Bag(tmp_path / "bag") as bag:
        numbers = [bag.decode(raw).data for raw in bag.messages()]
    assert numbers == sorted(set(numbers)) and len(numbers) < len(sent) / 2


def test_a_controllers_state_over_dds(recorded, tmp_path):
    messages = pytest.importorskip("control_msgs.msg", reason="control_msgs is not installed")
    from trajectory_msgs.msg import JointTrajectoryPoint

    from robovlms_ros.evaluation.bags.reader import Bag
    from robovlms_ros.evaluation.replay.tracks import reference_of

    kind = messages.JointTrajectoryControllerState
    node, make, spin = recorded
    topic = "/recording_test/arm/controller_state"
    recorder = make((topic,))
    publisher = node.create_publisher(kind, topic, 10)
    reference = JointTrajectoryPoint(positions=[0.25, -1.5])

    def step():
        recorder.discover()
        publisher.publish(kind(joint_names=["a", "b"], reference=reference))
        return recorder.counts.get(topic, 0) >= 3

    spin(step, "states")
    recorder.close()
    with Bag(tmp_path / "bag") as bag:
        assert all(list(reference_of(bag.decode(raw))) == [0.25, -1.5] for raw in bag.messages())
        assert bag.notes == []


@pytest.fixture
def stranger(ros):
    """A node of another participant: one participant has one type on a topic."""
    context = ros.Context()
    ros.init(context=context)
    node = ros.create_node("stranger", context=context, namespace="recording_test")
    yield node
    node.destroy_node()
    ros.try_shutdown(context=context)


def test_another_type_on_a_recorded_topic_does_not_end_the_others(recorded, stranger, tmp_path):
    from std_msgs.msg import Bool, String

    node, make, spin = recorded
    recorder = make(("/recording_test/words", "/recording_test/mixed"))
    words = node.create_publisher(String, "words", 10)
    node.create_publisher(String, "mixed", 10)
    stranger.create_publisher(Bool, "mixed", 10)
    publish_until(node, [words], recorder, spin,
                  lambda: recorder.refused and recorder.counts.get("/recording_test/words", 0) > 3, "messages")
    assert "std_msgs/msg/Bool" in recorder.refused["/recording_test/mixed"]
    recorder.close()
    assert messages_in(tmp_path / "bag") == ["/recording_test/words"] * recorder.counts["/recording_test/words"]


def test_a_full_disk_ends_the_recording_with_a_bag_that_reads(recorded, tmp_path):
    from std_msgs.msg import String

    node, make, spin = recorded
    free = iter([10**12] * 3)
    recorder = make(("/recording_test/words",), free_bytes=lambda path: next(free, 2**20))
    publisher = node.create_publisher(String, "words", 10)
    publish_until(node, [publisher], recorder, spin, lambda: recorder.failure, "the failure")
    assert "the disk is full: 1 MiB are free" in recorder.failure and "bag" in recorder.failure
    recorder.close()
    assert messages_in(tmp_path / "bag") == ["/recording_test/words"] * 3


def test_a_disk_that_refuses_a_write(recorded, monkeypatch):
    from std_msgs.msg import String

    node, make, spin = recorded
    recorder = make(("/recording_test/words",))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder._writer, "write", fail)
    publisher = node.create_publisher(String, "words", 10)
    publish_until(node, [publisher], recorder, spin, lambda: recorder.failure, "the failure")
    assert "No space left on device" in recorder.failure


def test_lost_messages_are_counted_by_sequence_numbers():
    from robovlms_ros.ros.recorder import LossCount

    count = LossCount()
    for number in (5, 6, 10, 11, 1, 2):  # 7 to 9 are lost; then the publisher is restarted
        count.add(number)
    assert (count.received, count.lost) == (6, 3)
    assert count.share == pytest.approx(3 / 9)
    count.several = True
    assert count.share == 0.0


def test_a_loss_is_said_with_the_remedy(recorded):
    from std_msgs.msg import String

    node, make, spin = recorded
    recorder = make(("/recording_test/words",))
    publisher = node.create_publisher(String, "words", 10)
    publish_until(node, [publisher], recorder, spin,
                  lambda: recorder.counts.get("/recording_test/words", 0) > 3, "messages")
    losses = recorder.losses["/recording_test/words"]
    assert losses.last is not None and losses.lost == 0 and not recorder.loss_warnings()
    losses.add(losses.last + 101)
    warning = recorder.loss_warnings()["/recording_test/words"]
    assert "100 of" in warning and "config/fastdds.xml" in warning and "reliably" in warning


MS = 1_000_000


def images(camera, stamps_ms):
    for stamp in stamps_ms:
        camera.add(stamp * MS, stamp * MS)


def test_images_that_the_stamps_lack():
    from robovlms_ros.ros.recorder import CameraLoss

    camera = CameraLoss(0)
    images(camera, range(1000, 2000, 33))
    assert camera.missing == 0 and camera.period_ns == 33 * MS and not camera.warning(0, 2000 * MS)
    # two are missing; then mere jitter
    images(camera, [1990 + 3 * 33, 1990 + 4 * 33 + 12, 1990 + 5 * 33 - 12])
    assert camera.missing == 2
    text = camera.warning(0, 2200 * MS)
    assert "images lost so far: 2" in text and "the driver did not publish" in text
    assert not camera.warning(0, 2200 * MS)
    text = camera.warning(3, 9000 * MS)
    assert text.startswith("no image for 6.") and "30.3 Hz" in text and camera.stopped
    images(camera, [9000])
    assert not camera.stopped
    assert "config/fastdds.xml" in camera.warning(3, 9000 * MS)
    lost = camera.missing
    images(camera, range(100, 1000, 33))  # another clock
    assert camera.missing == lost


def test_a_camera_that_never_begins():
    from robovlms_ros.ros.recorder import CameraLoss

    camera = CameraLoss(0)
    assert not camera.warning(0, 2000 * MS)
    assert camera.warning(0, 4000 * MS) == "no image for 4.0 s. Is its driver running?"


def test_the_stamp_of_serialized_images(ros):
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import CompressedImage, Image

    from robovlms_ros.ros.recorder import header_stamp_ns

    for kind in (Image, CompressedImage):
        message = kind()
        message.header.stamp.sec = 1795975313
        message.header.stamp.nanosec = 88852517
        assert header_stamp_ns(serialize_message(message)) == 1795975313088852517


def test_own_markers_are_written_once_beside_those_of_others(recorded, tmp_path):
    from std_msgs.msg import String

    node, make, spin = recorded
    topic = "/recording_test/episode"
    recorder = make((topic,))
    own = node.create_publisher(String, "episode", 10)
    recorder.publish(own, String(data="early"), "std_msgs/msg/String")  # nothing is subscribed yet
    assert recorder.counts == {topic: 1}
    recorder.discover()
    other = node.create_publisher(String, "episode", 10)
    spin(lambda: own.get_subscription_count() and other.get_subscription_count(), "subscriptions")
    for number in range(50):
        recorder.publish(own, String(data=f"{number}"), "std_msgs/msg/String")
    other.publish(String(data="success"))
    spin(lambda: recorder.counts[topic] == 52 and not recorder._published, "the others' marker")
    recorder.close()
    from robovlms_ros.evaluation.bags.reader import Bag

    with Bag(tmp_path / "bag") as bag:
        texts = [bag.decode(raw).data for raw in bag.messages()]
    assert texts == ["early", *map(str, range(50)), "success"]


def test_goals_of_a_gripper_action_are_among_the_topics():
    from robovlms_ros.cli.eval_setup import read_parameters
    from robovlms_ros.ros.recording import topics_of

    found = {robot: topics_of(read_parameters(None, {"robot": robot}), "a")
             for robot in ("ur5e", "panda")}
    assert "/a/vla_node/gripper_command" in found["ur5e"]
    assert "/a/vla_node/gripper_command" not in found["panda"]


def test_states_of_trajectory_controllers_are_among_the_topics():
    from robovlms_ros.cli.eval_setup import read_parameters
    from robovlms_ros.control.controller_types import (
        FollowJointTrajectory,
        JointTrajectory,
        ServoTwist,
        state_topic,
    )
    from robovlms_ros.ros.recording import topics_of

    found = topics_of(read_parameters(None, {"robot": "panda"}), "a")
    assert "/a/panda_arm_controller/controller_state" in found
    assert "/a/gripper_controller/controller_state" in found
    by_action = FollowJointTrajectory("follow_joint_trajectory", "arm/follow_joint_trajectory")
    assert state_topic(by_action) == "arm/controller_state"
    assert state_topic(FollowJointTrajectory("follow_joint_trajectory", "moves/arm", node="left")) \
        == "left/controller_state"
    assert state_topic(JointTrajectory("joint_trajectory", "commands")) is None
    named = JointTrajectory("joint_trajectory", "commands", state_topic="state")
    assert state_topic(named) == "state"
    assert state_topic(ServoTwist("servo_twist")) is None
