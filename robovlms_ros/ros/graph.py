"""Names of the nodes behind topics and actions, the goals that other clients have on an action
server, latched topics and the description on one."""

import threading
from collections import deque
from collections.abc import Iterable

from action_msgs.msg import GoalStatus, GoalStatusArray
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo
from std_msgs.msg import String
from unique_identifier_msgs.msg import UUID

from robovlms_ros.core.schema import ConfigError

LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
NEWEST_ONLY = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
)
UNDER_WAY = (GoalStatus.STATUS_ACCEPTED, GoalStatus.STATUS_EXECUTING, GoalStatus.STATUS_CANCELING)
OWN_GOALS = 256
DESCRIPTION_PATIENCE = 10.0  # s


def node_names(endpoints: Iterable[TopicEndpointInfo]) -> tuple[str, ...]:
    """The full names of the nodes behind endpoints, sorted; one entry per endpoint."""
    return tuple(sorted(f"{end.node_namespace.rstrip('/')}/{end.node_name}" for end in endpoints))


def other_publishers(node: Node, topic: str, own: int) -> tuple[str, ...]:
    """The nodes that publish on a topic beside `node`, which has `own` publishers there, 0 or 1."""
    if node.count_publishers(topic) <= own:
        return ()
    names = list(node_names(node.get_publishers_info_by_topic(topic)))
    name = node.get_fully_qualified_name()
    if own and name in names:
        names.remove(name)
    return tuple(names)


class ForeignGoals:
    """Watches an action server's status for goals of other clients.

    A client that is only present (for example move_group) is no fault; a goal of its that is under
    way is one.
    """

    def __init__(self, node: Node, action: str) -> None:
        self._node = node
        self._action = action
        self._own: deque[bytes] = deque(maxlen=OWN_GOALS)
        self._under_way: set[bytes] = set()
        self._status = node.create_subscription(
            GoalStatusArray, f"{action}/_action/status", self._on_status, LATCHED
        )

    def expect(self, goal: UUID) -> None:
        """Note a goal of this node's own before it is sent."""
        self._own.append(bytes(goal.uuid))

    def found(self) -> tuple[str, ...]:
        """A description of the other clients' goals that are under way; empty for none."""
        foreign = self._under_way.difference(self._own)
        return (f"another client of {self._action}",) if foreign else ()

    def _on_status(self, message: GoalStatusArray) -> None:
        self._under_way = {
            bytes(status.goal_info.goal_id.uuid) for status in message.status_list if status.status in UNDER_WAY
        }

    def close(self) -> None:
        """Destroy the subscription."""
        self._node.destroy_subscription(self._status)


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
        if not came.wait(DESCRIPTION_PATIENCE):
            raise ConfigError(f"no robot description came on {node.resolve_topic_name(topic)} within "
                              f"{DESCRIPTION_PATIENCE:.0f} s. Is robot_state_publisher running?")
    finally:
        node.destroy_subscription(subscription)
    return heard[0]
