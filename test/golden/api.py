"""The product as the golden answers use it: no other file of this folder imports it.

After a move or a rename this file alone follows. Everything comes in and goes out as numbers,
arrays, texts and dictionaries; objects of the product are only passed through.
"""

import contextlib
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy
from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.motion_guard import CommandRejected
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.schedule import ScheduleConfig, ScheduleRefused
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.types import (
    ActionChunk,
    ActionSpec,
    ChunkTiming,
    Observation,
    RobotState,
    TrajectoryCommand,
)
from robovlms_ros.inference.optimized.options import PARTS, FastPathOptions, options_for
from robovlms_ros.inference.session import PolicySession

Array = NDArray[np.float64]
PROCESSOR_PARTS = tuple(part for part in PARTS if part not in ("fused_weights", "cuda_graphs", "compile"))
SURPLUS = 64
"""Bytes behind the last field of a serialized message that are cut off at most."""
QUANTIZED = ("fp8",)


# Policies.


def checkpoints() -> list[str]:
    """Names of the shipped checkpoints."""
    return sorted(
        path.name
        for path in (share_directory() / "config" / "checkpoints").iterdir()
        if path.is_dir()
    )


def shipped_policy(name: str) -> Any:
    """A shipped checkpoint's policy."""
    return load_policy(share_directory() / "config" / "checkpoints" / name)


def tiny_policy(mapping: Mapping[str, Any]) -> Any:
    """A policy of a configuration; each weight follows from its name, not from a building order."""
    policy = build_policy(config_from_mapping(dict(mapping), "golden"))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            if parameter.ndim > 1:
                values = rng.normal(0.0, parameter.shape[-1] ** -0.5, parameter.shape)
            elif name.endswith(("_gate", "action_token")):
                values = rng.normal(0.0, 0.7, parameter.shape)
            else:
                continue
            parameter.copy_(torch.from_numpy(values))
    return policy


def observation(frame: Mapping[str, Any]) -> Any:
    """A frame of `golden_inputs.frames` as the policy takes it."""
    state = RobotState(
        frame["stamp_ns"], frame["positions"], frame["velocities"], frame["pose"], frame["gripper"]
    )
    return Observation(frame["stamp_ns"], frame["images"], frame["instruction"], state)


def fast_options(name: str) -> Any:
    """Options of the path `auto`, of one part alone, or of a quantised one; None for `plain`."""
    if name == "plain":
        return None
    if name in ("auto", *QUANTIZED):
        return options_for(name, "cpu")
    return FastPathOptions.only(name)


def infer(policy: Any, frames: Sequence[Mapping[str, Any]], path: str = "plain") -> dict[str, Any]:
    """The chunks of one session over consecutive frames.

    values (F, n, D) in SI units, normalised (F, n, D) on the head's scale, history: [places filled,
    places] per frame.
    """
    session = PolicySession(policy, fast=fast_options(path))
    chunks = []
    normalised = []
    history = []
    for frame in frames:
        chunks.append(session.predict_action_chunk(observation(frame)))
        normalised.append(session.normalised)
        history.append(list(session.history_fill))
        session.finish()
    spec = chunks[0].spec
    return {
        "values": np.stack([chunk.values for chunk in chunks]),
        "normalised": np.stack(normalised),
        "history": history,
        "path": session.path,
        "sequence": [chunk.sequence for chunk in chunks],
        "stamps_ns": [chunk.stamp_ns for chunk in chunks],
        "spec": [
            spec.space,
            spec.frame,
            spec.rotation,
            spec.composition,
            spec.step_duration,
            *spec.names,
        ],
    }


# Motion.


class Stage:
    """One robot's executor; time and state come in as numbers, decisions go out as dictionaries."""

    def __init__(self, robot: str, strategy: str = "blend", kinematics: bool = False) -> None:
        self.robot = load_robot(robot)
        self.joints = self.robot.joints
        self.home = np.array(self.robot.home)
        self.kinematics = Kinematics.for_robot(self.robot) if kinematics else None
        schedule = ScheduleConfig(strategy=strategy)  # type: ignore[arg-type]
        self.executor = build_executor(self.robot, self.kinematics, schedule)

    def forward(self, positions: Array) -> Array:
        """The tool's pose (4, 4) at joint positions (J,)."""
        assert self.kinematics is not None
        return self.kinematics.forward(positions)

    def chunk(
        self, stamp_ns: int, values: Array, kind: Sequence[str], step: float, words: str
    ) -> Any:
        """A chunk. kind: space, frame, rotation and composition."""
        space = kind[0]
        columns = self.joints if space.startswith("joint") else ("x", "y", "z", "rx", "ry", "rz")
        spec = ActionSpec(*kind, step, (*columns, "gripper"))  # type: ignore[arg-type]
        return ActionChunk(stamp_ns, values, spec, words, "golden")

    def decide(
        self,
        chunk: Any,
        then: tuple[int, Array],
        measured: tuple[int, Array],
        now_ns: int,
        dry: bool = False,
        clock: Callable[[], int] | None = None,
        speed: Array | None = None,
    ) -> dict[str, Any]:
        """The decision on a chunk. then, measured: stamp, positions (J,) at its stamp, and now."""
        at_stamp = RobotState(then[0], then[1], np.zeros_like(then[1]))
        present = RobotState(measured[0], measured[1], np.zeros_like(measured[1]))
        if dry:
            decision = self.executor.dry_run_chunk(chunk, at_stamp, present, now_ns)
        else:
            decision = self.executor.on_chunk(chunk, at_stamp, present, now_ns, speed, clock=clock)
        verdict = decision.verdict
        plan = decision.plan
        return {
            "kind": verdict.kind,
            # Called authority when the answers were recorded.
            "reason": verdict.reason.replace("the speed scaling is", "the authority is"),
            "deactivate": verdict.deactivate,
            "gripper": None if decision.gripper is None else float(decision.gripper),
            "plan": None if plan is None else (plan.times_ns, plan.positions, plan.velocities),
            "command": None if decision.command is None else points(decision.command),
        }

    def smooth_stop(self, now_ns: int) -> dict[str, Any]:
        """The stop's command, or the reason why there is none."""
        nothing = {"deactivate": False, "gripper": None, "plan": None}
        try:
            command = self.executor.smooth_stop(now_ns)
        except (ScheduleRefused, CommandRejected) as error:
            return {"kind": "no stop", "reason": str(error), "command": None, **nothing}
        return {"kind": "stop", "reason": "", "command": points(command), **nothing}

    def restart(self) -> None:
        """Activation, or the end of a pause."""
        self.executor.restart()

    def reset(self) -> None:
        """A new episode."""
        self.executor.reset()

    def commanded(self, t_ns: int) -> tuple[Array, Array] | None:
        """Commanded positions and velocities (J,) at a time; None for none."""
        return self.executor.commanded(t_ns)

    def gripper_at(self, t_ns: int) -> float | None:
        """The opening to be commanded at a time."""
        opening = self.executor.gripper_at(t_ns)
        return None if opening is None else float(opening)


def points(command: Any) -> tuple[int, Array, Array, Array]:
    """Stamp (ns), times (N,), positions and velocities (N, J) of a trajectory."""
    return command.stamp_ns, command.times, command.positions, command.velocities


# Bags and reports.


def record_bag(
    path: Path,
    episodes: Sequence[tuple[int, str]],
    seconds: float,
    draw: Callable[[int, str], NDArray[np.uint8]],
) -> list[dict[str, Any]]:
    """Record episodes (seed, instruction) of the expert in the simulated arm; returns outcomes.

    draw: gives the image of a camera at a time (ns), in place of the renderer's, which differs
    between machines.
    """
    from robovlms_ros.sim.bags import record_episodes
    from robovlms_ros.sim.rollout import EpisodeSettings, ExpertSession, build_loop
    from robovlms_ros.sim.world import SimWorld

    class DrawnWorld(SimWorld):
        def render(self, camera: str) -> NDArray[np.uint8]:
            return draw(self.time_ns, camera)

    world = DrawnWorld(episodes[0][0])
    loop = build_loop(world, "panda", EpisodeSettings(limit=seconds))
    outcomes = record_episodes(path, loop, ExpertSession(world), load_robot("panda"), episodes)
    return [dict(vars(outcome)) for outcome in outcomes]


def bag_messages(path: Path) -> Iterable[tuple[str, int, Any]]:
    """(topic, log time, decoded message) of every message of a bag."""
    from robovlms_ros.evaluation.bags.reader import Bag, RawMessage

    with Bag(path) as bag:
        for raw in bag.messages(set(bag.topics)):
            if isinstance(raw, RawMessage):
                yield raw.topic, raw.log_ns, bag.decode(raw)


def evaluate(bag: Path, output: Path, options: Sequence[str]) -> tuple[int, dict[str, Any], str]:
    """`robovlms eval` on a bag: exit code, report.json, and chunks.csv as text."""
    from robovlms_ros.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(["eval", str(bag), "--output", str(output), *options])
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return code, report, (output / "chunks.csv").read_text(encoding="utf-8")


def rendered(tabletop: bool, seed: int) -> dict[str, NDArray[np.uint8]]:
    """Both cameras' images of a scene of the simulated arm."""
    from robovlms_ros.sim.world import SimWorld

    world = SimWorld(seed, task="all" if tabletop else "cubes")
    images = {camera: world.render(camera) for camera in ("static", "wrist")}
    world.close()
    return images


# Messages.


def messages(
    chunk: Mapping[str, Any], command: Mapping[str, Any], status: Mapping[str, Any]
) -> dict[str, Any]:
    """The messages of the ROS layer, made of fixed values, by name; needs rclpy.

    status: fields of the node's report. reaction, inference: durations (s) behind the percentiles.
    """
    from robovlms_ros.ros.messages import chunk_to_message, trajectory_to_message
    from robovlms_ros.ros.status import Latencies, NodeStatus, diagnostics_message, status_message

    def latencies(seconds: Sequence[float]) -> Latencies:
        kept = Latencies()
        for value in seconds:
            kept.add(value)
        return kept

    spec = ActionSpec(*chunk["spec"], tuple(chunk["names"]))
    made = ActionChunk(
        chunk["stamp_ns"],
        chunk["values"],
        spec,
        chunk["instruction"],
        chunk["policy_id"],
        chunk["sequence"],
    )
    fields = {
        name: value
        for name, value in status.items()
        if name not in ("reaction", "inference", "watched")
    }
    fields["speed_scaling"] = fields.pop("authority")
    report = NodeStatus(
        **fields, reaction=latencies(status["reaction"]), inference=latencies(status["inference"])
    )
    now_ns = chunk["stamp_ns"] + 1
    return {
        "chunk": chunk_to_message(made, "panda_link0"),
        "timed_chunk": chunk_to_message(
            replace(made, timing=ChunkTiming(*chunk["timing"])), "panda_link0"
        ),
        "trajectory": trajectory_to_message(trajectory(command)),
        "status": status_message(report, now_ns),
        "first_status": status_message(NodeStatus(), now_ns),
        "diagnostics": diagnostics_message(
            report, "/arm/vla_node", dict(status["watched"]), now_ns
        ),
        "first_diagnostics": diagnostics_message(NodeStatus(), "/vla_node", {}, now_ns),
    }


def serialized(message: Any) -> tuple[str, bytes]:
    """The type of a message and its bytes on the wire."""
    from rclpy.serialization import serialize_message

    package, _, _ = type(message).__module__.partition(".")
    return f"{package}/msg/{type(message).__name__}", serialize_message(message)


def canonical(kind: str, data: bytes) -> bytes:
    """The bytes of a message, read and written again by another library.

    The middleware leaves gaps between fields, and bytes behind the last field, as it finds them in
    memory. The other library fills gaps with zeros and reads no surplus, which is cut off here.
    """
    from robovlms_ros.evaluation.bags.types import typestore

    store = typestore()
    for surplus in range(0, SURPLUS, 4):
        try:
            message = store.deserialize_cdr(data[: len(data) - surplus], kind)
        except AssertionError:
            continue
        return bytes(store.serialize_cdr(message, kind))
    raise ValueError(f"{kind}: {len(data)} bytes are not a message of this type.")


def trajectory(command: Mapping[str, Any]) -> Any:
    """A trajectory from plain values."""
    return TrajectoryCommand(
        command["stamp_ns"],
        tuple(command["joints"]),
        command["times"],
        command["positions"],
        command["velocities"],
    )


def adapter_messages(
    node: Any,
    blocks: Mapping[str, Mapping[str, Any]],
    command: Mapping[str, Any],
    now_ns: int,
    tick_ns: int,
    ticks: int,
    openings: Sequence[float],
) -> dict[str, list[Any]]:
    """Messages that the adapters of an arm's and a gripper's controllers publish, by topic.

    blocks: `controller` and `gripper` of the robot's YAML, in place of the Panda's. The command is
    sent at now_ns, then the arm's adapter ticks. node: an rclpy node; nothing is spun.
    """
    from robovlms_ros.control.motion_guard import MotionGuard
    from robovlms_ros.control.robot import parse_robot
    from robovlms_ros.core.schema import read_mapping
    from robovlms_ros.ros.controllers.base import Context
    from robovlms_ros.ros.controllers.table import make_arm, make_gripper

    path = share_directory() / "config" / "robots" / "panda.yaml"
    robot = parse_robot({**read_mapping(path), **blocks}, "golden", path.parent)
    guard = MotionGuard(robot)
    state = RobotState(now_ns, command["positions"][0], np.zeros(len(robot.joints)))
    context = Context(node, robot, lambda: state, Kinematics.for_robot(robot))
    sent: dict[str, list[Any]] = {}
    with _captured(node, sent):
        arm = make_arm(context)
        gripper = make_gripper(context)
        assert arm is not None
        assert gripper is not None
        arm.prepare()
        arm.send(guard.admit(trajectory(command), now_ns, state), now_ns)
        for tick in range(1, ticks + 1):
            arm.tick(now_ns + tick * tick_ns)
        for opening in openings:
            gripper.update(guard.admit_opening(opening))
    arm.close()
    gripper.close()
    return sent


@contextlib.contextmanager
def _captured(node: Any, sent: dict[str, list[Any]]) -> Any:
    """Publishers that a node makes meanwhile keep their messages in `sent` and send none."""
    create = node.create_publisher

    def create_quiet(kind: type, topic: str, *args: Any, **kwargs: Any) -> Any:
        publisher = create(kind, topic, *args, **kwargs)
        publisher.publish = sent.setdefault(topic, []).append
        return publisher

    node.create_publisher = create_quiet
    try:
        yield
    finally:
        node.create_publisher = create


# Training.


class FixedWindows(Dataset):  # type: ignore[type-arg]
    """A data set of given windows."""

    def __init__(self, items: Iterable[Mapping[str, Any]]) -> None:
        self._items = list(items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._items[index]


def train(
    policy: Any, mapping: Mapping[str, Any], windows: Iterable[Mapping[str, Any]], folder: Path
) -> list[Any]:
    """The values of every step of the general engine."""
    from robovlms_ros.training.engine.fit import fit

    steps: list[dict[str, float]] = []
    data = FixedWindows(windows)
    config = config_from_mapping(dict(mapping), "golden")
    fit(
        policy,
        data,
        data,
        config,
        folder,
        lambda step, values: steps.append({"step": step, **values}),
    )
    return steps


def validation_rows(folder: Path) -> str:
    """The table of validation losses that the general engine wrote."""
    return (folder / "validation.csv").read_text(encoding="utf-8")


def cubes() -> int:
    """The number of cubes of the easy demo."""
    from robovlms_ros.sim.tasks.language import INSTRUCTIONS

    return len(INSTRUCTIONS)


def cube_columns(columns: dict[str, Any], places: Any, followed: Any) -> dict[str, Any]:
    """The columns of a shard of the two cubes.

    columns: `labels` (F, 2, ...) in the order of the cubes. places: (F, 2, 3). followed: (F,) the
    number of the named cube.
    """
    from robovlms_ros.sim.tasks.objects import THINGS
    from robovlms_ros.sim.training.shards import CUBE_GOALS

    order = np.stack((followed, 1 - followed), axis=1)  # the followed goal's label is the first
    things = np.full((len(places), len(THINGS), 3), np.nan, np.float32)
    things[:, [THINGS.index("red cube"), THINGS.index("green cube")]] = places
    return {
        **columns,
        "labels": np.take_along_axis(columns["labels"], order[:, :, None, None], axis=1),
        "things": things,
        "goals": np.array(CUBE_GOALS)[order],
        "scenes": columns["episodes"],
    }


def tabletop() -> tuple[int, int, int]:
    """The numbers of things, plates and goals of the tabletop tasks."""
    from robovlms_ros.sim.tasks.language import goals
    from robovlms_ros.sim.tasks.objects import PLATES, THINGS

    return len(THINGS), len(PLATES), len(goals())


def train_simulated(
    policy: Any,
    shard: Path,
    folder: Path,
    tabletop: bool,
    steps: int,
    rate: float,
    seeing: bool = False,
    ground_truth: bool = True,
) -> list[dict[str, float]]:
    """Losses of steps of the simulated arm's trainer, on the shards at `shard`.

    tabletop: the tabletop's learner, else the easy demo's. seeing: the tabletop's vision stage. The
    weights of auxiliary heads follow from their names, as those of `tiny_policy`.
    """
    from robovlms_ros.sim.training.objectives import CubeObjective, TaskObjective
    from robovlms_ros.sim.training.pipeline import build_trainer
    from robovlms_ros.sim.training.plans import Recipe, TrainingStage
    from robovlms_ros.sim.training.shards import DemonstrationSet, ShardFrames, find_shards

    def objective(*given: Any) -> Any:
        if tabletop:
            return TaskObjective(*given, 2, ground_truth)
        return CubeObjective(*given, ground_truth)

    trainer = build_trainer(policy, Recipe(windows=3), folder, objective)
    with torch.no_grad():
        for name, parameter in trainer.module.named_parameters():
            if not name.startswith("policy."):
                rng = np.random.default_rng(zlib.crc32(name.encode()))
                values = rng.normal(0.0, max(parameter.shape[-1], 4) ** -0.5, parameter.shape)
                parameter.copy_(torch.from_numpy(values))
    data = DemonstrationSet(ShardFrames(trainer.module).add(find_shards(shard)), 2, 2)
    stage = TrainingStage(steps, rate, seeing=seeing)
    rows = []
    for _ in range(steps):
        losses = trainer.train_step(data, rate, stage)
        names = {"loss": "total", "target_error_m": "target_error"}
        rows.append(
            {names.get(name, name): float(losses[name]) for name in trainer.module.reported}
        )
    with trainer.averaged():
        size = sum(float(p.detach().double().abs().sum()) for p in trainer.policy.parameters())
    rows.append({"averaged weights": size})
    return rows


def ticking(start_ns: int, first_ns: int, then_ns: int) -> Callable[[], int]:
    """A clock: `first_ns` after the start at its first reading, `then_ns` more at each other."""
    readings = itertools.count()
    return lambda: start_ns + first_ns + then_ns * next(readings)
