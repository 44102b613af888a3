"""Record everything that evaluation and training need, with the node's configuration and episode
markers.

Where rosbag2 is installed, `ros2 bag record` with the same topics does the same, apart from the
markers.
"""

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.ros.checked_node import CheckedNode
from robovlms_ros.ros.parameters import NodeParameters
from robovlms_ros.ros.recorder import BagRecorder

EPISODE = "episode"
CONFIGURATION = "configuration"
DISCOVERY_PERIOD = 0.5
CLOCK_PATIENCE = 3.0
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
    """Topics of a node with these parameters: cameras, joint states, instruction,
    commands, chunks, status."""
    robot = load_robot(parameters.robot)
    suffix = {"raw": "", "compressed": "/compressed"}
    cameras = [camera.topic + suffix[camera.transport] for camera in parameters.cameras]
    commands = [getattr(part, "topic", None) for part in (robot.controller, robot.gripper)]
    own = ("action_chunk", "status", *OF_PERSON)
    relative = [*cameras, parameters.joint_states_topic, parameters.instruction_topic, *(c for c in commands if c),
                *(f"{node}/{name}" for name in own), "robot_description", EPISODE, CONFIGURATION]
    prefix = f"/{namespace.strip('/')}" if namespace.strip("/") else ""
    names = [name if name.startswith("/") else f"{prefix}/{name}" for name in relative]
    return tuple(dict.fromkeys([*names, "/tf", "/tf_static"]))


def bag_record_command(options: RecordingOptions) -> str:
    """The same recording by rosbag2."""
    return f"ros2 bag record --storage mcap --output {options.path} --topics {' '.join(options.topics)}"


class RecordingNode(CheckedNode):
    """A node with a Recorder that notices when the first topic falls silent, and publishes
    markers."""

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
        self.create_timer(DISCOVERY_PERIOD, self.recorder.discover)

    def mark(self, text: str) -> None:
        """Begin an episode."""
        self.episodes += 1
        self._markers.publish(String(data=text or f"episode {self.episodes}"))


def record(
    options: RecordingOptions, log: Callable[[str], None], markers: Callable[[], str | None] | None = None
) -> dict[str, int]:
    """Record until the duration is over, the cameras fall silent, or SIGINT or SIGTERM; returns
    messages by topic.

    markers: waits a little for an episode to begin and returns its name, None when none did; called
    again and again in a thread of its own, until it raises EOFError.
    Raises RoboVLMsError when the folder exists or nothing at all came.
    """
    if options.path.exists():
        raise RoboVLMsError(f"{options.path} exists already: a recording never writes over another one.")
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    # SIGINT too: a shell starts what runs in the background with it ignored.
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    node = RecordingNode(options)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    over = threading.Event()
    reader = threading.Thread(target=_read_markers, args=(node, markers, over), daemon=True)
    if markers is not None:
        reader.start()
    try:
        _spin(node, executor, options, log)
    except KeyboardInterrupt:
        log("")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        over.set()
        if markers is not None:
            reader.join()
        node.recorder.close()
        counts = dict(node.recorder.counts)
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    recorder = node.recorder
    for topic in options.topics:
        silent = "   (no message came)" if topic in counts else "   (nobody published it)"
        if topic in recorder.refused:
            silent = f"   (NOT RECORDED: {recorder.refused[topic]})"
        log(f"  {counts.get(topic, 0):7d}  {topic}" + ("" if counts.get(topic) else silent))
    for warning in recorder.loss_warnings().values():
        log(f"WARNING: {warning}")
    if recorder.failure is not None:
        raise RoboVLMsError(recorder.failure)
    own = {name for name in counts if name.rsplit("/", 1)[-1] in (EPISODE, CONFIGURATION)}
    if not any(count for name, count in counts.items() if name not in own):
        clock = ", and that somebody publishes /clock" if options.use_sim_time else ""
        raise RoboVLMsError(f"nothing was recorded: nobody was heard. Check --namespace and ROS_DOMAIN_ID{clock}.")
    return counts


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _spin(
    node: RecordingNode, executor: SingleThreadedExecutor, options: RecordingOptions, log: Callable[[str], None]
) -> None:
    begin = heard = time.monotonic()
    first = options.topics[0]
    last = 0
    waiting = options.use_sim_time
    warned: set[str] = set()
    while options.duration <= 0 or time.monotonic() - begin < options.duration:
        executor.spin_once(timeout_sec=0.1)
        if waiting and time.monotonic() - begin > CLOCK_PATIENCE:
            waiting = False
            if not node.get_clock().now().nanoseconds:
                log("simulated time, and nobody publishes /clock: nothing is recorded until somebody does")
        for topic, warning in node.recorder.loss_warnings().items():
            if topic not in warned and node.recorder.losses[topic].received >= ENOUGH:
                warned.add(topic)
                log(f"WARNING: {warning}")
        if node.recorder.failure is not None:
            return
        count = node.recorder.counts.get(first, 0)
        if count != last:
            last = count
            heard = time.monotonic()
        if options.silence > 0 and last and time.monotonic() - heard > options.silence:
            return


def _read_markers(node: RecordingNode, markers: Callable[[], str | None], over: threading.Event) -> None:
    while not over.is_set():
        try:
            name = markers()
        except (EOFError, OSError):
            return
        if name is not None:
            node.mark(name)
