"""Record topics into a rosbag2 (MCAP): serialized messages go to the file as they arrive, undecoded.

Messages are stamped with the node's clock, so that a run in simulated time replays in simulated time. Topics that
are not there yet are subscribed as they appear, as `ros2 bag record` does.
"""

import importlib
from pathlib import Path

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer

from robovlms_ros.evaluation.bags.types import typestore

FOREVER = QosTime(9223372036, 854775807)


class Recorder:
    """Writes the topics named to `path` (a new folder) until `close`.

    topics: absolute names. Call `discover` now and then: it subscribes what has appeared since.
    """

    def __init__(self, node: Node, path: Path, topics: tuple[str, ...]) -> None:
        self._node = node
        self._wanted = set(topics)
        self._store = typestore()
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._subscriptions: dict[str, object] = {}
        self._closed = False
        self.counts: dict[str, int] = {}

    def discover(self) -> None:
        """Subscribe every wanted topic that has a publisher by now."""
        for topic in sorted(self._wanted - self._subscriptions.keys()):
            offers = self._node.get_publishers_info_by_topic(topic)
            if offers:
                self._subscribe(topic, offers[0].topic_type, _matching([offer.qos_profile for offer in offers]))

    def _subscribe(self, topic: str, type_name: str, qos: QoSProfile) -> None:
        connection = self._writer.add_connection(topic, type_name, typestore=self._store,
                                                 offered_qos_profiles=[_as_offered(qos)])
        self.counts[topic] = 0

        def write(serialized: bytes) -> None:
            if not self._closed:
                self._writer.write(connection, self._node.get_clock().now().nanoseconds, serialized)
                self.counts[topic] += 1

        kind = message_class(type_name)
        self._subscriptions[topic] = self._node.create_subscription(kind, topic, write, qos, raw=True)

    def close(self) -> None:
        """Finish the file. Topics that never had a publisher are simply absent."""
        if not self._closed:
            self._closed = True
            self._writer.close()


def message_class(type_name: str) -> type:
    """The Python class of `package/msg/Name`."""
    package, kind, name = type_name.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), name)


def _matching(offered: list[QoSProfile]) -> QoSProfile:
    """The strictest profile that every publisher satisfies, deep enough that a slow disk loses nothing."""
    reliable = all(profile.reliability == ReliabilityPolicy.RELIABLE for profile in offered)
    latched = all(profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for profile in offered)
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=100,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def _as_offered(qos: QoSProfile) -> Qos:
    return Qos(
        QosHistory.KEEP_LAST, qos.depth,
        QosReliability.RELIABLE if qos.reliability == ReliabilityPolicy.RELIABLE else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if qos.durability == DurabilityPolicy.TRANSIENT_LOCAL else QosDurability.VOLATILE,
        FOREVER, FOREVER, QosLiveliness.AUTOMATIC, FOREVER, False,
    )
