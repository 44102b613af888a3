"""Observations to commands: one policy that drives one arm, called from any thread.

Input: observations and ticks from the node, chunks from the inference worker. One lock orders them:
nothing is commanded after `deactivate`. The node's status is kept up to date.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from robovlms_ros.control.executor import AT_COMMAND, REST_SPEED, ChunkExecutor, Decision
from robovlms_ros.control.faults import Action
from robovlms_ros.control.interfaces import ObservationSource
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.motion_guard import AdmittedCommand, CommandRejected
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.safety_gate import Verdict
from robovlms_ros.control.safety_monitor import SafetyMonitor
from robovlms_ros.control.schedule import ScheduleRefused
from robovlms_ros.control.shadow import Disagreement, ShadowComparison
from robovlms_ros.core.text_safety import without_numbers
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    InstructionRefused,
    JointPlan,
    Observation,
    RobotState,
    RoboVLMsError,
    TrajectoryCommand,
)
from robovlms_ros.msg import PolicyStatus
from robovlms_ros.ros.controllers.base import Arm, Gripper
from robovlms_ros.ros.parameters import Confirm
from robovlms_ros.ros.status import NodeStatus

WAITING = PolicyStatus.WAITING
RUNNING = PolicyStatus.RUNNING
HOLDING = PolicyStatus.HOLDING
PAUSED = PolicyStatus.PAUSED
INACTIVE = PolicyStatus.INACTIVE


PERSON_SILENCE = 0.3
"""s without a command of a person who drives, after which the arm is held."""

PERSON_DRIVES = "a person drives (~/take_over)"


class Worker(Protocol):
    """Inference worker of one policy."""

    @property
    def inferring_since_ns(self) -> int | None:
        """Start time of the inference in progress."""

    def submit(self, observation: Observation) -> None:
        """Take a frame; never blocks."""

    def reset(self) -> None:
        """Forget the history and drop the inference in flight."""


@dataclass(frozen=True)
class CommandInterfaces:
    """Receivers of commands. executor: None when chunks are only published. arm, gripper: None in
    dry_run.

    lead: s from a command's publication to its first new point. confirm: without effect in dry_run.
    """

    executor: ChunkExecutor | None = None
    arm: Arm | None = None
    gripper: Gripper | None = None
    lead: float = 0.0
    confirm: Confirm = "off"


class DecisionObserver:
    """Receives what is decided and commanded; the base class does nothing with it."""

    def on_chunk(self, chunk: ActionChunk) -> None:
        """The policy that commands the arm answered; the chunk is not checked yet."""

    def on_command(self, command: TrajectoryCommand) -> None:
        """A trajectory was sent, would be in dry_run, or waits for ~/confirm."""

    def on_decision(self, chunk: ActionChunk, decision: Decision, sent: bool) -> None:
        """A chunk was decided on."""

    def on_shadow_chunk(self, chunk: ActionChunk) -> None:
        """A policy that does not command the arm answered."""

    def on_disagreement(self, disagreement: Disagreement) -> None:
        """A shadow chunk was compared with the commanded motion."""


@dataclass(frozen=True)
class WaitingChunk:
    """A chunk that waits for ~/confirm. state: the arm at the chunk's stamp."""

    chunk: ActionChunk
    plan: JointPlan
    state: RobotState


class PolicyRunner:
    """See the module's docstring. log: called with a line when a fault appears or is gone."""

    def __init__(
        self,
        observations: ObservationSource,
        monitor: SafetyMonitor,
        interfaces: CommandInterfaces,
        now: Callable[[], int],
        report: NodeStatus,
        log: Callable[[str], None],
        steady_ns: Callable[[], int] = time.perf_counter_ns,
        observer: DecisionObserver | None = None,
    ) -> None:
        self._observations = observations
        self._monitor = monitor
        monitor.connect(observations, interfaces.executor, interfaces.arm, log)
        self._executor = interfaces.executor
        self._arm = interfaces.arm
        self._gripper = interfaces.gripper
        self._observer = observer or DecisionObserver()
        self._confirm = "off" if interfaces.arm is None else interfaces.confirm
        self._confirmed = False
        self._waiting: WaitingChunk | None = None
        self._next_chunk_ns = 0
        self._person_ns: int | None = None
        self._person_opening: float | None = None
        self._handed_back_ns = 0
        self._lead_ns = round(interfaces.lead * NANOSECONDS)
        self._now = now
        self._steady_ns = steady_ns
        self._report = report
        self._lock = threading.RLock()
        self._worker: Worker | None = None
        self._shadow_worker: Worker | None = None
        self._shadows = ShadowComparison()
        self._active = False
        self._moving = False
        self._returning = False
        self._not_before_ns = 0
        self.deactivation_requested = False
        """True once the gate has refused so often that the node should deactivate."""

    def start(self, worker: Worker, shadow_worker: Worker | None = None) -> None:
        """Begin to act on what comes from now on.

        worker: of the policy that commands the arm. shadow_worker: of a second one, which does not.
        """
        with self._lock:
            self._worker = worker
            self._shadow_worker = shadow_worker
            self._active = True
            self.deactivation_requested = False
            self._report.chunks = self._report.refusals = self._report.clamps = 0
            self._begin_afresh()

    def deactivate(self, reason: str) -> None:
        """Command a smooth stop, then nothing more."""
        with self._lock:
            if not self._active:
                return
            self._smooth_stop(reason)
            self._active = False
            if self.person_drives:
                self._release_person()
            self._reset_workers()
            self._set(INACTIVE, "")

    def set_speed_scaling(self, speed_scaling: float, ramp: float) -> None:
        """The part of the speed limits in use, above 0 to 1, and the seconds after activation until
        it is.

        It takes effect with the next chunk: a command under way is left as it is.
        """
        with self._lock:
            if self._executor is not None:
                gate = self._executor.gate
                gate.speed_scaling = speed_scaling
                gate.speed_scaling_ramp = ramp
                self._report.speed_scaling = gate.speed_scaling_at(self._now())

    def pause(self, paused: bool) -> None:
        """Command a smooth stop until pause(False), which begins again at the arm's position
        then."""
        with self._lock:
            if not self._active or paused == (self._report.state == PAUSED):
                return
            if paused:
                self._smooth_stop("paused")
                self._set(PAUSED, "paused by ~/pause")
            else:
                self._set(WAITING, "")
                self._begin_afresh()

    def reset(self, reason: str) -> None:
        """Command a smooth stop, forget history and inference in flight; continue with new
        observations."""
        with self._lock:
            if not self._active:
                return
            self._smooth_stop(reason)
            self._not_before_ns = self._now()
            self._reset_workers()
            if self._report.state != PAUSED:
                self._set(WAITING, "")

    def clock_jumped(self) -> None:
        """Forget everything that has a stamp. Nothing can be timed on a clock that jumps, so
        nothing is commanded."""
        # a chunk that comes in between must not take the emptied inputs for the reason
        with self._lock:
            self._observations.clear()
            if self._active:
                self._cease_commands("the clock jumped")

    def instruction_changed(self, instruction: str) -> None:
        """Drop what is in flight for the old instruction; the running plan goes on until the new
        one's chunk comes."""
        with self._lock:
            self._report.instruction = instruction
            if not self._active:
                return
            self._reset_workers()
            if self._confirm != "off" and not self.person_drives:
                self._smooth_stop("a new instruction waits for ~/confirm")

    @property
    def awaits_confirmation(self) -> bool:
        """True while a chunk waits for ~/confirm."""
        return self._waiting is not None

    def confirm(self) -> str:
        """Execute the chunk that waits; returns the reason why not, empty where it is executed."""
        with self._lock:
            waiting = self._waiting
            if not self._active or waiting is None or self._executor is None or self._arm is None:
                return "no chunk waits"
            self._waiting = None
            now = self._now()
            action, problem = self._reaction(now)
            if action in ("smooth_stop", "cease_commands"):
                return problem
            measured = self._observations.measured()
            if measured is None:
                return "no joint states have come"
            moved = float(np.abs(measured.positions - waiting.state.positions).max())
            if not moved <= AT_COMMAND:
                text = f"the arm moved by {moved:.3f} rad meanwhile; another chunk is planned"
                self._set(WAITING, text)
                return text
            # The arm is where the chunk begins: only its times move.
            chunk = replace(waiting.chunk, stamp_ns=now)
            times_ns = waiting.plan.times_ns + (now - waiting.chunk.stamp_ns)
            plan = replace(waiting.plan, times_ns=times_ns, chunk=waiting.plan.chunk and chunk)
            self._executor.shape = self._arm.shape
            decision = self._executor.on_chunk(
                chunk, measured, measured, now, self._observations.speed(), plan,
                self._advancing(now),
            )
            if decision.command is None:
                self._refuse(decision.verdict.reason)
                self._observer.on_decision(waiting.chunk, decision, sent=False)
                return decision.verdict.reason
            self._confirmed = True
            if self._confirm == "each_chunk":
                curve_s = float(decision.command.times[-1])
                self._next_chunk_ns = decision.command.stamp_ns + round(curve_s * NANOSECONDS)
            self._set(RUNNING, "")
            self._command(decision, now)
            self._observer.on_decision(waiting.chunk, decision, sent=True)
            return ""

    @property
    def person_drives(self) -> bool:
        """True from take_over to hand_back."""
        return self._person_ns is not None

    @property
    def kinematics(self) -> Kinematics | None:
        """The executor's, for use within `person_command`; None for a policy in joint space."""
        return None if self._executor is None else self._executor.kinematics

    @property
    def robot(self) -> RobotSpec | None:
        """The executor's robot; None where nothing is commanded."""
        return None if self._executor is None else self._executor.robot

    def take_over(self) -> str:
        """Let a person command the arm; returns the reason why not, empty where it is done.

        The running plan goes on until the person's first command; silence is a smooth stop.
        """
        with self._lock:
            if not self._active:
                return "the node is not active"
            if self._executor is None or self._arm is None:
                return "nothing is commanded: dry_run is true, or the robot is chunk_only"
            if self._report.state == PAUSED:
                return "the node is paused"
            if self.person_drives:
                return "a person drives already"
            self._waiting = None
            self._person_ns = self._now()
            self._person_opening = None
            self._monitor.person_drives = True
            self._set(WAITING, PERSON_DRIVES)
            return ""

    def hand_back(self) -> str:
        """Let the policy command the arm, by observations taken after now.

        Returns the reason why not, empty where it is done.
        """
        with self._lock:
            if not self.person_drives:
                return "no person drives"
            self._release_person()
            if not self._observations.instruction:
                self._smooth_stop("handed back without an instruction")
            # While the person's last motion goes on, a fault must stop it.
            self._set(RUNNING if self._moving else WAITING, "")
            return ""

    def _release_person(self) -> None:
        self._person_ns = None
        self._monitor.person_drives = False
        self._handed_back_ns = self._now()

    def person_command(self, plan_of: Callable[[RobotState, RobotSpec], JointPlan]) -> str:
        """Execute a person's command, from the commanded state on; returns the reason why not.

        plan_of: makes the plan from that state, at the present stamp; may raise RoboVLMsError.
        """
        with self._lock:
            if not self._active or not self.person_drives:
                return "no person drives"
            if self._report.state == PAUSED:
                return "the node is paused"
            assert self._executor is not None and self._arm is not None
            now = self._now()
            self._person_ns = now
            action, problem = self._reaction(now)
            if action in ("smooth_stop", "cease_commands"):
                return problem
            measured = self._observations.measured()
            if measured is None:
                return "no joint states have come"
            start = self._executor.commanded_state(measured, now)
            try:
                plan = plan_of(start, self._executor.robot)
            except RoboVLMsError as error:
                return str(error)
            assert plan.chunk is not None
            speed = self._observations.speed()
            now = self._now()
            self._executor.shape = self._arm.shape
            counts = self._executor.gate.counts
            decision = self._executor.on_chunk(
                plan.chunk, start, measured, now, speed, plan, self._advancing(now)
            )
            if decision.command is None:
                self._executor.gate.counts = counts  # the policy's refusals alone deactivate
                self._smooth_stop(decision.verdict.reason)
                return decision.verdict.reason
            self._command(decision, now)
            return ""

    def person_gripper(self, opening: float) -> str:
        """Move the gripper to a person's opening, 0 closed to 1 open; returns the reason why not.

        An opening that comes within the gripper's dwell is commanded at its end.
        """
        with self._lock:
            if not self._active or not self.person_drives:
                return "no person drives"
            if self._report.state == PAUSED:
                return "the node is paused"
            if self._gripper is None:
                return "the robot has no gripper"
            now = self._now()
            action, problem = self._reaction(now)
            if action in ("smooth_stop", "cease_commands"):
                return problem
            try:
                self._update_person_gripper(opening, now)
            except CommandRejected as rejection:
                return str(rejection)
            self._person_opening = opening
            return ""

    def _update_person_gripper(self, opening: float, now_ns: int) -> None:
        assert self._executor is not None and self._gripper is not None
        admitted = self._executor.set_opening(opening, now_ns)
        if admitted is not None:
            self._gripper.update(admitted)

    def person_stop(self, reason: str) -> None:
        """Command a smooth stop while a person drives; their next command moves the arm again."""
        with self._lock:
            if self._active and self.person_drives:
                self._smooth_stop(reason)

    def _tick_person(self, action: Action, text: str, now_ns: int) -> None:
        assert self._person_ns is not None
        silent = not 0 <= now_ns - self._person_ns <= PERSON_SILENCE * NANOSECONDS
        if action == "cease_commands":
            self._cease_commands(text)
        elif action == "smooth_stop":
            self._smooth_stop(text)
        elif silent:
            self._smooth_stop(f"no command of the person for {PERSON_SILENCE} s")
        if action not in ("cease_commands", "smooth_stop") and self._person_opening is not None:
            self._update_person_gripper(self._person_opening, now_ns)
        self._set(WAITING, text or PERSON_DRIVES)

    def end_instruction(self, reason: str) -> None:
        """Command a smooth stop; nothing more is commanded until another instruction comes."""
        with self._lock:
            if not self._active:
                return
            if not self.person_drives:
                self._smooth_stop(reason)
            self._observations.set_instruction("")
            if self._report.state != PAUSED and not self.person_drives:
                self._set(WAITING, "")

    def switch_policy(self) -> str:
        """Let the shadow policy command the arm from its next chunk on, and the other be the
        shadow; returns the reason why not, empty where it is done.

        The running plan goes on until that chunk, which continues it as any other one does.
        """
        with self._lock:
            if not self._active:
                return "the node is not active"
            if self._shadow_worker is None:
                return "there is no second policy: shadow_checkpoint is empty"
            former = self._worker
            self._worker = self._shadow_worker
            self._shadow_worker = former
            self._monitor.inference_finished()
            if self._executor is not None:
                # A mean over chunks of two policies is the intent of neither.
                self._executor.scheduler.forget_chunks()
            if self._confirm != "off" and not self.person_drives:
                self._smooth_stop("another policy waits for ~/confirm")
            return ""

    def is_shadow(self, worker: Worker) -> bool:
        """True for the worker of the policy that does not command the arm."""
        return worker is self._shadow_worker

    def _reset_workers(self) -> None:
        for worker in (self._worker, self._shadow_worker):
            if worker is not None:
                worker.reset()
        self._shadows.clear()

    def _begin_afresh(self) -> None:
        self._forget_confirmation()
        self._not_before_ns = self._now()
        self._observations.clear_joint_states()  # a person may have moved the arm meanwhile
        self._monitor.reset(self._not_before_ns)
        self._reset_workers()
        if self._executor is not None:
            if self._arm is None:
                self._executor.reset()
            else:
                self._executor.restart()
        if self._gripper is not None:
            self._gripper.reset()
        if self._report.state != PAUSED:
            self._set(WAITING, "")

    def _cease_commands(self, reason: str) -> None:
        """Forget the commanded motion: the controller is away, or nothing can be timed. What it has
        ends at rest."""
        self._returning = False
        self._forget_confirmation()
        if self._moving:
            self._moving = False
            self._report.last_stop = reason
            self._report.last_stop_ns = self._now()
        self._not_before_ns = self._now()
        self._reset_workers()
        if self._executor is not None:
            self._executor.reset()
        if self._arm is not None:
            self._arm.cease_commands()

    def observe(self, observation: Observation) -> None:
        """Hand a frame to the policy, unless it is from before the last start or reset."""
        # Without the lock, which a chunk holds during its inverse kinematics: the camera would be
        # kept waiting.
        if not self._active or self._report.state == PAUSED or observation.stamp_ns < self._not_before_ns:
            return
        for worker in (self._worker, self._shadow_worker):
            if worker is not None:
                worker.submit(observation)

    def tick(self) -> None:
        """Work that is due by time alone: faults, gripper, upsampled commands. Call at 20 Hz or
        more."""
        with self._lock:
            if not self._active or self._report.state == PAUSED:
                return
            now = self._now()
            if self._executor is not None:
                self._report.speed_scaling = self._executor.gate.speed_scaling_at(now)
            self._monitor.poll(None if self._worker is None else self._worker.inferring_since_ns, now)
            action, text = self._reaction(now)
            if self._monitor.permission_withdrawn and self._observations.instruction:
                self.end_instruction(text)
            if self.person_drives:
                self._tick_person(action, text, now)
            elif action == "cease_commands":
                if self._moving or (self._executor is not None and self._executor.commanded(now) is not None):
                    self._cease_commands(text)
                self._set(HOLDING if self._report.state == RUNNING else self._report.state, text)
            elif action == "smooth_stop":
                self._waiting = None
                self._on_fault(text)
                self._return_to_arm(now, text)
            elif action == "wait":
                self._set(self._report.state, text)
            elif self._moving and self._executor is not None and self._gripper is not None:
                opening = self._executor.gripper_at(now)
                if opening is not None:
                    self._gripper.update(opening)
            self._compare_shadows(now)
            if self._arm is not None:
                self._arm.tick(now)

    def _compare_shadows(self, now_ns: int) -> None:
        if self._executor is None:
            return
        executor = self._executor
        for found in self._shadows.due(now_ns, executor.commanded, executor.kinematics):
            self._observer.on_disagreement(found)

    def _on_fault(self, text: str) -> None:
        if self._report.state == RUNNING:
            self._smooth_stop(text)
            self._set(HOLDING, text)
        else:
            self._set(self._report.state, text)

    def _reaction(self, now: int) -> tuple[Action, str]:
        """The monitor's reaction; the end of a standstill restarts the plan first."""
        action, text = self._monitor.react(now)
        if self._monitor.take_standstill_end():
            self._returning = False
            self._not_before_ns = now
            self._reset_workers()
            if self._executor is not None:
                # The next plan begins where the arm is, with the ramp.
                self._executor.restart()
        return action, text

    def _return_to_arm(self, now: int, text: str) -> None:
        """Bring the set point back to an arm that does not move: on release nothing may jump."""
        if self._executor is None or self._arm is None:
            return
        if not self._monitor.set_point_may_return:
            if self._returning:
                self._smooth_stop(text)
            return
        measured = self._observations.measured()
        if self._returning or measured is None or not self._observations.speed().max() <= REST_SPEED:
            return
        self._executor.shape = self._arm.shape
        try:
            command = self._executor.move_back(measured, now)
        except CommandRejected:
            return
        if command is not None:
            self._send(command, now)
            self._returning = True

    def on_chunk(self, chunk: ActionChunk, worker: Worker | None = None) -> None:
        """A chunk is ready: publish it, check it, execute it. Called by the worker's thread.

        worker: the one that it comes from; None for that of the policy that commands the arm.
        """
        with self._lock:
            if not self._active or self._report.state == PAUSED or chunk.stamp_ns < self._not_before_ns:
                return
            if chunk.instruction != self._observations.instruction:
                return
            if worker is not None and self.is_shadow(worker):
                self._take_shadow(chunk)
                return
            self._monitor.inference_finished()
            self._report.chunks += 1
            if self.person_drives:
                self._take_shadow(chunk)
            else:
                self._observer.on_chunk(chunk)
            if chunk.timing is not None:
                spent = chunk.timing.inference_end_ns - chunk.timing.inference_start_ns
                self._report.inference.add(spent / NANOSECONDS)
            if self.person_drives or chunk.stamp_ns < self._handed_back_ns:
                return
            try:
                self._execute(chunk)
            except RoboVLMsError as error:
                self._refuse_chunk(chunk, str(error))

    def _take_shadow(self, chunk: ActionChunk) -> None:
        """Publish a chunk that is not executed; compare it later with what is commanded."""
        self._observer.on_shadow_chunk(chunk)
        if self._executor is None:
            return
        try:
            plan = self._executor.plan(chunk, self._observations.state_at(chunk.stamp_ns))
        except RoboVLMsError:
            return
        if isinstance(plan, JointPlan):
            self._shadows.add(plan)

    def on_error(self, error: Exception) -> None:
        """Inference failed. Called by the worker's thread."""
        text = str(error) if isinstance(error, RoboVLMsError) else f"{type(error).__name__}: {error}"
        refused = isinstance(error, InstructionRefused)
        with self._lock:
            if self._active and self._report.state != PAUSED:
                if refused:
                    self._monitor.instruction_refused(text)
                else:
                    self._monitor.inference_failed(text)
                if self.person_drives:
                    return
                self._refuse(f"instruction refused: {text}" if refused else f"inference failed: {text}")
                # The detail stays that of the worst fault, which the next tick would put there
                # again.
                self._set(HOLDING, self._reaction(self._now())[1])

    def _execute(self, chunk: ActionChunk) -> None:
        now = self._now()
        action, problem = self._reaction(now)
        if action == "cease_commands":
            self._cease_commands(problem)
        if action in ("smooth_stop", "cease_commands"):
            # What never ran goes on waiting: the state must not depend on whether the tick saw the
            # fault first.
            state = HOLDING if self._report.state == RUNNING else self._report.state
            self._refuse_chunk(chunk, problem, state)
            return
        if self._executor is None:
            self._accept(chunk, now)
            return
        if self._waiting is not None or chunk.stamp_ns < self._next_chunk_ns:
            return
        waits = self._confirm == "each_chunk" or (
            self._confirm == "first_chunk" and not self._confirmed
        )
        if waits and not self._observations.speed().max() <= REST_SPEED:
            return  # a chunk that waits begins where the arm rests
        if self._observations.measured() is None:
            self._refuse_chunk(chunk, "no joint states have come.")
            return
        state = self._observations.state_at(chunk.stamp_ns)
        plan = self._executor.plan(chunk, state)
        # Inverse kinematics may take longer than the lead: the message is timed by the clock after
        # it.
        now = self._now()
        measured = self._observations.measured()
        if measured is None:
            self._refuse_chunk(chunk, "no joint states have come.")
            return
        if self._arm is None:
            decision = self._executor.dry_run_chunk(chunk, state, measured, now, plan)
        else:
            self._executor.shape = self._arm.shape
            decision = self._executor.on_chunk(
                chunk, state, measured, now, self._observations.speed(), plan,
                None if waits else self._advancing(now), commit=not waits,
            )
        if decision.command is None:
            self._refuse(decision.verdict.reason)
            self._observer.on_decision(chunk, decision, sent=False)
            self.deactivation_requested = self.deactivation_requested or decision.verdict.deactivate
            return
        if waits:
            assert isinstance(plan, JointPlan)
            self._waiting = WaitingChunk(chunk, plan, state)
            self._set(WAITING, f"chunk {chunk.sequence} waits for ~/confirm")
            self._observer.on_command(decision.command)
            self._observer.on_decision(chunk, decision, sent=False)
            return
        self._report.clearance = ", ".join(map(str, decision.verdict.clearances))
        if decision.verdict.kind == "clamp":
            self._report.clamps += 1
            self._report.last_clamp = decision.verdict.reason
        self._accept(chunk, now + self._lead_ns)
        self._command(decision, now)
        self._observer.on_decision(chunk, decision, sent=self._arm is not None)

    def _command(self, decision: Decision, now_ns: int) -> None:
        """Send a chunk's motion and gripper opening; in dry_run only show the motion."""
        assert decision.command is not None
        if self._arm is None:
            self._observer.on_command(decision.command)
            return
        self._send(decision.command, now_ns)
        self._moving = True
        if self._gripper is not None and decision.gripper is not None:
            self._gripper.update(decision.gripper)

    def _send(self, command: AdmittedCommand, now_ns: int) -> None:
        assert self._arm is not None
        # The times of a replacement count from when it is sent.
        sent_ns = self._now() if command.shape == "replacement" else now_ns
        self._arm.send(command, sent_ns)
        self._observer.on_command(command)

    def _forget_confirmation(self) -> None:
        self._waiting = None
        self._confirmed = False
        self._next_chunk_ns = 0

    def _refuse_chunk(self, chunk: ActionChunk, reason: str, state: str = HOLDING) -> None:
        self._refuse(reason, state)
        refused = Decision(None, None, Verdict("refuse", reason, None), None)
        self._observer.on_decision(chunk, refused, sent=False)

    def _advancing(self, now_ns: int) -> Callable[[], int]:
        """A clock that reads `now_ns` now and advances steadily, as simulated time does not while a
        thread computes."""
        begin_ns = self._steady_ns()
        return lambda: now_ns + self._steady_ns() - begin_ns

    def _accept(self, chunk: ActionChunk, takes_effect_ns: int) -> None:
        self._report.reaction.add((takes_effect_ns - chunk.stamp_ns) / NANOSECONDS)
        self._set(RUNNING, "")

    def _refuse(self, reason: str, state: str = HOLDING) -> None:
        self._report.refusals += 1
        self._report.last_refusal = reason
        self._report.last_refusal_ns = self._now()
        if self._moving:
            self._smooth_stop(reason)
        self._set(state, reason)

    def _smooth_stop(self, reason: str) -> None:
        """Command a smooth stop, once, when anything is under way."""
        self._forget_confirmation()
        if not self._moving and not self._returning:
            return
        self._moving = False
        self._returning = False
        now = self._now()
        self._report.last_stop = reason
        self._report.last_stop_ns = now
        if self._executor is None or self._arm is None:
            return
        self._executor.shape = self._arm.shape
        try:
            self._send(self._executor.smooth_stop(now, self._advancing(now)), now)
            if self._executor.stop_conflict:
                self._report.last_stop = f"{reason} ({self._executor.stop_conflict})"
        except (ScheduleRefused, CommandRejected) as error:
            # The last command ends at rest by itself; there is nothing better to send.
            self._report.last_stop = f"{reason} (no stop was sent: {error})"

    def _set(self, state: str, detail: str) -> None:
        same = state == self._report.state and without_numbers(detail) == without_numbers(self._report.detail)
        if not same:  # the same complaint with another number is no change
            self._report.state = state
            self._report.detail = detail

