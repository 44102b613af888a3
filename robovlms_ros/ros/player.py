"""Play a rosbag2 into the ROS graph: serialized messages as recorded, with /clock, rate, loop,
pause and jump back.

What `ros2 bag play` does, where rosbag2 is not installed. The bag's own times pace the playing; a
ClockJump in the bag, a loop and `jump` make /clock go back, and whoever uses simulated time starts
afresh.
"""

import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rclpy
from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.evaluation.bags.reader import Bag, BagError, ClockJump, RawMessage
from robovlms_ros.ros.recorder import message_class

CLOCK_PERIOD_NS = NANOSECONDS // 100
LATCHED_NAMES = ("instruction", "robot_description", "tf_static", "configuration")


@dataclass(frozen=True)
class PlayOptions:
    """rate: bag seconds per second. clock: publish /clock. loop: again and again. delay: s before
    the first message.

    topics: only these; None plays all but `without`. start: s into the bag. remap: recorded name ->
        played name.
    """

    rate: float = 1.0
    clock: bool = True
    loop: bool = False
    delay: float = 1.0
    start: float = 0.0
    topics: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    remap: tuple[tuple[str, str], ...] = ()


class Player:
    """Publishes one bag. `run` returns when the bag ends; `pause`, `resume` and `jump` may be
    called from any thread.

    unpublished: topics whose message type is not installed, with the reason.
    """

    def __init__(self, node: Node, path: Path, options: PlayOptions | None = None) -> None:
        self._node = node
        self._path = path
        self._options = options or PlayOptions()
        self._publishers: dict[str, Publisher | None] = {}
        self._clock = node.create_publisher(Clock, "/clock", 10) if self._options.clock else None
        self._paused = False
        self._jump_to: float | None = None
        self._stopped = False
        self.unpublished: dict[str, str] = {}
        self.published = 0
        self.now_ns = 0

    def pause(self) -> None:
        """Let time stand still."""
        self._paused = True

    def resume(self) -> None:
        """Go on."""
        self._paused = False

    @property
    def paused(self) -> bool:
        """True while paused."""
        return self._paused

    def jump(self, seconds: float) -> None:
        """Go on from so many seconds into the bag, back or forth."""
        self._jump_to = seconds

    def stop(self) -> None:
        """Make `run` return."""
        self._stopped = True

    def run(self) -> int:
        """Play to the end (or for ever, with loop); returns how many messages were published.
        Raises BagError."""
        begin = self._options.start
        with Bag(self._path) as bag:
            topics = self._topics(bag)
            self._advertise(bag, topics)
            time.sleep(self._options.delay)
            while not self._stopped:
                jumped = self._play(bag, topics, begin)
                begin = jumped if jumped is not None else 0.0
                if jumped is None and not self._options.loop:
                    break
        return self.published

    def _topics(self, bag: Bag) -> set[str]:
        wanted = set(bag.topics) if self._options.topics is None else set(self._options.topics)
        wanted -= {*self._options.without, "/clock"}
        missing = wanted - set(bag.topics)
        if missing:
            have = ", ".join(sorted(bag.topics))
            raise BagError(f"{self._path}: no topic {', '.join(sorted(missing))}; it has: {have}.")
        return wanted

    def _advertise(self, bag: Bag, topics: set[str]) -> None:
        names = dict(self._options.remap)
        for topic in sorted(topics):
            try:
                kind = message_class(bag.topics[topic])
            except (ImportError, AttributeError, ValueError) as error:
                self.unpublished[topic] = f"{bag.topics[topic]}: {error}"
                self._publishers[topic] = None
                continue
            self._publishers[topic] = self._node.create_publisher(kind, names.get(topic, topic), _qos(topic))

    def _play(self, bag: Bag, topics: set[str], begin: float) -> float | None:
        """One pass from `begin` s into the bag; returns where to go on after a jump, None at the
        end."""
        origin = None
        pace = _Pace(self._options.rate)
        for message in bag.messages(topics):
            if isinstance(message, ClockJump):
                pace.restart(message.to_ns)
                continue
            origin = message.log_ns if origin is None else origin
            if message.log_ns - origin < begin * NANOSECONDS:
                if message.topic.rsplit("/", 1)[-1] in LATCHED_NAMES:
                    self._publish(message)
                continue
            if not self._wait(pace, message.log_ns):
                target = self._jump_to
                self._jump_to = None
                return target
            self._publish(message)
        return None

    def _wait(self, pace: "_Pace", stamp_ns: int) -> bool:
        """Until the message is due, ticking /clock meanwhile; False when stopped, or a jump was
        requested."""
        while not self._stopped and self._jump_to is None:
            if self._paused:
                pace.hold()
                time.sleep(0.01)
                continue
            now, left = pace.now(stamp_ns)
            if left <= 0:
                self._tick(stamp_ns)
                return True
            self._tick(now)
            time.sleep(min(left, CLOCK_PERIOD_NS / NANOSECONDS))
        return False

    def _tick(self, now_ns: int) -> None:
        """Publish /clock, at most 100 times per bag second, and at every message."""
        if self._clock is not None and (now_ns < self.now_ns or now_ns - self.now_ns >= CLOCK_PERIOD_NS // 2):
            self._clock.publish(Clock(clock=Time(sec=now_ns // NANOSECONDS, nanosec=now_ns % NANOSECONDS)))
            self.now_ns = now_ns

    def _publish(self, message: RawMessage) -> None:
        publisher = self._publishers.get(message.topic)
        if publisher is not None:
            publisher.publish(bytes(message.data))
            self.published += 1


class _Pace:
    """Bag time and steady time of one moment."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._bag_ns: int | None = None
        self._wall = 0.0
        self._running = True

    def restart(self, bag_ns: int) -> None:
        """Bag time goes on from `bag_ns`, now."""
        self._bag_ns = bag_ns
        self._wall = time.monotonic()

    def hold(self) -> None:
        """Pause: what has passed so far stays, no more passes."""
        if self._bag_ns is not None:
            wall = time.monotonic()
            self._bag_ns += round((wall - self._wall) * self._rate * NANOSECONDS) if self._running else 0
            self._wall = wall
            self._running = False

    def now(self, due_ns: int) -> tuple[int, float]:
        """(bag time now, at most due_ns; s of the steady clock until due_ns)."""
        if self._bag_ns is None:
            self.restart(due_ns)
        assert self._bag_ns is not None
        wall = time.monotonic()
        if not self._running:
            self._wall = wall
            self._running = True
        now = self._bag_ns + round((wall - self._wall) * self._rate * NANOSECONDS)
        return min(now, due_ns), (due_ns - now) / NANOSECONDS / self._rate


def _qos(topic: str) -> QoSProfile:
    """Reliable, so that every subscriber is served; latched for what late nodes must receive."""
    latched = topic.rsplit("/", 1)[-1] in LATCHED_NAMES
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE,
                      durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)


def keyboard(player: Player, log: Callable[[str], None]) -> None:
    """Space pauses and resumes, b jumps 5 s back, q stops: a line each, for a terminal."""
    began: int | None = None
    while not player._stopped:
        if not select.select([sys.stdin], [], [], 0.2)[0]:
            began = player.now_ns if began is None and player.now_ns else began
            continue
        line = sys.stdin.readline()
        if not line:
            return
        word = line.strip().lower()
        if word == "q":
            player.stop()
        elif word == "b" and began is not None:
            player.jump(max(0.0, (player.now_ns - began) / NANOSECONDS - 5.0))
        elif player.paused:
            player.resume()
            log("playing")
        else:
            player.pause()
            log("paused; Enter resumes, b jumps 5 s back, q stops")


def play(path: Path, options: PlayOptions, log: Callable[[str], None], interactive: bool) -> int:
    """Play a bag with a node of its own; returns how many messages were published."""
    import threading

    rclpy.init()
    node = Node("robovlms_play", use_global_arguments=False)
    player = Player(node, path, options)
    if interactive:
        threading.Thread(target=keyboard, args=(player, log), daemon=True).start()
    try:
        player.run()
    except KeyboardInterrupt:
        log("")
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    for topic, reason in player.unpublished.items():
        log(f"not played: {topic} ({reason})")
    return player.published
