"""The robot description that robot_state_publisher latches on a topic."""

import threading

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from std_msgs.msg import String

from robovlms_ros.core.schema import ConfigError
from robovlms_ros.ros.observation_subscriber import LATCHED

PATIENCE = 10.0


def wait_for_description(node: Node, topic: str) -> str:
    """The URDF on a latched topic. Raises ConfigError when none comes. The node must be spun by
    another thread."""
    heard: list[str] = []
    came = threading.Event()

    def take(message: String) -> None:
        heard.append(message.data)
        came.set()

    subscription = node.create_subscription(String, topic, take, LATCHED, callback_group=ReentrantCallbackGroup())
    try:
        if not came.wait(PATIENCE):
            raise ConfigError(f"no robot description came on {node.resolve_topic_name(topic)} within "
                              f"{PATIENCE:.0f} s. Is robot_state_publisher running?")
    finally:
        node.destroy_subscription(subscription)
    return heard[0]
