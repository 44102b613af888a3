"""Roles of a bag's topics: given in YAML, else detected, and reported in both cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from robovlms_ros.control.controller_types import (
    FollowJointTrajectory,
    JointTrajectory,
    state_topic,
)
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.schema import ConfigError, did_you_mean
from robovlms_ros.evaluation.bags.reader import Bag, BagError, RawMessage
from robovlms_ros.observations.images import AS_SENT, Encoding, only_raw

CommandKind = Literal[
    "joint_trajectory", "twist", "pose", "joint_state", "float64_array", "action_chunk", "reference"
]
SET_POINTS: tuple[CommandKind, ...] = ("pose", "joint_state", "float64_array")
"""Kinds whose command is to be reached one step after it was sent."""

Stamps = Literal["header", "bag"]
"""Time of an image: the sender's stamp, or the bag's reception."""

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
JOINT_STATE = "sensor_msgs/msg/JointState"
STRING = "std_msgs/msg/String"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
ARRAY = "std_msgs/msg/Float64MultiArray"
CONTROLLER_STATE = "control_msgs/msg/JointTrajectoryControllerState"
CHUNK = "robovlms_ros/msg/ActionChunk"
STATUS = "robovlms_ros/msg/PolicyStatus"
CONTROL_SOURCE = "robovlms_ros/msg/ControlSource"
TF = "tf2_msgs/msg/TFMessage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
KINDS: dict[str, CommandKind] = {
    TRAJECTORY: "joint_trajectory", "geometry_msgs/msg/TwistStamped": "twist", "geometry_msgs/msg/PoseStamped": "pose",
    JOINT_STATE: "joint_state", ARRAY: "float64_array", CHUNK: "action_chunk",
    CONTROLLER_STATE: "reference",
}
PEEK_BYTES = 64 << 20
GRIPPER_GOALS = "/gripper_command"
"""End of the topic on which the node publishes the goals of a gripper's action."""


@dataclass(frozen=True)
class TopicsConfig:
    """The `topics` block of an evaluation YAML; what is absent is detected.

    cameras: the policy's camera name -> topic. commands: the recorded commands that predictions are
        compared with; `motion` compares with the motion that followed instead. gripper_commands:
        where the gripper has its own.
    command_lead: s before a step's time at which its recorded set point was sent; None is one step
        for set points (a command sent now is what to reach one step later), 0 for trajectories,
        twists, chunks and a controller's reference, which know their own time.
    chunks: recorded ActionChunks, for their timing and for comparing. episodes: markers of
        `robovlms record`. tf: use it for the tool's motion where joint states are absent.
    """

    cameras: dict[str, str] = field(default_factory=dict)
    joint_states: str | None = None
    instruction: str | None = None
    commands: str | None = None
    gripper_commands: str | None = None
    command_lead: float | None = None
    chunks: str | None = None
    episodes: str | None = None


@dataclass(frozen=True)
class BagCamera:
    """The `camera.NAME` block of an evaluation YAML or of `data.bag`, as the node's parameters.

    encoding: of the camera's raw images, in place of the messages' own; AS_SENT keeps theirs.
    """

    encoding: Encoding = AS_SENT


@dataclass(frozen=True)
class TopicMapping:
    """The chosen topics. commands None: predictions are compared with the motion that followed.

    tf: for the tool's pose where joint states are absent, and for where the reference camera is.
    camera_info: of the reference camera, None unless TF holds its pose.
    status: the node's own status: pauses, and the instruction where no topic carried it.
    control_source: who commands the arm. human: a person's commands to the node.
    """

    cameras: dict[str, str]
    joint_states: str | None
    instruction: str | None
    commands: str | None
    command_kind: CommandKind | None
    gripper_commands: str | None
    command_lead: float | None
    chunks: str | None
    episodes: str | None
    tf: tuple[str, ...] = ()
    status: str | None = None
    camera_info: str | None = None
    control_source: str | None = None
    human: tuple[str, ...] = ()

    def topics(self) -> set[str]:
        """Every topic that has to be read."""
        single = (self.joint_states, self.instruction, self.commands, self.gripper_commands, self.chunks, self.episodes,
                  self.status, self.camera_info, self.control_source)
        given = {topic for topic in single if topic}
        return {*self.cameras.values(), *given, *self.tf, *self.human}


def detect(
    bag: Bag,
    given: TopicsConfig,
    cameras: Sequence[str],
    robot: RobotSpec,
    subscribed: Mapping[str, str] | None = None,
) -> tuple[TopicMapping, list[str]]:
    """The mapping for a bag, and one line for each choice, detected ones marked as such.

    subscribed: camera -> base topic of the node's parameters, of any namespace where it is
    relative: it goes before a topic that is only named like the camera.

    Raises ConfigError for a topic that the bag does not hold, BagError when a camera cannot be
    found or distinguished.
    """
    _check_given(bag, given)
    lines: list[str] = []
    found = _cameras(bag, given.cameras, cameras, subscribed or {}, lines)
    joints = given.joint_states or _joint_states(bag, robot, lines)
    instruction = given.instruction or _by_name(bag, STRING, ("instruction", "task", "prompt", "language"))
    episodes = given.episodes or _by_name(bag, STRING, ("episode",))
    chunks = given.chunks or _first(bag, CHUNK)
    commands, kind = _commands(bag, given, robot, joints, lines)
    gripper = given.gripper_commands or _gripper(bag, robot, commands, lines)
    tf = tuple(topic for topic, kind_ in bag.topics.items() if kind_ == TF)
    info = _camera_info(bag, found[cameras[0]]) if tf and cameras else None
    tf = tf if joints is None or info else ()
    lead = given.command_lead
    status = _first(bag, STATUS)
    source = _first(bag, CONTROL_SOURCE)
    mapping = TopicMapping(found, joints, instruction, commands, kind, gripper, lead, chunks, episodes, tf, status,
                           info, source, _human(bag, source))
    for label, topic, asked in (
        ("joint states", joints, given.joint_states), ("instruction", instruction, given.instruction),
        ("recorded commands", commands, given.commands), ("gripper commands", gripper, given.gripper_commands),
        ("recorded chunks", chunks, given.chunks), ("episode markers", episodes, given.episodes),
        ("the node's status", status, None), ("where the reference camera is, with TF", info, None),
    ):
        lines.append(f"{label}: {_said(topic, asked)}")
    if source is not None:
        lines.append(f"who commands the arm: {_said(source, None)}")
    if commands is None:
        measured = "joint states" if joints else "TF"
        lines.append(
            "no recorded commands: predictions are compared with the motion that followed "
            f"({measured})"
        )
    return mapping, lines


def encodings_of(
    bag: Bag, mapping: TopicMapping, given: Mapping[str, BagCamera], place: str
) -> dict[str, str]:
    """Camera -> encoding of its raw images, for the cameras that are given one.

    place: the key that holds `given`, for messages. Raises ConfigError for a camera that the policy
    does not have, and for an encoding of compressed images.
    """
    encodings: dict[str, str] = {}
    for name, camera in given.items():
        if name not in mapping.cameras:
            hint = did_you_mean(name, mapping.cameras)
            raise ConfigError(f"{place}.{name}: the policy has no such camera.{hint}")
        if camera.encoding == AS_SENT:
            continue
        topic = mapping.cameras[name]
        if bag.topics[topic] != IMAGES[0]:
            remedy = f"topics.cameras.{name} to a topic of raw images ({topic} is compressed)"
            raise ConfigError(only_raw(f"{place}.{name}", camera.encoding, remedy))
        encodings[name] = camera.encoding
    return encodings


def _said(topic: str | None, asked: str | None) -> str:
    if topic is None:
        return "none"
    return topic if asked else f"{topic} (detected)"


def _check_given(bag: Bag, given: TopicsConfig) -> None:
    singles = {name: getattr(given, name) for name in
               ("joint_states", "instruction", "commands", "gripper_commands", "chunks", "episodes")}
    wanted = {**{f"cameras.{name}": topic for name, topic in given.cameras.items()}, **singles}
    for name, topic in wanted.items():
        if topic is not None and topic not in bag.topics and not (name == "commands" and topic == "motion"):
            raise ConfigError(f"topics.{name} = '{topic}': not in {bag.path}.{did_you_mean(topic, bag.topics)}")


def _cameras(
    bag: Bag,
    given: Mapping[str, str],
    names: Sequence[str],
    subscribed: Mapping[str, str],
    lines: list[str],
) -> dict[str, str]:
    images = [topic for topic, kind in bag.topics.items() if kind in IMAGES]
    # A raw image beats its compressed copy: it is what the camera saw.
    images.sort(key=lambda topic: (bag.topics[topic] != IMAGES[0], topic))
    found: dict[str, str] = {}
    for name in names:
        if name in given:
            found[name] = given[name]
            lines.append(f"camera '{name}': {given[name]}")
            continue
        base = subscribed.get(name, "")
        named = (
            [topic for topic in images if base and _is_topic(topic, base)]
            or [topic for topic in images if name in topic.split("/")]
            or [topic for topic in images if name in topic]
        )
        if not named and len(names) == 1 and len({topic.removesuffix("/compressed") for topic in images}) == 1:
            named = images
        if not named:
            have = ", ".join(images) or "none"
            raise BagError(
                f"{bag.path}: no image topic for the policy's camera '{name}'; image topics there: {have}. "
                f"Name it: `topics: {{cameras: {{{name}: TOPIC}}}}`, in a training file below `data: {{bag: ...}}`, in "
                f"an evaluation YAML at the top; `robovlms eval` also takes --camera {name}=TOPIC."
            )
        found[name] = named[0]
        lines.append(f"camera '{name}': {named[0]} (detected)")
    return found


def _is_topic(topic: str, base: str) -> bool:
    """True for the images of a base topic, raw or compressed; a relative one of any namespace."""
    raw = topic.removesuffix("/compressed")
    return raw == base if base.startswith("/") else raw.endswith(f"/{base}")


def _joint_states(bag: Bag, robot: RobotSpec, lines: list[str]) -> str | None:
    found = _of_type(bag, (JOINT_STATE,))
    candidates = sorted(found, key=lambda t: (not t.endswith("joint_states"), t))
    if len(candidates) <= 1:
        return candidates[0] if candidates else None
    for topic in candidates:
        names = _joint_names(bag, topic)
        if names is not None and set(robot.joints) <= set(names):
            return topic
    lines.append(f"none of {', '.join(candidates)} names the robot's joints; {candidates[0]} is taken")
    return candidates[0]


def _joint_names(bag: Bag, topic: str) -> list[str] | None:
    """The joints that the first message on a topic names, None when there is none near the
    start."""
    read = 0
    for message in bag.messages({topic}):
        if isinstance(message, RawMessage):
            decoded = bag.decode(message)
            if decoded is not None:
                return list(getattr(decoded, "name", None) or getattr(decoded, "joint_names", None) or [])
            read += len(message.data)
        if read > PEEK_BYTES:
            break
    return None


def _by_name(bag: Bag, kind: str, words: Sequence[str]) -> str | None:
    topics = sorted(topic for topic, type_name in bag.topics.items() if type_name == kind)
    for word in words:
        for topic in topics:
            if word in topic.rsplit("/", 1)[-1]:
                return topic
    return None


def _camera_info(bag: Bag, image: str) -> str | None:
    """The camera_info beside an image topic, as image_transport names it."""
    topic = image.removesuffix("/compressed").rsplit("/", 1)[0] + "/camera_info"
    return topic if bag.topics.get(topic) == CAMERA_INFO else None


def _first(bag: Bag, kind: str) -> str | None:
    return min(_of_type(bag, (kind,)), default=None)


def _human(bag: Bag, source: str | None) -> tuple[str, ...]:
    """Topics of a person's commands to the node that publishes `source`."""
    if source is None:
        return ()
    prefix = f"{source.rpartition('/')[0]}/human/"
    return tuple(sorted(topic for topic in bag.topics if topic.startswith(prefix)))


def _of_type(bag: Bag, kinds: Sequence[str]) -> list[str]:
    """Topics of these types, sorted; neither a person's commands, a shadow policy's, nor the
    goals of a gripper's action."""
    found = (topic for topic, type_name in bag.topics.items() if type_name in kinds)
    return sorted(topic for topic in found if not topic.endswith(GRIPPER_GOALS)
                  and "/human/" not in topic and "/shadow/" not in topic)


def _commands(
    bag: Bag, given: TopicsConfig, robot: RobotSpec, joints: str | None, lines: list[str]
) -> tuple[str | None, CommandKind | None]:
    if given.commands == "motion":
        return None, None
    if given.commands is not None:
        kind = KINDS.get(bag.topics[given.commands])
        if kind is None:
            raise ConfigError(
                f"topics.commands = '{given.commands}' is {bag.topics[given.commands]}: must be `motion` or one of "
                f"{', '.join(KINDS)}."
            )
        return given.commands, kind
    configured = getattr(robot.controller, "topic", None)
    named = next((topic for topic in _of_type(bag, tuple(KINDS))
                  if configured and topic.endswith(f"/{configured.lstrip('/')}")), None)
    state = _state(bag, state_topic(robot.controller), robot.joints, lines)
    if state is not None and isinstance(robot.controller, JointTrajectory | FollowJointTrajectory):
        if named is not None:
            lines.append(
                f"{state} holds the controller's commands, whoever sent them; {named} holds "
                "trajectories alone, no goals of an action: "
                f"`topics: {{commands: {named}}}` takes them instead"
            )
        return state, "reference"
    if named is not None:
        return named, KINDS[bag.topics[named]]
    for type_name, kind in KINDS.items():
        if type_name in (CHUNK, CONTROLLER_STATE):
            continue  # recorded chunks are a policy's own output: compared with only on request
        for topic in _of_type(bag, (type_name,)):
            if topic == joints:
                continue
            if type_name in (TRAJECTORY, JOINT_STATE) and not set(robot.joints) <= set(_joint_names(bag, topic) or ()):
                continue
            if type_name == ARRAY and topic.endswith(_gripper_suffix(robot)):
                continue
            return topic, kind
    return (None, None) if state is None else (state, "reference")


def _state(bag: Bag, configured: str | None, joints: Sequence[str], lines: list[str]) -> str | None:
    """The topic of a trajectory controller's state that names the joints, the configured one first;
    None without one that holds messages."""
    unreadable = unreadable_states(bag)
    if unreadable:
        lines += [unreadable] if unreadable not in lines else []
        return None
    topics = _of_type(bag, (CONTROLLER_STATE,))
    suffix = f"/{configured.lstrip('/')}" if configured else ""
    topics.sort(key=lambda topic: not (suffix and topic.endswith(suffix)))
    for topic in topics:
        if set(joints) <= set(_joint_names(bag, topic) or ()):
            return topic
    return None


def unreadable_states(bag: Bag) -> str:
    """A sentence about topics of controllers' states that cannot be decoded; empty without any."""
    topics = _of_type(bag, (CONTROLLER_STATE,))
    if not topics or CONTROLLER_STATE in bag.types.fielddefs:
        return ""
    return (
        f"{', '.join(topics)} cannot be read: the bag holds no definition of {CONTROLLER_STATE}. "
        "Record into MCAP, which holds one."
    )


def _gripper_suffix(robot: RobotSpec) -> str:
    topic = getattr(robot.gripper, "topic", None)
    return f"/{topic.lstrip('/')}" if topic else GRIPPER_GOALS


def _gripper(bag: Bag, robot: RobotSpec, commands: str | None, lines: list[str]) -> str | None:
    if robot.gripper is None:
        return None
    suffix = _gripper_suffix(robot)
    topics = sorted(t for t, kind in bag.topics.items() if kind in KINDS and t != commands)
    named = next((topic for topic in topics if topic.endswith(suffix)), None)
    configured = state_topic(robot.gripper)
    if configured is None or (named is not None and (bag.counts is None or bag.counts.get(named))):
        return named
    return _state(bag, configured, (robot.gripper.joint,), lines) or named


def bag_description(bag: Path, topic: str) -> str:
    """The robot description that a bag recorded. Raises ConfigError when there is none."""
    with Bag(bag) as opened:
        named = {name for name in opened.topics if name.rsplit("/", 1)[-1] == topic.rsplit("/", 1)[-1]}
        for raw in opened.messages(named) if named else ():
            message = opened.decode(raw) if isinstance(raw, RawMessage) else None
            if message is not None:
                return str(message.data)
    raise ConfigError(f"{bag}: no robot description on '{topic}'. Give the URDF as `description.file` in its YAML.")
