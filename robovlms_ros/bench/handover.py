"""Take-overs in tabletop episodes: a scripted person drives for a while and hands back.

Everything between camera and controller is the node's own: runner, executor, monitor, gate, guard
and `HumanControl` with its messages. Time is the simulator's and messages are delivered in one
process, so that results do not depend on the machine's load. Each scene runs twice: by the policy
alone, and with a take-over at a random moment of that episode. The person is the scripted expert,
as a tool velocity on `~/human/twist` and an opening on `~/human/gripper`.
"""

import argparse
import datetime
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Float64
from std_srvs.srv import Trigger

from robovlms_ros.control.camera_check import image_digest
from robovlms_ros.control.collision_model import load_collision_model
from robovlms_ros.control.controller_types import OneJointTrajectory
from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.faults import SafetyMonitorConfig
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.motion_guard import AdmittedCommand
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.safety_monitor import SafetyMonitor
from robovlms_ros.control.schedule import ScheduleConfig
from robovlms_ros.control.trajectory_controller_model import TrajectoryController
from robovlms_ros.core.statistics import wilson_interval
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.text_table import aligned
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    Array,
    Observation,
    RobotState,
    RoboVLMsError,
)
from robovlms_ros.observations.joint_states import JointStateBuffer
from robovlms_ros.ros.controllers.base import Arm, Gripper
from robovlms_ros.ros.human_control import HumanControl
from robovlms_ros.ros.policy_runner import CommandInterfaces, PolicyRunner
from robovlms_ros.ros.status import NodeStatus
from robovlms_ros.sim.rollout import EpisodeSettings, ExpertSession
from robovlms_ros.sim.scenes import load_agent
from robovlms_ros.sim.tasks.base import TABLE_TASKS
from robovlms_ros.sim.tasks.evaluate import TIME_LIMIT
from robovlms_ros.sim.tasks.expert import STEP
from robovlms_ros.sim.tasks.language import meaning
from robovlms_ros.sim.world import ARM_JOINTS, CAMERAS, START_NS, TICK_NS, SimWorld, WorldError

ROBOT = "panda"
FRAME_NS = round(STEP * NANOSECONDS)
STATES_TICKS = 5
TICKS = 25
"""Ticks of the simulator between two of the node's (20 Hz)."""

WINDOW_NS = NANOSECONDS
"""The motion from a hand-over on, for so long, is compared with that of the policy alone."""

DRIVES = (0.5, 2.0)
"""s for which the person drives, drawn uniformly."""

AIM = 1.1
"""Largest step at a hand-over over that of the policy alone."""


class MessageEndpoints:
    """The part of a node that `HumanControl` uses; messages are delivered at once."""

    work_group = None

    def __init__(self) -> None:
        self._callbacks: dict[str, Callable[..., Any]] = {}

    def create_publisher(self, kind: type, name: str, qos: Any, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(publish=lambda message: None)

    def create_service(self, kind: type, name: str, callback: Callable[..., Any], **_: Any) -> None:
        self._callbacks[name] = callback

    def create_subscription(
        self, kind: type, name: str, callback: Callable[..., Any], qos: Any, **_: Any
    ) -> None:
        self._callbacks[name] = callback

    def publish(self, name: str, message: Any) -> None:
        """Deliver a message to the topic's subscription."""
        self._callbacks[name](message)

    def call(self, name: str) -> None:
        """Call a Trigger. Raises WorldError with its message where it fails."""
        response = self._callbacks[name](Trigger.Request(), Trigger.Response())
        if not response.success:
            raise WorldError(f"{name}: {response.message}")


class RecordingController(TrajectoryController):
    """The arm's controller; `commands` holds its command of every cycle, (J,) rad."""

    def __init__(self, joints: tuple[str, ...]) -> None:
        super().__init__(joints)
        self.commands: list[Array] = []

    def update(self, *arguments: Any, **named: Any) -> tuple[Array, Array]:
        command = super().update(*arguments, **named)
        self.commands.append(np.array(command[0]))
        return command


class WorldArm(Arm):
    """Hands commands to the simulated arm's controller, and keeps the times of sending (ns)."""

    name = "the simulated arm"

    def __init__(self, world: SimWorld) -> None:
        self._world = world
        self.sent_ns: list[int] = []

    def _send(self, command: AdmittedCommand, now_ns: int) -> None:
        self.sent_ns.append(now_ns)
        self._world.arm_controller.accept(command, now_ns)

    def listeners(self) -> int:
        return 1

    def close(self) -> None: ...


class WorldGripper(Gripper):
    """Hands openings to the simulated gripper's controller."""

    def __init__(self, world: SimWorld, spec: OneJointTrajectory) -> None:
        super().__init__(spec)
        self._world = world
        self._one_joint = spec

    def _command(self, position: float) -> None:
        command = self._one_joint.command(position)
        self._world.gripper_controller.accept(command, self._world.time_ns)

    def listeners(self) -> int:
        return 1

    def close(self) -> None: ...


class WorldObservations:
    """The runner's observations of the simulated arm. instruction: in force throughout."""

    def __init__(self, world: SimWorld, kinematics: Kinematics, instruction: str) -> None:
        self._world = world
        self._kinematics = kinematics
        self._buffer = JointStateBuffer(world.joints)
        self.instruction = instruction

    def read(self) -> RobotState:
        """Take the arm's state now into the buffer; it has the tool's pose and the opening."""
        state = self._world.joint_state()
        message = SimpleNamespace(
            name=list(self._world.joints), position=state.positions, velocity=state.velocities
        )
        self._buffer.add(message, state.stamp_ns)
        pose = self._kinematics.forward(state.positions)
        return RobotState(
            state.stamp_ns, state.positions, state.velocities, pose, state.gripper
        )

    def set_instruction(self, text: str) -> None:
        self.instruction = text

    def state_at(self, stamp_ns: int) -> RobotState:
        return self._buffer.at(stamp_ns, STEP)

    def measured(self) -> RobotState | None:
        return self._buffer.latest()

    def speed(self) -> Array:
        return self._buffer.speed()

    def problem(self, now_ns: int) -> str | None:
        return None

    def topic_of(self, fault: str) -> str:
        return ""

    def clear_joint_states(self) -> None:
        self._buffer.clear()

    def clear(self) -> None:
        self._buffer.clear()


class SimulatedWorker:
    """The inference worker in simulated time: a chunk is ready a drawn latency after its image.

    Frames that come during an inference go into the history, as with `InferenceWorker`. stamps: of
    every frame that the session received, ns.
    """

    def __init__(self, session: Any, rng: np.random.Generator) -> None:
        self._session = session
        self._rng = rng
        self.waiting: list[Observation] = []
        self._ready: tuple[int, ActionChunk] | None = None
        self.stamps: list[int] = []

    @property
    def inferring_since_ns(self) -> int | None:
        return None

    def submit(self, observation: Observation) -> None:
        self.waiting.append(observation)

    def reset(self) -> None:
        self.waiting.clear()
        self._ready = None
        self._session.reset()

    def advance(self, now_ns: int) -> ActionChunk | None:
        """Begin an inference where none runs; the chunk that is ready now."""
        chunk = None
        if self._ready is not None and now_ns >= self._ready[0]:
            chunk = self._ready[1]
            self._ready = None
        if self._ready is None and self.waiting:
            *older, newest = self.waiting
            self.waiting.clear()
            for frame in older:
                self._session.observe(frame)
            latency = self._rng.uniform(*EpisodeSettings().latency)
            answer = self._session.predict_action_chunk(newest)
            self._ready = now_ns + round(latency * NANOSECONDS), answer
            self.stamps += [frame.stamp_ns for frame in (*older, newest)]
        return chunk


@dataclass(frozen=True)
class TakeOver:
    """A person drives from `begin`, s after the episode's start, for `duration` s."""

    begin: float
    duration: float


@dataclass(frozen=True)
class EpisodeMotion:
    """One episode. success_s: s, None without success. frames, lost: images, and those that the
    history lacks. person_commands: messages sent. back_s: from the hand-back to the policy's first
    command. refusals: of the policy's chunks. commands: (N, J) rad, one per 2 ms; begin_tick and
    back_tick: the hand-overs among them, None without a take-over."""

    success_s: float | None
    frames: int
    lost: int
    refusals: int
    commands: Array
    begin_tick: int | None = None
    back_tick: int | None = None
    back_s: float | None = None
    person_commands: int = 0

    def peaks(self, begin: int = 0, end: int | None = None) -> tuple[float, float]:
        """Largest command step (mrad per 2 ms) and acceleration (rad/s^2) between two ticks."""
        part = self.commands[max(begin - 2, 0) : end]
        steps = np.diff(part, axis=0)
        changes = np.diff(steps, axis=0)
        acceleration = np.abs(changes).max(initial=0.0) / (TICK_NS / NANOSECONDS) ** 2
        return 1e3 * float(np.abs(steps).max()), float(acceleration)


class HandoverStage:
    """One world, one policy session; `run` is one episode."""

    def __init__(self, checkpoint: str) -> None:
        self.robot = load_robot(ROBOT)
        self.world = SimWorld(0, task="all")
        self.session = load_agent(checkpoint) if checkpoint else ExpertSession(self.world)
        self.kinematics = Kinematics.for_robot(self.robot)

    def close(self) -> None:
        """Free the renderer."""
        self.world.close()

    def run(self, task: str, seed: int, take_over: TakeOver | None) -> EpisodeMotion:
        """The scene's own instruction, by the policy, with a take-over or without."""
        world = self.world
        world.set_task(task)
        world.reset(seed)
        # As in `sim.scenes`: a later start would round differently.
        world.time_ns = START_NS
        controller = RecordingController(ARM_JOINTS)
        world.arm_controller = controller
        return _Episode(self, controller, seed).run(take_over)


class _Episode:
    """One episode of a stage, tick by tick: runner, monitor and executor wired as in the node."""

    def __init__(self, stage: HandoverStage, controller: RecordingController, seed: int) -> None:
        world = stage.world
        robot = stage.robot
        assert isinstance(robot.gripper, OneJointTrajectory)
        self._world = world
        self._frame = robot.base_frame
        self._controller = controller
        self._observations = WorldObservations(world, stage.kinematics, world.sentence)
        self._monitor = SafetyMonitor(SafetyMonitorConfig(), tuple(CAMERAS), world.time_ns)
        self._monitor.instruction(world.sentence)
        executor = build_executor(robot, stage.kinematics, collision=load_collision_model(robot))
        self._arm = WorldArm(world)
        gripper = WorldGripper(world, robot.gripper)
        self._report = NodeStatus()
        self._runner = PolicyRunner(
            self._observations,
            self._monitor,
            CommandInterfaces(executor, self._arm, gripper, ScheduleConfig().lead),
            lambda: world.time_ns,
            self._report,
            lambda line: None,
            steady_ns=lambda: 0,
        )
        self._endpoints = MessageEndpoints()
        HumanControl(
            self._endpoints,  # type: ignore[arg-type]
            self._report,
            lambda: world.time_ns,
            lambda: self._runner,
            lambda: None,
            lambda line: None,
        )
        self._worker = SimulatedWorker(stage.session, np.random.default_rng((seed, 2)))
        self._captured: list[int] = []
        self._person_commands = 0

    def run(self, take_over: TakeOver | None) -> EpisodeMotion:
        """See HandoverStage.run."""
        world = self._world
        judge = world.judge(self._observations.instruction)
        start_ns = world.time_ns
        begin_ns = back_ns = None
        limit = TIME_LIMIT
        if take_over is not None:
            begin_ns = start_ns + round(take_over.begin * NANOSECONDS) // TICK_NS * TICK_NS
            back_ns = begin_ns + round(take_over.duration * NANOSECONDS) // TICK_NS * TICK_NS
            limit += take_over.duration
        self._observations.read()
        self._runner.start(self._worker)
        success_s = None
        end_ns = start_ns + round(limit * NANOSECONDS)
        while world.time_ns < end_ns:
            now = world.time_ns
            tick = (now - start_ns) // TICK_NS
            if tick % STATES_TICKS == 0:
                state = self._observations.read()
                self._monitor.joint_state(now, state.positions, now)
            if now == begin_ns:
                self._endpoints.call("~/take_over")
            if now == back_ns:
                self._endpoints.call("~/hand_back")
            if (now - start_ns) % FRAME_NS == 0:
                self._capture(state)
                done, _ = judge.look(world.ground_truth())
                if done and (back_ns is None or now > back_ns):
                    success_s = (now - start_ns) / NANOSECONDS
                    break
                if self._runner.person_drives:
                    self._drive(state)
            chunk = self._worker.advance(now)
            if chunk is not None:
                self._runner.on_chunk(chunk)
            if tick % TICKS == 0:
                self._runner.tick()
            world.step()
        return self._result(success_s, start_ns, begin_ns, back_ns)

    def _capture(self, state: RobotState) -> None:
        world = self._world
        images = {name: world.render(name) for name in CAMERAS}
        for name, image in images.items():
            digest = image_digest(image.tobytes())
            self._monitor.image(name, world.time_ns, digest, world.time_ns)
        self._captured.append(world.time_ns)
        instruction = self._observations.instruction
        self._runner.observe(Observation(world.time_ns, images, instruction, state))

    def _drive(self, state: RobotState) -> None:
        """The expert's next step as a tool velocity and an opening."""
        assert state.eef_pose is not None and state.gripper is not None
        goal = meaning(self._observations.instruction)
        action = self._world.expert(goal, state.eef_pose, state.gripper).chunk()[0]
        message = TwistStamped()
        message.header.frame_id = self._frame
        linear = message.twist.linear
        angular = message.twist.angular
        linear.x, linear.y, linear.z = (action[:3] / STEP).tolist()
        angular.x, angular.y, angular.z = (action[3:6] / STEP).tolist()
        self._endpoints.publish("~/human/twist", message)
        self._endpoints.publish("~/human/gripper", Float64(data=float(action[6])))
        self._person_commands += 1

    def _result(
        self, success_s: float | None, start_ns: int, begin_ns: int | None, back_ns: int | None
    ) -> EpisodeMotion:
        received = set(self._worker.stamps) | {frame.stamp_ns for frame in self._worker.waiting}
        lost = sum(stamp not in received for stamp in self._captured)
        refusals = self._report.refusals
        commands = np.array(self._controller.commands)
        frames = len(self._captured)
        if begin_ns is None or back_ns is None:
            return EpisodeMotion(success_s, frames, lost, refusals, commands)
        after = [t for t in self._arm.sent_ns if t >= back_ns]
        back_s = (after[0] - back_ns) / NANOSECONDS if after else None
        return EpisodeMotion(
            success_s, frames, lost, refusals, commands, (begin_ns - start_ns) // TICK_NS,
            (back_ns - start_ns) // TICK_NS, back_s, self._person_commands,
        )


@dataclass(frozen=True)
class HandoverRow:
    """One scene. Largest steps (mrad per 2 ms) and accelerations (rad/s^2) of the commands: of the
    policy alone over its episode, and in the second after each hand-over."""

    task: str
    seed: int
    begin_s: float
    drives_s: float
    alone_success: bool
    success: bool
    alone_step: float
    alone_acceleration: float
    take_step: float
    take_acceleration: float
    back_step: float
    back_acceleration: float
    frames: int
    lost: int
    back_s: float | None
    person_commands: int
    refusals: int


def measure(stage: HandoverStage, task: str, seed: int) -> HandoverRow:
    """Run one scene by the policy alone and with a take-over."""
    alone = stage.run(task, seed, None)
    rng = np.random.default_rng((seed, list(TABLE_TASKS).index(task), 7))
    # The first 0.3 s have no chunk yet; the last moments are no episode to hand back to.
    ends = alone.success_s or TIME_LIMIT
    begin = float(rng.uniform(0.3, max(0.4, ends - 0.5)))
    take_over = TakeOver(begin, float(rng.uniform(*DRIVES)))
    driven = stage.run(task, seed, take_over)
    assert driven.begin_tick is not None and driven.back_tick is not None
    window = WINDOW_NS // TICK_NS
    alone_step, alone_acceleration = alone.peaks()
    take = driven.peaks(driven.begin_tick, min(driven.begin_tick + window, driven.back_tick))
    back = driven.peaks(driven.back_tick, driven.back_tick + window)
    return HandoverRow(
        task, seed, take_over.begin, take_over.duration, alone.success_s is not None,
        driven.success_s is not None, alone_step, alone_acceleration, *take, *back, driven.frames,
        driven.lost, driven.back_s, driven.person_commands, driven.refusals,
    )


def summary(rows: Sequence[HandoverRow]) -> dict[str, Any]:
    """The figures of the page: worst steps, their ratios to the policy alone, frames, success."""
    count = len(rows)
    steps = {
        name: max(getattr(row, f"{name}_step") for row in rows)
        for name in ("alone", "take", "back")
    }
    accelerations = {
        name: max(getattr(row, f"{name}_acceleration") for row in rows)
        for name in ("alone", "take", "back")
    }
    success = sum(row.success for row in rows)
    alone = sum(row.alone_success for row in rows)
    delays = [row.back_s for row in rows if row.back_s is not None]
    return {
        "take_overs": count,
        "step_mrad": steps,
        "acceleration": accelerations,
        "step_ratio": max(steps["take"], steps["back"]) / steps["alone"],
        "acceleration_ratio": max(accelerations["take"], accelerations["back"])
        / accelerations["alone"],
        "frames": sum(row.frames for row in rows),
        "lost_frames": sum(row.lost for row in rows),
        "success": success,
        "success_ci95": list(wilson_interval(success, count)),
        "alone_success": alone,
        "alone_ci95": list(wilson_interval(alone, count)),
        "longest_to_policy_s": max(delays, default=None),
        "person_commands": sum(row.person_commands for row in rows),
        "refusals": sum(row.refusals for row in rows),
    }


def run(args: argparse.Namespace) -> int:
    """Measure; returns 1 where a step is beyond the aim or a frame is lost."""
    if args.take_overs < 1:
        raise RoboVLMsError(f"--take-overs {args.take_overs}: must be 1 or more.")
    tasks = list(TABLE_TASKS)
    stage = HandoverStage(args.checkpoint)
    rows = []
    try:
        for index in range(args.take_overs):
            row = measure(stage, tasks[index % len(tasks)], args.seed + index // len(tasks))
            rows.append(row)
            found = summary(rows)
            # After every scene: an interrupted run keeps its numbers.
            write_json(args.json, {**found, "rows": [asdict(row) for row in rows]})
            if args.markdown:
                args.markdown.write_text(page(found, args.checkpoint), encoding="utf-8")
            outcome = f"alone {_word(row.alone_success)}, take-over {_word(row.success)}"
            count = f"{index + 1}/{args.take_overs}"
            print(f"[{count}] {row.task}, scene {row.seed}: {outcome}", flush=True)
    finally:
        stage.close()
    print(aligned(*_table(found)))
    return int(found["step_ratio"] > AIM or found["lost_frames"] > 0)


def _word(success: bool) -> str:
    return "success" if success else "failure"


def _table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    def success(name: str, interval: str) -> str:
        low, high = found[interval]
        return f"{found[name]} of {found['take_overs']} ({low:.0%} to {high:.0%})"

    header = ["", "policy alone", "take-over", "hand-back"]
    steps = found["step_mrad"]
    accelerations = found["acceleration"]
    return header, [
        ["worst command step (mrad per 2 ms)", *(f"{steps[k]:.2f}" for k in steps)],
        ["worst acceleration (rad/s²)", *(f"{accelerations[k]:.1f}" for k in accelerations)],
        ["success", success("alone_success", "alone_ci95"), "", success("success", "success_ci95")],
    ]


def page(found: dict[str, Any], checkpoint: str) -> str:
    """The text of docs/results/handover.md."""
    header, lines = _table(found)
    table = "\n".join(
        f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines]
    )
    today = datetime.date.today().isoformat()
    count = found["take_overs"]
    policy = f"`config/checkpoints/{checkpoint}`" if checkpoint else "the scripted expert"
    limits = load_robot(ROBOT).limits.acceleration
    delay = 1e3 * (found["longest_to_policy_s"] or 0.0)
    low, high = DRIVES
    intro = (
        f"Measured {today}: {count} scenes of the [tabletop tasks](../tabletop_tasks.md), each "
        "once by the policy alone and once with a take-over at a random moment. Time is the "
        "simulator's: the figures do not depend on the machine."
    )
    points = (
        f"Ratio of the worst step at a hand-over to that of the policy alone: "
        f"{found['step_ratio']:.2f}; aim: at most {AIM}. Of the worst acceleration: "
        f"{found['acceleration_ratio']:.2f}; the joints' limits are {min(limits):g} to "
        f"{max(limits):g} rad/s².",
        f"Lost frames: {found['lost_frames']} of {found['frames']}. The policy's history receives "
        "the images while the person drives, too.",
        f"Longest time from `~/hand_back` to the policy's first command: {delay:.0f} ms. The "
        "person's last motion goes on for 300 ms: the arm does not pause.",
        f"Refused chunks: {found['refusals']}. The first one or two chunks of an episode come "
        "before the joint states give a speed.",
    )
    method = (
        f"The policy is {policy}. The person is the scripted expert: {found['person_commands']} "
        f"tool velocities on `~/human/twist`, 20 a second, and openings on `~/human/gripper`, for "
        f"{low} to {high} s. Steps are those of the simulated arm's trajectory controller, in the "
        "second after each hand-over. An episode succeeds if the task is done after the hand-back. "
        "Runner, scheduler, gate and motion guard are the node's own; messages are delivered in "
        "one process."
    )
    bullets = "\n".join(_wrapped(f"* {point}", "  ") for point in points)
    return f"""# Take-overs and hand-backs

{_wrapped(intro)}

    ./scripts/run robovlms bench handover --take-overs {count} --markdown FILE

{table}

{bullets}

{_wrapped(method)}
"""


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 98, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
