"""Record everything that evaluation and training need, with the node's configuration and episode
markers.

Where rosbag2 is installed, `ros2 bag record` with the same topics does the same, apart from the
markers.
"""

import dataclasses
import json
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from robovlms_ros.control.controller_types import state_topic
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.types import NANOSECONDS, RoboVLMsError
from robovlms_ros.evaluation.bags.mapping import GRIPPER_GOALS, STRING
from robovlms_ros.evaluation.replay.events import MARKS
from robovlms_ros.ros.checked_node import CheckedNode
from robovlms_ros.ros.parameters import NodeParameters
from robovlms_ros.ros.recorder import BagRecorder

EPISODE = "episode"
CONFIGURATION = "configuration"
DISCOVERY_PERIOD = 0.5
PATIENCE = 3.0
SHOW_PERIOD = 0.5
KEY_PERIOD = 0.02
RATE_WINDOW_NS = 2 * NANOSECONDS
ENOUGH = 50  # messages after which a topic's loss is reported while the recording goes on


OF_PERSON = (
    "control_source", "human/twist", "human/pose", "human/joy", "human/gripper",
    "human/joint_states", "human/joint_trajectory", "shadow/chunk", "shadow/disagreement",
)
"""Topics of the node about a person who drives, and about a policy that does not command."""


@dataclass(frozen=True)
class RecordingOptions:
    """path: a folder that does not exist yet. topics: absolute names, the reference camera's first.

    duration: s, 0 is until interrupted. silence: s without the first topic, once it spoke, that end
    the recording; 0 never does. parameters: the node's, recorded on `configuration`. use_sim_time:
    stamps from /clock.
    """

    path: Path
    topics: tuple[str, ...]
    duration: float = 0.0
    silence: float = 0.0
    parameters: NodeParameters | None = None
    use_sim_time: bool = False
    namespace: str = ""


def topics_of(parameters: NodeParameters, namespace: str = "", node: str = "vla_node") -> tuple[str, ...]:
    """Topics of a node with these parameters: cameras, joint states, instruction, commands, states
    of trajectory controllers, chunks, status."""
    robot = load_robot(parameters.robot)
    suffix = {"raw": "", "compressed": "/compressed"}
    cameras = [camera.topic + suffix[camera.transport] for camera in parameters.cameras]
    parts = (robot.controller, robot.gripper)
    commands = [getattr(part, "topic", None) for part in parts]
    commands += [state_topic(part) for part in parts]
    own = ["action_chunk", "status", *OF_PERSON]
    if hasattr(robot.gripper, "action"):
        own.append(GRIPPER_GOALS.lstrip("/"))
    relative = [*cameras, parameters.joint_states_topic, parameters.instruction_topic, *(c for c in commands if c),
                *(f"{node}/{name}" for name in own), "robot_description", EPISODE, CONFIGURATION]
    prefix = f"/{namespace.strip('/')}" if namespace.strip("/") else ""
    names = [name if name.startswith("/") else f"{prefix}/{name}" for name in relative]
    return tuple(dict.fromkeys([*names, "/tf", "/tf_static"]))


def bag_record_command(options: RecordingOptions) -> str:
    """The same recording by rosbag2."""
    return f"ros2 bag record --storage mcap --output {options.path} --topics {' '.join(options.topics)}"


class RecordingConsole(Protocol):
    """A person's keys and the view of the recording."""

    def marks(self) -> list[str]:
        """Episode markers since the last call, in order: a name (empty for a number), or one of
        MARKS. Does not wait."""

    def show(self, rows: list[tuple[str, float, int, str]], episode: str) -> None:
        """Show (topic, Hz, messages, anything unusual) of every topic, and the episode; without
        topics show nothing any more."""


class RecordingNode(CheckedNode):
    """A node with a BagRecorder that publishes episode markers and measures rates.

    episode: name of the one that is open, empty where none is.
    """

    def __init__(self, options: RecordingOptions) -> None:
        super().__init__("robovlms_record", namespace=options.namespace or None, use_global_arguments=False,
                         parameter_overrides=[rclpy.Parameter("use_sim_time", value=options.use_sim_time)])
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._markers = self.create_publisher(String, EPISODE, 10)
        self._configuration = self.create_publisher(String, CONFIGURATION, latched)
        if options.parameters is not None:
            text = json.dumps(dataclasses.asdict(options.parameters), default=str)
            self._configuration.publish(String(data=text))
        self.recorder = BagRecorder(self, options.path, options.topics)
        self.episodes = 0
        self.episode = ""
        self._last_episode = "the episode that the last instruction began"
        self._counted: deque[tuple[int, dict[str, int]]] = deque(maxlen=64)
        self.create_timer(DISCOVERY_PERIOD, self.recorder.discover)

    def mark(self, text: str) -> str:
        """Begin an episode of this name, or end the open one by one of MARKS; returns a line for
        the person. A mark after an episode's end replaces its outcome."""
        if not self.get_clock().now().nanoseconds:
            return "not marked: nobody publishes /clock yet"
        if text in MARKS:
            line = f"{text}: {self._last_episode}"
            self.episode = ""
        else:
            self.episodes += 1
            text = text or f"episode {self.episodes}"
            line = f"begin: {text}"
            self.episode = self._last_episode = text
        self.recorder.publish(self._markers, String(data=text), STRING)
        return line

    def rows(self, topics: tuple[str, ...]) -> list[tuple[str, float, int, str]]:
        """(topic, Hz over the last seconds of the node's clock, messages, anything unusual)."""
        now_ns = self.get_clock().now().nanoseconds
        counts = self.recorder.counts
        if self._counted and now_ns < self._counted[-1][0]:
            self._counted.clear()  # simulated time went back
        self._counted.append((now_ns, dict(counts)))
        while now_ns - self._counted[0][0] > RATE_WINDOW_NS:
            self._counted.popleft()
        begin_ns, before = self._counted[0]
        seconds = max(now_ns - begin_ns, 1) / NANOSECONDS
        return [
            (topic, (counts.get(topic, 0) - before.get(topic, 0)) / seconds,
             counts.get(topic, 0), self.recorder.state_of(topic))
            for topic in topics
        ]

    def absence(self, topic: str) -> str:
        """The reason why nothing of a topic is recorded, empty where it has a publisher."""
        recorded = self.recorder.counts
        if topic in recorded:
            return ""
        names = (name for name, _ in self.get_topic_names_and_types())
        others = [name for name in names if name not in recorded and self.count_publishers(name)]
        near = get_close_matches(topic, others)
        return f"nobody publishes {topic}." + (f" Did you mean '{near[0]}'?" if near else "")


def record(
    options: RecordingOptions, log: Callable[[str], None], console: RecordingConsole | None = None
) -> dict[str, int]:
    """Record until the duration is over, the cameras fall silent, or SIGINT, SIGTERM or SIGHUP;
    returns messages by topic.

    Raises RoboVLMsError when the folder exists or nothing at all came.
    """
    if options.path.exists():
        raise RoboVLMsError(f"{options.path} exists already: a recording never writes over another one.")
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    ended: list[int] = []
    # A handler that raises could interrupt a write: the bag would be damaged there. SIGINT too: a
    # shell starts what runs in the background with it ignored. nohup ignores SIGHUP for good.
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda got, _: ended.append(got)) for number in numbers}
    executor = SingleThreadedExecutor()
    try:
        try:
            node = RecordingNode(options)
        except OSError as error:
            text = f"{options.path} cannot be made: {error}. Choose another folder."
            raise RoboVLMsError(text) from error
        executor.add_node(node)
        try:
            _spin(node, executor, options, log, console, ended)
        finally:
            node.recorder.close()
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)
    if console is not None:
        console.show([], "")
    recorder = node.recorder
    counts = dict(recorder.counts)
    for topic in options.topics:
        silent = "   (no message came)" if topic in counts else "   (nobody published it)"
        if topic in recorder.refused:
            silent = f"   (NOT RECORDED: {recorder.refused[topic]})"
        unusual = recorder.state_of(topic)
        lost = f"   ({unusual})" if unusual else ""
        log(f"  {counts.get(topic, 0):7d}  {topic}" + (lost if counts.get(topic) else silent))
    for warning in recorder.loss_warnings().values():
        log(f"WARNING: {warning}")
    if recorder.failure is not None:
        raise RoboVLMsError(recorder.failure)
    own = {name for name in counts if name.rsplit("/", 1)[-1] in (EPISODE, CONFIGURATION)}
    if not any(count for name, count in counts.items() if name not in own):
        clock = ", and that somebody publishes /clock" if options.use_sim_time else ""
        raise RoboVLMsError(f"nothing was recorded: no message came. Check --namespace and ROS_DOMAIN_ID{clock}.")
    return counts


def _spin(
    node: RecordingNode, executor: SingleThreadedExecutor, options: RecordingOptions,
    log: Callable[[str], None], console: RecordingConsole | None, ended: list[int],
) -> None:
    begin = heard = shown = polled = looked = time.monotonic()
    first = options.topics[0]
    last = 0
    warned: set[str] = set()
    recorder = node.recorder
    while not ended and (options.duration <= 0 or time.monotonic() - begin < options.duration):
        executor.spin_once(timeout_sec=0.1)
        now = time.monotonic()
        if now - looked > PATIENCE:
            looked = now
            for text in _absences(node, options):
                if text not in warned:  # a near name may be discovered later
                    warned.add(text)
                    log(f"WARNING: {text}")
        if recorder.failure is not None:
            return
        if now - polled > KEY_PERIOD:
            polled = now
            for text in console.marks() if console is not None else ():
                log(node.mark(text))
            for text in recorder.camera_warnings():
                log(f"WARNING: {text}")
            warned |= recorder.cameras.keys()
            for topic, warning in recorder.loss_warnings().items():
                if topic not in warned and recorder.losses[topic].received >= ENOUGH:
                    warned.add(topic)
                    log(f"WARNING: {warning}")
        if console is not None and now - shown > SHOW_PERIOD:
            shown = now
            console.show(node.rows(options.topics), node.episode)
        count = recorder.counts.get(first, 0)
        if count != last:
            last = count
            heard = time.monotonic()
        if options.silence > 0 and last and time.monotonic() - heard > options.silence:
            return


def _absences(node: RecordingNode, options: RecordingOptions) -> list[str]:
    """Texts about a clock, cameras and joint states that nobody publishes."""
    if options.use_sim_time and not node.get_clock().now().nanoseconds:
        return ["simulated time, and nobody publishes /clock: nothing is recorded until then"]
    required = len(options.parameters.cameras) + 1 if options.parameters else 0
    return [text for text in map(node.absence, options.topics[:required]) if text]
