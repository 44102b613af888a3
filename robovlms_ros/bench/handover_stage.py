"""Tabletop episodes with a take-over: a scripted person drives for a while and hands back.

Everything between camera and controller is the node's own: runner, executor, monitor, gate, guard
and `HumanControl` with its messages. Time is the simulator's and messages are delivered in one
process, so that results do not depend on the machine's load. The person is the scripted expert, as
a tool velocity on `~/human/twist` and an opening on `~/human/gripper`.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    Array,
    Observation,
    RobotState,
)
from robovlms_ros.observations.joint_states import JointStateBuffer
from robovlms_ros.ros.command_sender import CommandInterfaces
from robovlms_ros.ros.controllers.base import Arm, Gripper
from robovlms_ros.ros.human_control import HumanControl
from robovlms_ros.ros.policy_runner import PolicyRunner
from robovlms_ros.ros.status import NodeStatus
from robovlms_ros.sim.rollout import EpisodeSettings, ExpertSession
from robovlms_ros.sim.scenes import load_agent
from robovlms_ros.sim.tasks.evaluate import TIME_LIMIT
from robovlms_ros.sim.tasks.expert import STEP
from robovlms_ros.sim.tasks.language import meaning
from robovlms_ros.sim.world import ARM_JOINTS, CAMERAS, START_NS, TICK_NS, SimWorld, WorldError

ROBOT = "panda"
FRAME_NS = round(STEP * NANOSECONDS)
STATES_TICKS = 5
TICKS = 25
"""Ticks of the simulator between two of the node's (20 Hz)."""


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
                if self._runner.person.drives:
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
