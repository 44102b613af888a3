"""Names of the nodes behind topics and actions, and the goals that other clients have on an action
server."""

from collections import deque
from collections.abc import Iterable

from action_msgs.msg import GoalStatus, GoalStatusArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo
from unique_identifier_msgs.msg import UUID

STATUS_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
UNDER_WAY = (GoalStatus.STATUS_ACCEPTED, GoalStatus.STATUS_EXECUTING, GoalStatus.STATUS_CANCELING)
OWN_GOALS = 256


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
            GoalStatusArray, f"{action}/_action/status", self._on_status, STATUS_QOS
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
