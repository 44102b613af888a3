"""A recording goes on beside topics that it cannot take, ends before the disk is full with a bag that reads, and counts
the messages that were lost on the way.
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


def test_a_type_that_rosbags_does_not_know_is_left_out(recorded, tmp_path, monkeypatch):
    from rosbags.typesys import Stores, get_typestore
    from std_msgs.msg import String

    import robovlms_ros.ros.recorder as module

    node, make, spin = recorded
    monkeypatch.setattr(module, "typestore", lambda: get_typestore(Stores.EMPTY))
    recorder = make(("/recording_test/words",))
    publisher = node.create_publisher(String, "words", 10)
    publish_until(node, [publisher], recorder, spin, lambda: recorder.refused, "the refusal")
    assert "std_msgs/msg/String cannot be recorded here" in recorder.refused["/recording_test/words"]
    recorder.close()
    assert messages_in(tmp_path / "bag") == []


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
