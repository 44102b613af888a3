"""The image topics of a bag: the given ones, then those of the node's parameters, then by name."""

from types import SimpleNamespace

from robovlms_ros.control.robot import load_robot
from robovlms_ros.evaluation.bags.mapping import TopicsConfig, detect

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
PANDA = load_robot("panda")


def found(topics, given=None, **subscribed):
    bag = SimpleNamespace(path="bag", topics={"/joint_states": "sensor_msgs/msg/JointState", **topics})
    mapping, _ = detect(bag, TopicsConfig(cameras=given or {}), ("wrist",), PANDA, subscribed)
    return mapping.cameras["wrist"]


TWO = {"/wrist/debug/image_raw": IMAGE, "/arm1/hand_camera/color/image_raw": IMAGE}


def test_by_name_without_parameters():
    assert found(TWO) == "/wrist/debug/image_raw"


def test_the_nodes_topic_goes_before_the_name():
    for base in ("/arm1/hand_camera/color/image_raw", "hand_camera/color/image_raw"):
        assert found(TWO, wrist=base) == "/arm1/hand_camera/color/image_raw"


def test_an_absolute_topic_is_of_no_other_namespace():
    assert found(TWO, wrist="/hand_camera/color/image_raw") == "/wrist/debug/image_raw"


def test_the_compressed_images_of_the_nodes_topic():
    topics = {"/wrist/debug/image_raw": IMAGE, "/hand/image_raw/compressed": COMPRESSED}
    assert found(topics, wrist="hand/image_raw") == "/hand/image_raw/compressed"
    both = {**topics, "/hand/image_raw": IMAGE}
    assert found(both, wrist="hand/image_raw") == "/hand/image_raw"


def test_a_given_topic_goes_first():
    given = {"wrist": "/wrist/debug/image_raw"}
    assert found(TWO, given, wrist="hand_camera/color/image_raw") == "/wrist/debug/image_raw"
