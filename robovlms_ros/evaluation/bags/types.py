"""rosbag2 without ROS: the message types of standard bags plus this package's own, read from `msg/`."""

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from robovlms_ros.core.resources import PACKAGE, share_directory


def typestore(distribution: Stores = Stores.ROS2_JAZZY) -> Typestore:
    """The message types of a ROS distribution with ActionChunk and PolicyStatus registered."""
    store = get_typestore(distribution)
    for path in sorted((share_directory() / "msg").glob("*.msg")):
        store.register(get_types_from_msg(path.read_text(encoding="utf-8"), f"{PACKAGE}/msg/{path.stem}"))
    return store
