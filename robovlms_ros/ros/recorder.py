"""Record topics into a rosbag2 (MCAP): serialized messages go to the file as they arrive,
undecoded.

Messages are stamped with the node's clock, so that a run in simulated time replays in simulated
time. Topics that are not there yet are subscribed as they appear, as `ros2 bag record` does.

A topic that cannot be recorded is left out with the reason. A disk that runs full ends the
recording while there is room to close the bag. Messages that are lost on the way are counted by the
publisher's sequence numbers.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer

from robovlms_ros.core.text_safety import printable
from robovlms_ros.evaluation.bags.types import typestore

MIN_FREE_BYTES = 64 * 2**20
"""Free space that a recording leaves on its disk: enough to close the bag."""
LOSS_SHARE = 0.01
"""Part of a topic's messages that may be lost without a warning."""

FOREVER = QosTime(9223372036, 854775807)


@dataclass
class LossCount:
    """Messages of one publisher that were lost, by the gaps in its sequence numbers."""

    received: int = 0
    lost: int = 0
    last: int | None = None
    several: bool = False

    def add(self, number: int | None) -> None:
        """Count a message. A number that goes back is that of a publisher that was restarted."""
        self.received += 1
        if number is not None and self.last is not None and number > self.last + 1:
            self.lost += number - self.last - 1
        self.last = number

    @property
    def share(self) -> float:
        """Lost messages as a part of all; 0 where several publishers make the numbers
        meaningless."""
        return 0.0 if self.several or not self.lost else self.lost / (self.lost + self.received)


class BagRecorder:
    """Writes the topics named to `path` (a new folder) until `close`.

    topics: absolute names. Call `discover` now and then: it subscribes what has appeared since.
    refused: the reason for each topic that cannot be recorded. failure: the reason why nothing is
        written any more.
    free_bytes: the free space at a path.
    """

    def __init__(self, node: Node, path: Path, topics: tuple[str, ...],
                 free_bytes: Callable[[Path], int] | None = None) -> None:
        self._node = node
        self._path = path
        self._free_bytes = free_bytes or free_space
        self.refused: dict[str, str] = {}
        self.failure: str | None = None
        self.losses: dict[str, LossCount] = {}
        self._wanted = set(topics)
        self._store = typestore()
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._subscriptions: dict[str, object] = {}
        self._closed = False
        self.counts: dict[str, int] = {}

    def discover(self) -> None:
        """Subscribe every wanted topic that has a publisher by now."""
        for topic in sorted(self._wanted - self.refused.keys()):
            offers = self._node.get_publishers_info_by_topic(topic)
            if not offers:
                continue
            types = list(dict.fromkeys(offer.topic_type for offer in offers))
            if len(types) > 1:
                self._refuse(topic, f"it is published with several types: {', '.join(types)}. Stop all but one.")
            elif topic not in self._subscriptions:
                qos = _matching([offer.qos_profile for offer in offers])
                try:
                    self._subscribe(topic, types[0], qos)
                # rosbags, the import and rclpy raise a kind each; the others go on
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}"
                    self._refuse(topic, f"its type {types[0]} cannot be recorded here ({reason})."
                                        " Install its message package, or record this topic with `ros2 bag record`.")
            if topic in self.losses and len(offers) > 1:
                self.losses[topic].several = True

    def _refuse(self, topic: str, reason: str) -> None:
        self.refused[topic] = reason
        self._node.get_logger().error(f"{topic} is not recorded: {printable(reason, 500)}")

    def _subscribe(self, topic: str, type_name: str, qos: QoSProfile) -> None:
        kind = message_class(type_name)
        connection = self._writer.add_connection(topic, type_name, typestore=self._store,
                                                 offered_qos_profiles=[_as_offered(qos)])
        self.counts[topic] = 0
        losses = self.losses[topic] = LossCount()

        def write(serialized: bytes, info: dict[str, Any]) -> None:
            if self._closed or self.failure is not None:
                return
            losses.add(info["publication_sequence_number"])
            if self._has_room():
                self._write(connection, serialized)
                self.counts[topic] += 1

        self._subscriptions[topic] = self._node.create_subscription(kind, topic, write, qos, raw=True)

    def _has_room(self) -> bool:
        free = self._free_bytes(self._path)
        if free < MIN_FREE_BYTES:
            self.failure = (f"{self._path}: the disk is full: {free // 2**20} MiB are free, "
                            f"{MIN_FREE_BYTES // 2**20} MiB are kept to close the bag. The recording ended there.")
        return self.failure is None

    def _write(self, connection: Connection, serialized: bytes) -> None:
        try:
            self._writer.write(connection, self._node.get_clock().now().nanoseconds, serialized)
        except OSError as error:
            self.failure = f"{self._path} cannot be written: {error}. The recording ended there."

    def loss_warnings(self) -> dict[str, str]:
        """A warning for each topic of which more than LOSS_SHARE was lost."""
        return {
            topic: f"{topic}: {count.lost} of {count.lost + count.received} messages ({count.share:.0%}) were lost on "
                   "the way. Raw images do not fit the middleware's shared memory: set FASTRTPS_DEFAULT_PROFILES_FILE "
                   "(Kilted: FASTDDS_DEFAULT_PROFILES_FILE) to this package's config/fastdds.xml for the publisher and "
                   "for the recording, let the driver publish reliably, or record the compressed transport."
            for topic, count in self.losses.items() if count.share > LOSS_SHARE
        }

    def close(self) -> None:
        """Finish the file. Topics that never had a publisher are absent."""
        if not self._closed:
            self._closed = True
            try:
                self._writer.close()
            except OSError as error:
                self.failure = f"{self.failure or self._path} The bag could not be closed: {error}. Free some space."


def free_space(path: Path) -> int:
    """Bytes that are free on the disk of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def message_class(type_name: str) -> type:
    """The Python class of `package/msg/Name`."""
    package, kind, name = type_name.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), name)


def _matching(offered: list[QoSProfile]) -> QoSProfile:
    """The strictest profile that every publisher satisfies, deep enough that a slow disk loses
    nothing."""
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
