"""From the node's parameters to a policy that is loaded, fits the robot, and has run once. Needs no
ROS."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter, sleep
from typing import TYPE_CHECKING

import numpy as np

from robovlms_ros.control.collision_model import load_collision_model
from robovlms_ros.control.collision_solids import CollisionModel
from robovlms_ros.control.executor import ChunkExecutor, build_executor
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import RobotSpec, load_robot
from robovlms_ros.control.schedule import ScheduleConfig, horizon_shortfall, latency_excess
from robovlms_ros.core import resources
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    Observation,
    RobotState,
    RoboVLMsError,
)
from robovlms_ros.inference.history import thinning
from robovlms_ros.inference.worker import InferenceThread
from robovlms_ros.ros.parameters import CameraParameters, NodeParameters

if TYPE_CHECKING:
    import torch

    from robovlms_ros.config.policy import PolicyConfig
    from robovlms_ros.inference.session import PolicySession
    from robovlms_ros.models.vla_policy import VLAPolicy

log = logging.getLogger(__name__)

WARM_UP_RUNS = 5
WARM_UP_SIZE = (480, 640)
WARM_UP_BLOCK = 80  # pixels of one colour, in each direction


@dataclass(frozen=True)
class RobotModel:
    """The robot as described, and its kinematics as a factory: each thread needs its own.

    make_kinematics: None without an arm; of another frame than the tool's where one is given.
    collision: None where the collision check is off.
    """

    robot: RobotSpec
    make_kinematics: Callable[..., Kinematics] | None
    collision: CollisionModel | None = None

    def executor(self, schedule: ScheduleConfig) -> ChunkExecutor | None:
        """The robot's executor; None for a robot that is not commanded."""
        if self.robot.controller.type == "chunk_only" or self.make_kinematics is None:
            return None
        return build_executor(self.robot, self.make_kinematics(), schedule, self.collision)


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy that has been loaded and warmed up. latency: s, the slowest warm inference. thread:
    where that happened and where it has to run."""

    policy: "VLAPolicy"
    session: "PolicySession"
    cameras: tuple[CameraParameters, ...]
    latency: float
    thread: InferenceThread | None = None

    @property
    def history_step(self) -> float | None:
        """s between the frames of the history, None for a policy without one."""
        model = self.policy.config.model
        return model.history_step if model.history_length > 1 else None


def check_weights(parameters: NodeParameters) -> None:
    """No weights, no motion. Raises ConfigError for an empty checkpoint, and for a random one out
    of dry_run."""
    if not parameters.checkpoint:
        raise ConfigError(
            "parameter checkpoint is empty: there are no weights to run. Give the folder of a checkpoint (config.yaml, "
            "model.safetensors, tokenizer), e.g. checkpoint:=/path/to/folder. `robovlms convert` makes one from a "
            "published RoboVLMs checkpoint, `robovlms train` from demonstrations. To try the wiring with random "
            "weights, in dry_run, give checkpoint:=random and backbone."
        )
    if parameters.checkpoint == "random" and not parameters.dry_run:
        raise ConfigError(
            "parameter checkpoint = 'random' with dry_run = false: random weights never move an arm. "
            "Set dry_run to true, or give a trained checkpoint."
        )


def with_example_policy(
    parameters: NodeParameters, warn: Callable[[str], None] = lambda text: None
) -> NodeParameters:
    """`parameters`; with a backbone, no checkpoint and dry_run those of its shipped policy.

    warn: receives one line that names that policy. Raises RoboVLMsError for an unknown backbone.
    """
    from robovlms_ros.core.registry import resolve

    alone = parameters.backbone and not parameters.checkpoint and not parameters.config
    if not alone or not parameters.dry_run:
        return parameters
    resolve("backbone", parameters.backbone)
    checkpoint = resources.shipped_policy(parameters.backbone)
    example = replace(parameters, backbone="", checkpoint=checkpoint)
    config = _config_of(example)
    words = ", ".join(config.vlm.vocabulary)
    warn(
        f"backbone '{parameters.backbone}' without a checkpoint: the shipped policy "
        f"'{checkpoint}' runs in its place, in dry_run only. It is a small "
        f"{config.model.backbone} trained for the simulated Panda; its words: {words}. Give your "
        "own policy with checkpoint:=FOLDER: `robovlms train` makes one from demonstrations, "
        "`robovlms convert` from a published checkpoint."
    )
    return example


def load_body(parameters: NodeParameters, description: Callable[[str], str]) -> RobotModel:
    """The robot and its kinematics. `description(topic)` waits for a robot description. Raises
    RoboVLMsError."""
    robot = load_robot(parameters.robot)
    age = parameters.max_age or robot.max_age
    robot = replace(robot, max_age=age, max_latency=parameters.max_latency or max(age, robot.max_latency))
    if robot.controller.type == "chunk_only" and robot.description_path is None:
        return RobotModel(robot, None)
    source = robot.description_path or description(str(robot.description.topic))

    def make(frame: str = robot.eef_frame) -> Kinematics:
        return Kinematics.for_robot(replace(robot, eef_frame=frame), source)

    make()
    return RobotModel(robot, make, load_collision_model(robot, source))


def load_brain(
    parameters: NodeParameters, now: Callable[[], int], example: RobotState, robot: RobotSpec | None = None
) -> LoadedPolicy:
    """The policy, loaded and warmed up on made-up images and the state `example`, after the
    preflight for `robot`.

    Raises RoboVLMsError.
    """
    from robovlms_ros.inference.optimized.verification import frames_to_verify, open_session
    from robovlms_ros.inference.session import PolicySession

    if parameters.checkpoint != "random":
        _preflight(parameters, robot)
        _choose_cameras(_config_of(parameters), parameters)  # before the weights, which take long
    policy = load_policy_of(parameters)
    cameras = _choose_cameras(policy.config, parameters)
    policy.config.require_runnable()
    words = parameters.instruction or _example_words(policy)
    count = frames_to_verify(policy.config.model.history_length, policy.device.type)
    frames = _warm_up_frames(policy, cameras, words, example, count)
    same_words = [frame for frame in frames if frame.instruction == words]

    def prepare() -> tuple[PolicySession, float]:
        session = open_session(policy, parameters.fast_path, frames, now)
        return session, _warm_up(PolicySession(policy, None, session.fast), same_words[:WARM_UP_RUNS])

    thread = InferenceThread()
    session, latency = thread.run(prepare)
    log.info("policy %s on %s, warm inference %.0f ms, %s path", policy.identity, policy.device, 1000 * latency,
             session.path)
    return LoadedPolicy(policy, session, cameras, latency, thread)


def load_shadow(
    parameters: NodeParameters,
    now: Callable[[], int],
    example: RobotState,
    robot: RobotSpec,
    cameras: tuple[CameraParameters, ...],
) -> LoadedPolicy | None:
    """The policy of `shadow_checkpoint`, loaded after the first one; None where it is empty.

    cameras: of the first policy; the second takes no others. Raises ConfigError, also with the
    memory that it needs and the memory that is left.
    """
    checkpoint = parameters.shadow_checkpoint
    if not checkpoint:
        return None
    own = replace(parameters, checkpoint=checkpoint, backbone="", config="")
    try:
        check_weights(own)
        shadow = load_brain(own, now, example, robot)
    except RoboVLMsError as error:
        raise ConfigError(f"parameter shadow_checkpoint = '{checkpoint}': {error}") from error
    known = [camera.name for camera in cameras]
    others = sorted({camera.name for camera in shadow.cameras} - set(known))
    if others:
        raise ConfigError(
            f"parameter shadow_checkpoint = '{checkpoint}': it takes the cameras "
            f"{', '.join(others)}, which the first policy does not take: must be among "
            f"{', '.join(known)}."
        )
    return shadow


def _preflight(parameters: NodeParameters, robot: RobotSpec | None) -> None:
    """The report of `robovlms check` for this robot: warnings go to the log, errors refuse."""
    from robovlms_ros.checkpoints.preflight import Situation, inspect

    config = resources.find(parameters.config, "config/backbones") if parameters.config else None
    situation = Situation(robot, device=str(find_device(parameters.device)))
    report = inspect(resources.find_checkpoint(parameters.checkpoint), config, situation, read_weights=False)
    for finding in report.of("warning"):
        log.warning("preflight, %s: %s", finding.topic, finding.text)
    report.require()


def _config_of(parameters: NodeParameters) -> "PolicyConfig":
    """The configuration of the checkpoint, without its weights. Raises RoboVLMsError."""
    from robovlms_ros.checkpoints.checkpoint import locate

    config = resources.find(parameters.config, "config/backbones") if parameters.config else None
    return locate(resources.find_checkpoint(parameters.checkpoint), config).config


def load_policy_of(parameters: NodeParameters) -> "VLAPolicy":
    """The policy that `checkpoint`, `backbone`, `config`, `device` and `dtype` name, with the
    passport of `robot`'s controller. Raises RoboVLMsError."""
    from robovlms_ros.checkpoints.checkpoint import DTYPES, build_policy, load_policy
    from robovlms_ros.checkpoints.passport import with_controller
    from robovlms_ros.config.policy import load_config
    from robovlms_ros.core.registry import resolve

    if parameters.backbone:
        resolve("backbone", parameters.backbone)
    device = find_device(parameters.device)
    dtype = None if parameters.dtype == "auto" else DTYPES[parameters.dtype]
    config = load_config(resources.find(parameters.config, "config/backbones")) if parameters.config else None
    if parameters.checkpoint == "random":
        if config is None:
            config = _preset(parameters.backbone)
        policy = build_policy(config).to(device)
        policy = policy.to(dtype or DTYPES[config.vlm.precision])
    else:
        policy = load_policy(resources.find_checkpoint(parameters.checkpoint), config, device, dtype)
    loaded = policy.config.model.backbone
    if parameters.backbone and loaded != parameters.backbone:
        raise ConfigError(
            f"parameter backbone = '{parameters.backbone}' but the policy's backbone is '{loaded}' "
            f"(checkpoint '{parameters.checkpoint}'). Leave backbone empty, or give the checkpoint of that backbone."
        )
    policy.identity = with_controller(policy.identity, load_robot(parameters.robot))
    return policy


def _preset(backbone: str) -> "PolicyConfig":
    from robovlms_ros.config.policy import load_config

    if not backbone:
        raise ConfigError("parameter checkpoint = 'random' needs to know what to build: give backbone or config.")
    return load_config(resources.find(backbone, "config/backbones"))


def find_device(name: str) -> "torch.device":
    """The torch device of parameter `device`; auto prefers cuda. Raises ConfigError."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"parameter device = '{name}': cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _choose_cameras(config: "PolicyConfig", parameters: NodeParameters) -> tuple[CameraParameters, ...]:
    """The node's cameras that the policy sees, in the policy's order."""
    known = {camera.name: camera for camera in parameters.cameras}
    for name in config.cameras:
        if name not in known:
            raise ConfigError(f"the policy takes the cameras {', '.join(config.cameras)}; parameter cameras = "
                              f"{sorted(known)} lacks '{name}'. Name the node's cameras as the policy does.")
    unused = sorted(set(known) - set(config.cameras))
    if unused:
        log.info("cameras that the policy does not use are not heard: %s", ", ".join(unused))
    return tuple(known[name] for name in config.cameras)


def _example_words(policy: "VLAPolicy") -> str:
    """Words that the policy's tokenizer knows: a small vocabulary need not have everyday ones."""
    return " ".join(policy.config.vlm.vocabulary[:3]) or "pick up the cube"


def _warm_up_frames(
    policy: "VLAPolicy",
    cameras: tuple[CameraParameters, ...],
    words: str,
    example: RobotState,
    count: int,
) -> list[Observation]:
    """`count` frames of large coloured blocks that differ strongly, a history step apart; then one
    with other words."""
    rng = np.random.default_rng(0)
    step = policy.config.model.history_step or 0.1
    height, width = WARM_UP_SIZE
    block = np.ones((WARM_UP_BLOCK, WARM_UP_BLOCK, 1), np.uint8)
    blocks = (height // WARM_UP_BLOCK, width // WARM_UP_BLOCK, 3)
    other_words = " ".join(reversed(words.split()))
    frames = []
    for run in range(count + 1):
        images = {
            camera.name: np.kron(rng.integers(0, 256, blocks, dtype=np.uint8), block)
            for camera in cameras
        }
        instruction = words if run < count else other_words
        frames.append(Observation(int((run + 1) * step * 1e9), images, instruction, example))
    return frames


def _warm_up(session: "PolicySession", frames: list[Observation]) -> float:
    """Run the policy as often as it takes to be warm; returns the slowest of the warm runs, in
    s."""
    spent = []
    for frame in frames:
        begin = perf_counter()
        session.predict_action_chunk(frame)
        spent.append(perf_counter() - begin)
    return max(spent[2:])


def check_speed(parameters: NodeParameters, brain: LoadedPolicy, robot: RobotSpec) -> list[str]:
    """Latencies too long for smooth motion, for the robot or for the history; ConfigError where
    parameters refuse it."""
    config = brain.policy.config
    latency = brain.latency + parameters.added_latency
    assert config.action is not None
    shortfall = horizon_shortfall(config.model.action_chunk_size, config.action.step_duration, latency, latency,
                                  parameters.schedule.lead)
    late = latency_excess(robot, latency + parameters.schedule.lead)
    slow = None
    step = brain.history_step
    every = thinning_of(parameters, brain)
    if step is not None and brain.latency > step:
        remedy = ("Needed: a faster device, or a smaller model." if every == 1 else
                  f"It is thinned out: one frame in {every} steps is seen (on_slow_inference = thin).")
        slow = (f"one frame takes the policy {brain.latency:.3f} s, but it was trained on one every {step:.3f} s: its "
                f"history falls behind. {remedy}")
    for text, name in ((shortfall, "on_short_horizon"), (late, "on_short_horizon"), (slow, "on_slow_inference")):
        if text is not None and getattr(parameters, name) == "refuse":
            raise ConfigError(f"{text} ({name} = refuse)")
    return [text for text in (shortfall, late, slow) if text is not None]


def thinning_of(parameters: NodeParameters, brain: LoadedPolicy) -> int:
    """Every how many steps a frame of the history is to be seen: 1 where it keeps up, or must not
    be thinned out."""
    if brain.history_step is None or parameters.on_slow_inference != "thin":
        return 1
    return thinning(brain.latency, brain.history_step)


def example_state(body: RobotModel) -> RobotState:
    """The robot at home: what a policy with proprioception is warmed up with."""
    home = np.array(body.robot.home)
    pose = np.eye(4) if body.make_kinematics is None else body.make_kinematics().forward(home)
    return RobotState(0, home, np.zeros_like(home), pose, 1.0)


class PoseFiller:
    """Fills the tool's pose into measured states, from any thread."""

    def __init__(self, kinematics: Kinematics | None) -> None:
        self._kinematics = kinematics
        self._lock = threading.Lock()

    def __call__(self, state: RobotState) -> RobotState:
        if self._kinematics is None:
            return state
        with self._lock:
            return replace(state, eef_pose=self._kinematics.forward(state.positions))


class DelayedSession:
    """A session whose chunks come `seconds` later, on a clock that need not be the wall's: for
    latency experiments."""

    def __init__(self, session: "PolicySession", seconds: float, now: Callable[[], int]) -> None:
        self._session = session
        self._delay_ns = round(seconds * NANOSECONDS)
        self._now = now
        self.reset = session.reset
        self.observe = session.observe
        self.finish = session.finish

    def predict_action_chunk(self, observation: Observation) -> ActionChunk:
        """The session's chunk, when the delay after it was computed is over (or the clock has
        jumped back)."""
        chunk = self._session.predict_action_chunk(observation)
        begin = self._now()
        while begin <= self._now() < begin + self._delay_ns:
            sleep(0.002)
        return chunk
