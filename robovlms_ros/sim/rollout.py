"""One episode in simulated time, in one process and without ROS: cameras, policy with a latency,
executor, arm.

What runs between policy and arm is what the live node runs: `ChunkExecutor` in front of the
trajectory controllers.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from robovlms_ros.control.collision_model import load_collision_model
from robovlms_ros.control.controller_types import OneJointTrajectory
from robovlms_ros.control.executor import ChunkExecutor, Decision, build_executor
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.motion_guard import CommandRejected
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    Observation,
    RobotState,
)
from robovlms_ros.sim.tasks.expert import ACTION_SPEC, STEP
from robovlms_ros.sim.tasks.language import meaning
from robovlms_ros.sim.tasks.objects import TableTruth
from robovlms_ros.sim.world import CAMERAS, TICK_NS, SimWorld, WorldError

FRAME_NS = round(STEP * NANOSECONDS)
GRIPPER_TICKS = 10
"""Ticks between looks at the gripper's schedule (the node's timer)."""

EXPERT = "expert"
"""`policy_id` of the expert's chunks."""


class Agent(Protocol):
    """Agent of an episode: a `PolicySession`, or the expert."""

    def reset(self) -> None: ...
    def observe(self, observation: Observation) -> None: ...
    def predict_action_chunk(self, observation: Observation) -> ActionChunk: ...


@dataclass(frozen=True)
class RolloutFrame:
    """One camera frame with what was true at its stamp."""

    observation: Observation
    truth: TableTruth


@dataclass(frozen=True)
class Outcome:
    """Outcome of an episode. time_to_success: simulated s, None without. wrong: another thing
    was taken. why: what the judge calls the failure; empty with success. taken: what was taken
    in the place of the named thing."""

    instruction: str
    success: bool
    wrong: bool
    time_to_success: float | None
    chunks: int
    refusals: int
    why: str = ""
    taken: str = ""


@dataclass(frozen=True)
class EpisodeSettings:
    """latency: (low, high) s from an image's stamp to its chunk, drawn per inference. limit,
    linger: s of simulated time until an episode is given up, and from success to its end.
    dropped: part of the frames that never arrive. executed: least number of frames from one
    inference's to the next one's: that many steps of a chunk are executed."""

    latency: tuple[float, float] = (0.04, 0.12)
    limit: float = 12.0
    linger: float = 0.0
    dropped: float = 0.0
    executed: int = 1


class ExpertSession:
    """The scripted expert as an agent: it reads the world that it acts in."""

    def __init__(self, world: SimWorld) -> None:
        self._world = world
        self._count = 0

    def reset(self) -> None: ...

    def observe(self, observation: Observation) -> None: ...

    def predict_action_chunk(self, observation: Observation) -> ActionChunk:
        state = observation.state
        if state is None or state.eef_pose is None or state.gripper is None:
            raise WorldError("the expert needs the measured pose and opening: give Observation.state with both.")
        values = self._world.expert(
            meaning(observation.instruction), state.eef_pose, state.gripper
        ).chunk()
        self._count += 1
        return ActionChunk(observation.stamp_ns, values, ACTION_SPEC, observation.instruction, EXPERT, self._count)


class ClosedLoop:
    """Runs episodes of one agent in one world.

    gripper: the robot's, a one-joint trajectory controller.
    disturb: maps a chunk to what is executed in its place (noise for demonstrations); None executes
    it as it is. on_frame: called with every frame, before the agent sees it. on_decision: called
    with every chunk and the decision on it.
    """

    def __init__(
        self,
        world: SimWorld,
        kinematics: Kinematics,
        executor: ChunkExecutor,
        gripper: OneJointTrajectory,
        settings: EpisodeSettings | None = None,
    ) -> None:
        self.world = world
        self.kinematics = kinematics
        self.executor = executor
        self._gripper = gripper
        self.settings = settings or EpisodeSettings()
        self.disturb: Callable[[ActionChunk, RolloutFrame], ActionChunk] | None = None
        self.on_frame: Callable[[RolloutFrame], None] | None = None
        self.on_decision: Callable[[ActionChunk, Decision], None] | None = None

    def run(self, agent: Agent, instructions: Sequence[tuple[float, str]], rng: np.random.Generator) -> Outcome:
        """One episode from the world's present state.

        instructions: (s from the start, words), in order; the last one is judged, from when it is
        given.
        """
        agent.reset()
        self.executor.reset()
        world = self.world
        start_ns = self.world.time_ns
        self._opening: float | None = None
        pending: tuple[int, ActionChunk, RobotState] | None = None
        instruction = ""
        chunks = 0
        refusals = 0
        success_ns = None
        judged_from_ns = start_ns + round(instructions[-1][0] * NANOSECONDS)
        end_ns = judged_from_ns + round(self.settings.limit * NANOSECONDS)
        wrong = False
        judge = world.judge(instructions[0][1])
        while world.time_ns < end_ns:
            now = world.time_ns
            if (now - start_ns) % FRAME_NS == 0:
                spoken = [words for at, words in instructions if at * NANOSECONDS <= now - start_ns][-1]
                if spoken != instruction:
                    agent.reset()
                    instruction = spoken
                    pending = None
                    next_ns = now
                    judge = world.judge(instruction)
                frame = self._capture(instruction)
                if self.on_frame is not None:
                    self.on_frame(frame)
                if not self.settings.dropped or rng.uniform() >= self.settings.dropped:
                    agent.observe(frame.observation)
                    if pending is None and now >= next_ns:
                        pending = self._infer(agent, frame, rng)
                        next_ns = now + self.settings.executed * FRAME_NS
                done, missed = judge.look(frame.truth) if now >= judged_from_ns else (False, False)
                wrong = wrong or missed
                if success_ns is None and done:
                    success_ns = now
                    end_ns = now + round(self.settings.linger * NANOSECONDS)
            if pending is not None and now >= pending[0]:
                chunks = chunks + 1
                refusals = refusals + self._deliver(pending[1], pending[2])
                pending = None
            if (now - start_ns) % (GRIPPER_TICKS * TICK_NS) == 0:
                self._move_gripper()
            world.step()
        time = None if success_ns is None else (success_ns - judged_from_ns) / NANOSECONDS
        why = "" if success_ns is not None else judge.why()
        return Outcome(instructions[-1][1], success_ns is not None, wrong, time, chunks, refusals, why,
                       judge.taken)

    def measured(self) -> RobotState:
        """The arm's state now, with the tool's pose."""
        state = self.world.joint_state()
        return RobotState(
            state.stamp_ns, state.positions, state.velocities, self.kinematics.forward(state.positions), state.gripper
        )

    def _capture(self, instruction: str) -> RolloutFrame:
        images = {name: self.world.render(name) for name in CAMERAS}
        observation = Observation(self.world.time_ns, images, instruction, self.measured())
        return RolloutFrame(observation, self.world.ground_truth())

    def _infer(
        self, agent: Agent, frame: RolloutFrame, rng: np.random.Generator
    ) -> tuple[int, ActionChunk, RobotState]:
        chunk = agent.predict_action_chunk(frame.observation)
        if self.disturb is not None:
            chunk = self.disturb(chunk, frame)
        state = frame.observation.state
        assert state is not None
        return self.world.time_ns + round(rng.uniform(*self.settings.latency) * NANOSECONDS), chunk, state

    def _deliver(self, chunk: ActionChunk, state: RobotState) -> int:
        """Hands the chunk to the executor and its command to the arm; returns 1 for a refusal."""
        now = self.world.time_ns
        decision = self.executor.on_chunk(chunk, state, self.measured(), now)
        if self.on_decision is not None:
            self.on_decision(chunk, decision)
        command = decision.command
        refused = command is None
        if refused and self.executor.commanded(now) is not None:
            # As in the node: where no stop is possible, the last command ends at rest by itself.
            with suppress(CommandRejected):
                command = self.executor.smooth_stop(now)
        if command is not None:
            self.world.arm_controller.accept(command, now)
        return int(refused)

    def _move_gripper(self) -> None:
        opening = self.executor.gripper_at(self.world.time_ns)
        if opening is None or opening == self._opening:
            return
        self._opening = opening
        command = self._gripper.command(self._gripper.position(opening))
        self.world.gripper_controller.accept(command, self.world.time_ns)


def build_loop(world: SimWorld, robot: str = "panda", settings: EpisodeSettings | None = None) -> ClosedLoop:
    """A closed loop with the executor of the live node. Raises WorldError for a robot that the
    world is not."""
    spec = load_robot(robot)
    if spec.joints != world.joints or spec.description_path is None or not isinstance(spec.gripper, OneJointTrajectory):
        raise WorldError(
            f"robot '{robot}': the simulated arm has the joints {', '.join(world.joints)}, a description file and a "
            "one_joint_trajectory gripper. Use config/robots/panda.yaml or a copy of it."
        )
    kinematics = Kinematics.for_robot(spec)
    executor = build_executor(spec, kinematics, collision=load_collision_model(spec))
    return ClosedLoop(world, kinematics, executor, spec.gripper, settings)
