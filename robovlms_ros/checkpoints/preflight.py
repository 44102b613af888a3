"""Before anything moves: does this checkpoint fit its configuration, this robot, these cameras and
this machine?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from robovlms_ros.checkpoints.checkpoint import DTYPES, Place, load_tokenizer_of, locate
from robovlms_ros.checkpoints.parameter_names import KeyLayout, with_tied_embedding
from robovlms_ros.checkpoints.weights import CheckpointError, listing, match, read_tensors
from robovlms_ros.config.action import ActionConfig
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.types import InstructionRefused, RoboVLMsError
from robovlms_ros.inference.action_pipeline import build_steps
from robovlms_ros.models.backbones.meta_parameters import parameters_on_meta
from robovlms_ros.models.tokenization import TokenizerError
from robovlms_ros.models.vla_policy import VLAPolicy

Level = Literal["ok", "warning", "error"]
# Beside the weights: activations, the framework, the images.
MEMORY_MARGIN = 1.2
# A hair beyond a joint limit is rounding; more is another robot's data.
JOINT_SLACK = 0.05
GRIPPER = "gripper"  # the name of the gripper's column


class Robot(Protocol):
    """Part of a robot that the preflight reads (`control.robot.RobotSpec`)."""

    @property
    def name(self) -> str: ...
    @property
    def joints(self) -> tuple[str, ...]: ...
    @property
    def limits(self) -> Any: ...
    @property
    def gripper(self) -> Any: ...
    @property
    def controller(self) -> Any: ...
    @property
    def description_path(self) -> Path | None: ...


@dataclass(frozen=True)
class Situation:
    """The policy's surroundings. Parts that are None or empty are not checked.

    cameras: names of the cameras at hand; cameras_by_default: True where they are the node's
        defaults, which a user may change. camera_rate: Hz.
    latency: s from image to chunk, expected or measured. backbone, instruction: the node's
        parameters.
    """

    robot: Robot | None = None
    cameras: tuple[str, ...] | None = None
    camera_rate: float | None = None
    latency: float | None = None
    device: str = "cpu"
    cameras_by_default: bool = False
    backbone: str = ""
    instruction: str = ""


@dataclass(frozen=True)
class Finding:
    """One line of the report. facts: the numbers behind it."""

    level: Level
    topic: str
    text: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PreflightReport:
    """Everything that was found. `require()` raises when the checkpoint must not run."""

    checkpoint: str
    findings: tuple[Finding, ...]

    def of(self, level: Level) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.level == level)

    def exit_code(self, strict: bool = False) -> int:
        return int(bool(self.of("error")) or (strict and bool(self.of("warning"))))

    def require(self) -> None:
        """Raise CheckpointError with every error."""
        errors = self.of("error")
        if errors:
            lines = " ".join(f"[{f.topic}] {f.text}" for f in errors)
            raise CheckpointError(f"{self.checkpoint} is refused: {lines}")

    def to_json(self) -> str:
        rows = [{"level": f.level, "topic": f.topic, "text": f.text, **f.facts} for f in self.findings]
        return json.dumps({"checkpoint": self.checkpoint, "pass": not self.of("error"), "findings": rows})


def inspect(
    checkpoint: str | Path,
    config: str | Path | PolicyConfig | None,
    situation: Situation,
    read_weights: bool = True,
) -> PreflightReport:
    """The preflight of `checkpoint`. A checkpoint that does not fit raises nothing: the report
    holds the findings.

    read_weights: False leaves keys and values to `load_policy`, which checks the same and is about
        to run.
    """
    findings: list[Finding] = []
    try:
        place = locate(Path(checkpoint).expanduser(), config)
        findings += check_tokenizer(place)
        with parameters_on_meta():
            policy = VLAPolicy(place.config, _tokenizer_or_none(place), place.vlm_folder)
        findings += check_architecture(policy, situation.device)
        findings += check_backbone(place.config, situation.backbone)
        findings += check_instruction(policy, situation.instruction)
        if read_weights:
            findings += check_weights(policy, place)
        findings += check_inputs(place.config, policy, situation)
        findings += check_proprioception(place.config, situation.robot)
        findings += check_meaning(place.config.action, situation.robot)
        findings += check_action(place.config, situation)
    except RoboVLMsError as error:
        findings.append(Finding("error", "checkpoint", str(error)))
    return PreflightReport(str(checkpoint), tuple(findings))


def _tokenizer_or_none(place: Place) -> Any:
    try:
        return load_tokenizer_of(place, required=False)
    except TokenizerError:
        return None


def check_tokenizer(place: Place) -> list[Finding]:
    """A checkpoint without a tokenizer can be checked and converted, not run."""
    try:
        load_tokenizer_of(place, required=True)
    except TokenizerError as error:
        return [Finding("warning", "tokenizer", f"{error} Without it configure refuses.")]
    return [Finding("ok", "tokenizer", "at hand")]


def check_architecture(policy: VLAPolicy, device: str) -> list[Finding]:
    """Parts, parameters, and memory needed against memory there is."""
    config = policy.config
    count = sum(p.numel() for p in policy.parameters())
    needed = int(count * DTYPES[config.vlm.precision].itemsize * MEMORY_MARGIN)
    free = available_memory(device)
    model = config.model
    head = config.action_head
    text = (
        f"{model.backbone} ({policy.vlm.hf_config.to_dict().get('model_type')}), head {head.type}, history "
        f"{model.history_type} of {model.history_length}, {count / 1e6:.1f} M parameters in {config.vlm.precision}"
    )
    memory = f"{needed / 1e9:.2f} GB needed on {device}, {free / 1e9:.2f} GB free"
    level: Level = "ok" if needed <= free else "error"
    if level == "error":
        memory += ". Choose another device, a smaller model, or vlm.precision bfloat16"
    return [
        Finding("ok", "architecture", text, {"parameters": count}),
        Finding(level, "memory", memory, {"needed": needed, "free": free}),
    ]


def check_backbone(config: PolicyConfig, backbone: str) -> list[Finding]:
    """The checkpoint's backbone against the node's parameter of that name; empty is any."""
    loaded = config.model.backbone
    if not backbone or backbone == loaded:
        return []
    text = f"parameter backbone = '{backbone}' but the policy's is '{loaded}'. Leave backbone empty"
    return [Finding("error", "backbone", text)]


def check_instruction(policy: VLAPolicy, instruction: str) -> list[Finding]:
    """The node's first instruction against the policy's vocabulary; empty is none."""
    if not instruction.strip() or policy.prompt is None:
        return []
    try:
        policy.prompt.encode([instruction])
    except InstructionRefused as error:
        return [Finding("error", "instruction", str(error))]
    return [Finding("ok", "instruction", f"'{instruction.strip()}'")]


def available_memory(device: str) -> int:
    """Bytes free on a device."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return int(kilobytes) * 1024


def check_weights(policy: VLAPolicy, place: Place) -> list[Finding]:
    """Every key accounted for, every value finite."""
    tensors = policy.vlm.adapt_tensors(read_tensors(place.weights))
    layout = KeyLayout(policy, tensors)
    tensors = with_tied_embedding(policy, tensors, layout.canonical)
    found, faults = match(policy, tensors, layout.canonical, str(place.weights), layout.ignored)
    findings = []
    for kind, keys in faults.items():
        if keys:
            text = (
                f"{len(keys)} {kind}: {listing(keys)}. The configuration is another model's, or the "
                "file is damaged."
            )
            findings.append(Finding("error", "weights", text, {"kind": kind, "keys": keys}))
    if findings:
        return findings
    kinds = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in found.values()}))
    return [Finding("ok", "weights", f"{len(found)} tensors ({kinds}), every key accounted for, all finite")]


def check_inputs(config: PolicyConfig, policy: VLAPolicy, situation: Situation) -> list[Finding]:
    """Cameras, image size, history spacing against the camera's rate."""
    findings = []
    if situation.cameras is not None:
        absent = [name for name in config.cameras if name not in situation.cameras]
        source = "the node's default" if situation.cameras_by_default else "at hand"
        text = f"expects {_words(config.cameras)}; {source} {_words(situation.cameras)}"
        level: Level = "ok"
        if absent and situation.cameras_by_default:
            level = "warning"
            text += ". Set the node's parameter `cameras` to the policy's names"
        elif absent:
            level = "error"
            text += f". Without {_words(absent)} it cannot run: configure that camera"
        findings.append(Finding(level, "cameras", text))
    else:
        findings.append(Finding("ok", "cameras", f"expects {_words(config.cameras)}"))
    findings.append(Finding("ok", "image size", f"{policy.vlm.image_size} pixels square"))
    step = config.model.history_step
    window = config.model.history_length
    if step is None and window > 1:
        findings.append(Finding("error", "history", "model.history_step is missing: the spacing in training (s)."))
    elif step is not None and window > 1:
        findings.append(_check_spacing(step, window, config.model.history_tolerance or step / 2, situation.camera_rate))
    return findings


def _check_spacing(step: float, window: int, tolerance: float, rate: float | None) -> Finding:
    text = f"{window} frames every {step:.4f} s"
    if rate is None:
        return Finding("ok", "history", text)
    text += f", camera every {1 / rate:.4f} s"
    if 1 / rate > step + 1e-6:
        text += f": the camera is slower than the history. Raise its rate to {1 / step:.1f} Hz"
        return Finding("error", "history", text)
    near = 0.5 / rate <= tolerance * 1.01  # rates are written with few digits
    if not near:
        text += f": a frame may lie {0.5 / rate:.4f} s from its place, {tolerance:.4f} s are tolerated"
    return Finding("ok" if near else "warning", "history", text)


def check_proprioception(config: PolicyConfig, robot: Robot | None) -> list[Finding]:
    """The state that the policy takes against the robot's joints, gripper and description."""
    proprioception = config.proprioception
    if robot is None or proprioception is None:
        return []
    findings: list[Finding] = []
    if "gripper" in proprioception.names and robot.gripper is None:
        text = f"takes the gripper's opening; robot '{robot.name}' has no gripper in its YAML"
        findings.append(Finding("error", "proprioception", text))
    posed = [name for name in proprioception.names if name.startswith("eef")]
    if posed and robot.controller.type == "chunk_only" and robot.description_path is None:
        text = f"takes {_words(posed)}; robot '{robot.name}' has no description file for it"
        findings.append(Finding("error", "proprioception", text))
    if "joint_positions" not in proprioception.names:
        return findings
    takes = proprioception.joints
    has = len(robot.joints)
    text = f"takes {takes} joint positions; robot '{robot.name}' has {has} joints"
    if takes != has:
        text += ". It was trained on another robot: give that one's YAML, or a policy of this robot"
    return [*findings, Finding("ok" if takes == has else "error", "proprioception", text)]


def check_meaning(action: ActionConfig | None, robot: Robot | None) -> list[Finding]:
    """Space, frame, rotation, composition, units, rate and gripper of the action's numbers."""
    if action is None:
        return []  # an error of check_action
    eef = action.space.startswith("eef")
    parts: list[str] = [action.space]
    if eef:
        parts += [f"in the {action.frame} frame", f"rotation as {action.rotation}"]
    if action.space.endswith("delta"):
        parts.append(action.composition)
    seconds = action.step_duration
    parts += [f"one unit is {action.unit}", f"a step every {seconds:g} s ({1 / seconds:.4g} Hz)"]
    findings = [Finding("ok", "action", ", ".join(parts))]
    gripper = action.gripper
    rule = {
        "threshold": "at once",
        "sticky": f"a change is held for {gripper.sticky_steps} steps",
        "late_close": f"{gripper.late_close_steps} steps in a row for class 1",
    }[gripper.rule]
    text = f"class {gripper.open_value} opens, class 1 above {gripper.threshold:g}; {rule}"
    findings.append(Finding("ok", "gripper", text))
    if action.space == "eef_pose" and action.frame != "base":
        text = f"eef_pose is expressed in the base frame, action.frame is '{action.frame}'"
        findings.append(Finding("error", "action", text))
    names = tuple(name for name in action.names if name != GRIPPER)
    joints = () if robot is None else robot.joints
    if not eef and names != joints and sorted(names) == sorted(joints):
        text = f"joints {_words(names)} are in another order than the robot's {_words(joints)}"
        findings.append(Finding("error", "action", text))
    return findings


def check_action(config: PolicyConfig, situation: Situation) -> list[Finding]:
    """Checks of the action's meaning against the robot, and of the chunk's length against the
    latency."""
    action = config.action
    if action is None:
        text = "the configuration says nothing about the action: space, frame, units, polarity. Add an action block."
        return [Finding("error", "action", text)]
    horizon = config.model.action_chunk_size * action.step_duration
    text = f"{config.model.action_chunk_size} steps of {action.step_duration:.4f} s"
    late = situation.latency is not None and horizon <= situation.latency
    if situation.latency is not None:
        text += f" = {horizon:.2f} s against a latency of {situation.latency:.2f} s"
    findings = [Finding("error" if late else "ok", "chunk", text)]
    robot = situation.robot
    if robot is not None and action.robot is not None and action.robot != robot.name:
        text = (
            f"are of robot '{action.robot}', this one is '{robot.name}'. Train on this robot, or set action.robot to "
            f"'{robot.name}' if its motions are the same."
        )
        findings.append(Finding("error", "statistics", text))
    elif not action.normalization:
        findings.append(Finding("warning", "statistics", "none: the head's -1..1 are units of the action as they are"))
    else:
        findings.append(Finding("ok", "statistics", ", then ".join(n.method for n in action.normalization)))
    return [*findings, *check_range(action, config.action_head.action_dim - 1, robot)]


def check_range(action: ActionConfig, dims: int, robot: Robot | None) -> list[Finding]:
    """The largest command that the head can give (tanh, -1..1) against the robot's limits."""
    low = np.full(dims, -1.0)
    high = np.full(dims, 1.0)
    for step in build_steps(action):
        low = step.decode(low)
        high = step.decode(high)
    largest = np.maximum(np.abs(low), np.abs(high))
    if action.space.startswith("joint"):
        return _check_joint_range(action, low, high, robot)
    if action.space == "eef_pose":
        return [Finding("ok", "range", f"positions up to {np.abs(largest[:3]).max():.2f} m from the base")]
    speed = float(np.linalg.norm(largest[:3]) / action.step_duration)
    turn = float(np.linalg.norm(largest[3:6]) / action.step_duration)
    text = f"at most {speed:.2f} m/s and {turn:.2f} rad/s"
    facts = {"speed": speed, "turn": turn}
    if robot is None or speed <= robot.limits.eef_speed:
        return [Finding("ok", "range", text, facts)]
    limit = robot.limits.eef_speed
    return [Finding("warning", "range", f"{text}, the robot's limit is {limit:.2f} m/s: the gate will slow it", facts)]


def _check_joint_range(action: ActionConfig, low: Any, high: Any, robot: Robot | None) -> list[Finding]:
    if robot is None:
        return [Finding("ok", "range", f"joint values from {low.min():.2f} to {high.max():.2f}")]
    if len(low) != len(robot.joints):
        text = f"{len(low)} joints in the policy, {len(robot.joints)} in robot '{robot.name}'"
        return [Finding("error", "range", f"{text}: it was trained on another robot.")]
    if action.space == "joint_delta":
        speeds = np.maximum(np.abs(low), np.abs(high)) / action.step_duration
        fast = [j for j, v, limit in zip(robot.joints, speeds, robot.limits.velocity, strict=True) if v > limit]
        text = f"up to {speeds.max():.2f} rad/s" + (f", beyond the limit of {_words(fast)}" if fast else "")
        return [Finding("warning" if fast else "ok", "range", text)]
    lower = np.array(robot.limits.position_lower)
    upper = np.array(robot.limits.position_upper)
    outside = (low < lower - JOINT_SLACK) | (high > upper + JOINT_SLACK)
    if outside.any():
        names = [j for j, bad in zip(robot.joints, outside, strict=True) if bad]
        text = f"positions beyond the limits of {_words(names)}: the statistics are of another robot"
        return [Finding("error", "range", text)]
    return [Finding("ok", "range", "within the joint limits")]


def _words(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
