"""Record topics into a rosbag2 (MCAP): serialized messages go to the file as they arrive,
undecoded.

Messages are stamped with the node's clock, so that a run in simulated time replays in simulated
time. Topics that are not there yet are subscribed as they appear, as `ros2 bag record` does.

A controller's state is sampled: its publisher sends one in every control cycle. A topic that cannot
be recorded is left out with the reason. A disk that runs full ends the
recording while there is room to close the bag. Messages that are lost on the way are counted by the
publisher's sequence numbers, images that a camera left out by their stamps.
"""

import importlib
import os
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rclpy.subscription import Subscription
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer

from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.evaluation.bags.mapping import CONTROLLER_STATE, IMAGES
from robovlms_ros.evaluation.bags.types import typestore
from robovlms_ros.ros.graph import NEWEST_ONLY
from robovlms_ros.ros.message_definitions import register_installed
from robovlms_ros.ros.spinning import QUIET_SUBSCRIPTION, PolledGroup, take_newest

MIN_FREE_BYTES = 64 * 2**20
"""Free space that a recording leaves on its disk: enough to close the bag."""
LOSS_SHARE = 0.01
"""Part of a topic's messages that may be lost without a warning."""

STEPS = 31
"""Steps between images of which a camera's period is the median; a fifth of them is enough."""
GAP = 1.6
"""Periods between two images from which on one is missing."""
SILENCE_NS = NANOSECONDS
"""Time without an image after which a camera has stopped; five periods of a slower one, and longer
for one that has not begun."""
REPEAT_NS = 5 * NANOSECONDS
"""Shortest time between two warnings of one camera."""
MIDDLEWARE = (
    "Raw images do not fit the middleware's shared memory: set FASTRTPS_DEFAULT_PROFILES_FILE "
    "(Kilted: FASTDDS_DEFAULT_PROFILES_FILE) to this package's config/fastdds.xml for the publisher "
    "and for the recording, let the driver publish reliably, or record the compressed transport."
)
DRIVER = (
    "The middleware lost none of them: the driver did not publish them. Lower the camera's "
    "resolution or rate, let the driver publish the compressed transport, fix the exposure time, or "
    "give the camera a USB controller of its own."
)

SAMPLED = (CONTROLLER_STATE,)
"""Types of which at most one message is recorded in each SAMPLE_PERIOD. A controller publishes up
to 1000 a second; a callback each would cost the images their time."""
SAMPLE_PERIOD = 0.01

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
    def usable(self) -> int:
        """Lost messages; 0 where several publishers make the numbers meaningless."""
        return 0 if self.several else self.lost

    @property
    def share(self) -> float:
        """Lost messages as a part of all."""
        return self.usable / (self.lost + self.received) if self.usable else 0.0


@dataclass
class CameraLoss:
    """Images that a camera left out, by the gaps between its stamps against its own period.

    received_ns: when the newest image came, at first when it was subscribed to. missing: images.
    gap_ns: the newest gap. stopped: no image came for a while.
    """

    received_ns: int
    missing: int = 0
    gap_ns: int = 0
    stopped: bool = False
    _steps: deque[int] = field(default_factory=lambda: deque(maxlen=STEPS))
    _stamp_ns: int = 0
    _reported: int = 0
    _reported_ns: int = 0

    @property
    def period_ns(self) -> int:
        """Median step between stamps; 0 before there are enough."""
        return int(median(self._steps)) if len(self._steps) > STEPS // 5 else 0

    def add(self, stamp_ns: int, received_ns: int) -> None:
        """Count an image. A stamp that does not advance is that of another clock."""
        step = stamp_ns - self._stamp_ns
        first = self._stamp_ns == 0
        period = self.period_ns
        self._stamp_ns = stamp_ns
        self.received_ns = received_ns
        self.stopped = False
        if first or step <= 0:
            return
        if period and step > GAP * period:
            self.missing += round(step / period) - 1
            self.gap_ns = step
        self._steps.append(step)

    def warning(self, lost: int, now_ns: int) -> str:
        """A text where the camera stopped, or has lost images since the last text; else empty.

        lost: images that the middleware lost.
        """
        period = self.period_ns
        rate = f"{NANOSECONDS / max(period, 1):.1f} Hz"
        silent = now_ns - self.received_ns
        allowed = max(SILENCE_NS, 5 * period) if period else 3 * SILENCE_NS
        if not self.stopped and silent > allowed:
            self.stopped = True
            before = f", after {rate}" if period else ""
            return f"no image for {silent / NANOSECONDS:.1f} s{before}. Is its driver running?"
        count = max(lost, self.missing)
        recent = 0 <= now_ns - self._reported_ns < REPEAT_NS
        if count <= self._reported or (self._reported and recent):
            return ""
        self._reported = count
        self._reported_ns = now_ns
        gap = f", newest gap {self.gap_ns / NANOSECONDS:.2f} s at {rate}" if self.gap_ns else ""
        return f"images lost so far: {count}{gap}. {MIDDLEWARE if lost else DRIVER}"


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
        self._connections: dict[str, Connection] = {}
        self._published: list[tuple[str, bytes]] = []
        self.cameras: dict[str, CameraLoss] = {}
        self._subscriptions: dict[str, object] = {}
        self._sampled: dict[str, Subscription] = {}
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
                    package = types[0].partition("/")[0]
                    self._refuse(topic, f"its type {types[0]} cannot be recorded here ({reason}). "
                                        f"Install {package}, its message package, or record this "
                                        "topic with `ros2 bag record`.")
            if topic in self.losses and len(offers) > 1:
                self.losses[topic].several = True

    def _refuse(self, topic: str, reason: str) -> None:
        self.refused[topic] = reason
        self._node.get_logger().error(f"{topic} is not recorded: {printable(reason, 500)}")

    def _subscribe(self, topic: str, type_name: str, qos: QoSProfile) -> None:
        kind = message_class(type_name)
        register_installed(self._store, type_name)
        self._connect(topic, type_name, qos)
        losses = self.losses[topic] = LossCount()
        if type_name in SAMPLED:
            self._subscribe_sampled(topic, kind)
            return
        if type_name in IMAGES:
            self.cameras[topic] = CameraLoss(self._now_ns())
        camera = self.cameras.get(topic)

        def write(serialized: bytes, info: dict[str, Any]) -> None:
            if self._closed or self.failure is not None:
                return
            losses.add(info["publication_sequence_number"])
            if camera is not None:
                camera.add(header_stamp_ns(serialized), self._now_ns())
            if (topic, serialized) in self._published:
                self._published.remove((topic, serialized))
            else:
                self._write(topic, serialized)

        self._subscriptions[topic] = self._node.create_subscription(kind, topic, write, qos, raw=True)

    def _subscribe_sampled(self, topic: str, kind: type) -> None:
        if not self._sampled:
            self._node.create_timer(SAMPLE_PERIOD, self._sample)
        subscription = self._node.create_subscription(
            kind, topic, lambda message: None, NEWEST_ONLY, raw=True, callback_group=PolledGroup(),
            event_callbacks=QUIET_SUBSCRIPTION)
        self._subscriptions[topic] = self._sampled[topic] = subscription

    def _sample(self) -> None:
        """Write the newest message of each sampled topic, where one has come since the last
        call."""
        if self._closed or self.failure is not None:
            return
        for topic, subscription in self._sampled.items():
            serialized = take_newest(subscription)
            if serialized is not None:
                self._write(topic, serialized)

    def _connect(self, topic: str, type_name: str, qos: QoSProfile) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, type_name, typestore=self._store, offered_qos_profiles=[_as_offered(qos)])
            self.counts[topic] = 0

    def publish(self, publisher: Publisher, message: Any, type_name: str) -> None:
        """Write a message at once and publish it; its copy from the network is not written."""
        serialized = serialize_message(message)
        self._connect(publisher.topic_name, type_name, QoSProfile(depth=10))
        self._write(publisher.topic_name, serialized)
        if publisher.topic_name in self._subscriptions:
            self._published.append((publisher.topic_name, serialized))
        publisher.publish(serialized)

    def _has_room(self) -> bool:
        free = self._free_bytes(self._path)
        if free < MIN_FREE_BYTES:
            self.failure = (f"{self._path}: the disk is full: {free // 2**20} MiB are free, "
                            f"{MIN_FREE_BYTES // 2**20} MiB are kept to close the bag. The recording ended there.")
        return self.failure is None

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _write(self, topic: str, serialized: bytes) -> None:
        if not self._has_room():
            return
        try:
            self._writer.write(self._connections[topic], self._now_ns(), serialized)
            self.counts[topic] += 1
        except OSError as error:
            self.failure = f"{self._path} cannot be written: {error}. The recording ended there."

    def camera_warnings(self) -> list[str]:
        """A text for each camera that stopped or has lost images since the last call."""
        now_ns = self._now_ns()
        found = ((topic, camera.warning(self.losses[topic].usable, now_ns))
                 for topic, camera in self.cameras.items())
        return [f"{topic}: {text}" for topic, text in found if text]

    def state_of(self, topic: str) -> str:
        """Everything unusual about a topic in a few words; empty where nothing is."""
        if topic in self.refused:
            return "not recorded"
        if topic not in self._subscriptions:
            return "no publisher" if topic not in self.counts else ""
        camera = self.cameras.get(topic)
        if camera is not None and camera.stopped:
            return "stopped"
        lost = max(self.losses[topic].usable, camera.missing if camera else 0)
        return f"{lost} lost" if lost else ""

    def loss_warnings(self) -> dict[str, str]:
        """A warning for each topic of which more than LOSS_SHARE was lost."""
        return {
            topic: f"{topic}: {count.lost} of {count.lost + count.received} messages "
                   f"({count.share:.0%}) were lost on the way. {MIDDLEWARE}"
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


def header_stamp_ns(serialized: bytes) -> int:
    """The stamp of a message that begins with a Header, from its CDR bytes."""
    order = "<" if serialized[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", serialized, 4)
    return int(seconds * NANOSECONDS + nanoseconds)


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
