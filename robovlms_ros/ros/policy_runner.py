"""Observations to commands: one policy that drives one arm, called from any thread.

Input: observations and ticks from the node, chunks from the inference worker. One lock orders them:
nothing is commanded after `deactivate`. The node's status is kept up to date.
"""

import threading
import time
from collections.abc import Callable

import numpy as np

from robovlms_ros.control.executor import AT_COMMAND, REST_SPEED, Decision
from robovlms_ros.control.faults import Action
from robovlms_ros.control.interfaces import ObservationSource
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.safety_gate import Verdict
from robovlms_ros.control.safety_monitor import SafetyMonitor
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    InstructionRefused,
    JointPlan,
    Observation,
    RoboVLMsError,
)
from robovlms_ros.msg import PolicyStatus
from robovlms_ros.ros.command_sender import (
    CommandInterfaces,
    CommandSender,
    DecisionObserver,
    WaitingChunk,
)
from robovlms_ros.ros.person_control import PersonControl
from robovlms_ros.ros.policy_workers import PolicyWorkers, Worker
from robovlms_ros.ros.status import NodeStatus

WAITING = PolicyStatus.WAITING
RUNNING = PolicyStatus.RUNNING
HOLDING = PolicyStatus.HOLDING
PAUSED = PolicyStatus.PAUSED
INACTIVE = PolicyStatus.INACTIVE

STOPS = ("smooth_stop", "cease_commands")
"""Reactions during which nothing is commanded."""


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
        self._observer = observer or DecisionObserver()
        self._sender = CommandSender(
            interfaces, observations, self._observer, report, now, steady_ns
        )
        self._workers = PolicyWorkers(interfaces.executor, observations, self._observer)
        self._handed_back_ns = 0
        self._lead_ns = round(interfaces.lead * NANOSECONDS)
        self._now = now
        self._report = report
        self._lock = threading.RLock()
        self.person = PersonControl(
            self._lock, self._sender, interfaces, observations, report, now, self._hindrance
        )
        self._active = False
        self._not_before_ns = 0
        self.deactivation_requested = False
        """True once the gate has refused so often that the node should deactivate."""

    def start(self, worker: Worker, shadow_worker: Worker | None = None) -> None:
        """Begin to act on what comes from now on.

        worker: of the policy that commands the arm. shadow_worker: of a second one, which does not.
        """
        with self._lock:
            self._workers.commanding = worker
            self._workers.shadow = shadow_worker
            self._active = True
            self.deactivation_requested = False
            self._report.chunks = self._report.refusals = self._report.clamps = 0
            self._begin_afresh()

    def deactivate(self, reason: str) -> None:
        """Command a smooth stop, then nothing more."""
        with self._lock:
            if not self._active:
                return
            self._sender.smooth_stop(reason)
            self._active = False
            if self.person.drives:
                self._release_person()
            self._workers.reset()
            self._report.set_state(INACTIVE, "")

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
                self._sender.smooth_stop("paused")
                self._report.set_state(PAUSED, "paused by ~/pause")
            else:
                self._report.set_state(WAITING, "")
                self._begin_afresh()

    def reset(self, reason: str) -> None:
        """Command a smooth stop, forget history and inference in flight; continue with new
        observations."""
        with self._lock:
            if not self._active:
                return
            self._sender.smooth_stop(reason)
            self._not_before_ns = self._now()
            self._workers.reset()
            if self._report.state != PAUSED:
                self._report.set_state(WAITING, "")

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
            self._workers.reset()
            if self._sender.confirm != "off" and not self.person.drives:
                self._sender.smooth_stop("a new instruction waits for ~/confirm")

    @property
    def awaits_confirmation(self) -> bool:
        """True while a chunk waits for ~/confirm."""
        return self._sender.waiting is not None

    def confirm(self) -> str:
        """Execute the chunk that waits; returns the reason why not, empty where it is executed."""
        with self._lock:
            waiting = self._sender.waiting
            if not self._active or waiting is None:
                return "no chunk waits"
            self._sender.waiting = None
            now = self._now()
            problem = self._hindrance(now)
            if problem:
                return problem
            measured = self._observations.measured()
            if measured is None:
                return "no joint states have come"
            moved = float(np.abs(measured.positions - waiting.state.positions).max())
            if not moved <= AT_COMMAND:
                text = f"the arm moved by {moved:.3f} rad meanwhile; another chunk is planned"
                self._report.set_state(WAITING, text)
                return text
            decision = self._sender.decide_confirmed(waiting, measured, now)
            if decision.command is None:
                self._refuse_chunk(waiting.chunk, decision)
                return decision.verdict.reason
            self._report.set_state(RUNNING, "")
            self._sender.send(decision, now)
            self._observer.on_decision(waiting.chunk, decision, sent=True)
            return ""

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
            problem = self.person.begin()
            if not problem:
                self._sender.waiting = None
                self._monitor.person_drives = True
            return problem

    def hand_back(self) -> str:
        """Let the policy command the arm, by observations taken after now.

        Returns the reason why not, empty where it is done.
        """
        with self._lock:
            if not self.person.drives:
                return "no person drives"
            self._release_person()
            if not self._observations.instruction:
                self._sender.smooth_stop("handed back without an instruction")
            # While the person's last motion goes on, a fault must stop it.
            self._report.set_state(RUNNING if self._sender.moving else WAITING, "")
            return ""

    def _release_person(self) -> None:
        self.person.end()
        self._monitor.person_drives = False
        self._handed_back_ns = self._now()

    def end_instruction(self, reason: str) -> None:
        """Command a smooth stop; nothing more is commanded until another instruction comes."""
        with self._lock:
            if not self._active:
                return
            if not self.person.drives:
                self._sender.smooth_stop(reason)
            self._observations.set_instruction("")
            if self._report.state != PAUSED and not self.person.drives:
                self._report.set_state(WAITING, "")

    def switch_policy(self) -> str:
        """Let the shadow policy command the arm from its next chunk on, and the other be the
        shadow; returns the reason why not, empty where it is done.

        The running plan goes on until that chunk, which continues it as any other one does.
        """
        with self._lock:
            if not self._active:
                return "the node is not active"
            if self._workers.shadow is None:
                return "there is no second policy: shadow_checkpoint is empty"
            self._workers.switch()
            self._monitor.inference_finished()
            if self._executor is not None:
                # A mean over chunks of two policies is the intent of neither.
                self._executor.scheduler.forget_chunks()
            if self._sender.confirm != "off" and not self.person.drives:
                self._sender.smooth_stop("another policy waits for ~/confirm")
            return ""

    def is_shadow(self, worker: Worker) -> bool:
        """True for the worker of the policy that does not command the arm."""
        return worker is self._workers.shadow

    def _begin_afresh(self) -> None:
        self._not_before_ns = self._now()
        self._observations.clear_joint_states()  # a person may have moved the arm meanwhile
        self._monitor.reset(self._not_before_ns)
        self._workers.reset()
        self._sender.restart()
        if self._report.state != PAUSED:
            self._report.set_state(WAITING, "")

    def _cease_commands(self, reason: str) -> None:
        """Forget the commanded motion, history and inference in flight."""
        self._not_before_ns = self._now()
        self._workers.reset()
        self._sender.cease_commands(reason)

    def observe(self, observation: Observation) -> None:
        """Hand a frame to the policy, unless it is from before the last start or reset."""
        # Without the lock, which a chunk holds during its inverse kinematics: the camera would be
        # kept waiting.
        if self._acts and observation.stamp_ns >= self._not_before_ns:
            self._workers.submit(observation)

    def tick(self) -> None:
        """Work that is due by time alone: faults, gripper, upsampled commands. Call at 20 Hz or
        more."""
        with self._lock:
            if not self._acts:
                return
            now = self._now()
            if self._executor is not None:
                self._report.speed_scaling = self._executor.gate.speed_scaling_at(now)
            self._monitor.poll(self._workers.inferring_since_ns, now)
            action, text = self._reaction(now)
            if self._monitor.permission_withdrawn and self._observations.instruction:
                self.end_instruction(text)
            if self.person.drives:
                if action == "cease_commands":
                    self._cease_commands(text)
                self.person.tick(action, text, now)
            elif action == "cease_commands":
                commanded = None if self._executor is None else self._executor.commanded(now)
                if self._sender.moving or commanded is not None:
                    self._cease_commands(text)
                self._report.set_state(self._held_state, text)
            elif action == "smooth_stop":
                self._sender.waiting = None
                state = self._held_state
                if self._report.state == RUNNING:
                    self._sender.smooth_stop(text)
                self._report.set_state(state, text)
                if self._monitor.set_point_may_return:
                    self._sender.move_back(now)
                elif self._sender.returning:
                    self._sender.smooth_stop(text)
            elif action == "wait":
                self._report.set_state(self._report.state, text)
            else:
                self._sender.update_gripper(now)
            self._workers.compare(now)
            if self._arm is not None:
                self._arm.tick(now)

    @property
    def _acts(self) -> bool:
        """True while active and not paused."""
        return self._active and self._report.state != PAUSED

    @property
    def _held_state(self) -> str:
        """The state during a fault: an arm that never ran goes on waiting."""
        return HOLDING if self._report.state == RUNNING else self._report.state

    def _hindrance(self, now_ns: int) -> str:
        """The reason not to command the arm now, empty for none."""
        action, problem = self._reaction(now_ns)
        return problem if action in STOPS else ""

    def _reaction(self, now: int) -> tuple[Action, str]:
        """The monitor's reaction; the end of a standstill restarts the plan first."""
        action, text = self._monitor.react(now)
        if self._monitor.take_standstill_end():
            self._sender.returning = False
            self._not_before_ns = now
            self._workers.reset()
            if self._executor is not None:
                # The next plan begins where the arm is, with the ramp.
                self._executor.restart()
        return action, text

    def on_chunk(self, chunk: ActionChunk, worker: Worker | None = None) -> None:
        """A chunk is ready: publish it, check it, execute it. Called by the worker's thread.

        worker: the one that it comes from; None for that of the policy that commands the arm.
        """
        with self._lock:
            if not self._acts or chunk.stamp_ns < self._not_before_ns:
                return
            if chunk.instruction != self._observations.instruction:
                return
            if worker is not None and self.is_shadow(worker):
                self._workers.take_shadow_chunk(chunk)
                return
            self._monitor.inference_finished()
            self._report.chunks += 1
            if self.person.drives:
                self._workers.take_shadow_chunk(chunk)
            else:
                self._observer.on_chunk(chunk)
            if chunk.timing is not None:
                spent = chunk.timing.inference_end_ns - chunk.timing.inference_start_ns
                self._report.inference.add(spent / NANOSECONDS)
            if self.person.drives or chunk.stamp_ns < self._handed_back_ns:
                return
            try:
                self._execute(chunk)
            except RoboVLMsError as error:
                self._refuse_chunk(chunk, _refused(str(error)))

    def on_error(self, error: Exception) -> None:
        """Inference failed. Called by the worker's thread."""
        text = str(error)
        if not isinstance(error, RoboVLMsError):
            text = f"{type(error).__name__}: {error}"
        with self._lock:
            if not self._acts:
                return
            if isinstance(error, InstructionRefused):
                self._monitor.instruction_refused(text)
                text = f"instruction refused: {text}"
            else:
                self._monitor.inference_failed(text)
                text = f"inference failed: {text}"
            if self.person.drives:
                return
            self._refuse(text)
            # The detail stays that of the worst fault, which the next tick would put there again.
            self._report.set_state(HOLDING, self._reaction(self._now())[1])

    def _execute(self, chunk: ActionChunk) -> None:
        now = self._now()
        action, problem = self._reaction(now)
        if action == "cease_commands":
            self._cease_commands(problem)
        if action in STOPS:
            # The state must not depend on whether the tick detected the fault first.
            self._refuse_chunk(chunk, _refused(problem), self._held_state)
            return
        if self._executor is None:
            self._accept(chunk, now)
            return
        if not self._sender.has_turn(chunk):
            return
        waits = self._sender.next_waits
        if waits and not self._observations.speed().max() <= REST_SPEED:
            return  # a chunk that waits begins where the arm rests
        if self._observations.measured() is None:
            self._refuse_chunk(chunk, _refused("no joint states have come."))
            return
        state = self._observations.state_at(chunk.stamp_ns)
        plan = self._executor.plan(chunk, state)
        # Inverse kinematics may take longer than the lead: the message is timed by the clock after
        # it.
        now = self._now()
        measured = self._observations.measured()
        if measured is None:
            self._refuse_chunk(chunk, _refused("no joint states have come."))
            return
        decision = self._sender.decide(chunk, state, measured, now, plan, commit=not waits)
        if decision.command is None:
            self._refuse_chunk(chunk, decision)
            self.deactivation_requested = self.deactivation_requested or decision.verdict.deactivate
            return
        if waits:
            assert isinstance(plan, JointPlan)
            self._sender.waiting = WaitingChunk(chunk, plan, state)
            self._report.set_state(WAITING, f"chunk {chunk.sequence} waits for ~/confirm")
            self._observer.on_command(decision.command)
            self._observer.on_decision(chunk, decision, sent=False)
            return
        self._report.clearance = ", ".join(map(str, decision.verdict.clearances))
        if decision.verdict.kind == "clamp":
            self._report.clamps += 1
            self._report.last_clamp = decision.verdict.reason
        self._accept(chunk, now + self._lead_ns)
        self._sender.send(decision, now)
        self._observer.on_decision(chunk, decision, sent=self._arm is not None)

    def _refuse_chunk(self, chunk: ActionChunk, decision: Decision, state: str = HOLDING) -> None:
        self._refuse(decision.verdict.reason, state)
        self._observer.on_decision(chunk, decision, sent=False)

    def _accept(self, chunk: ActionChunk, takes_effect_ns: int) -> None:
        self._report.reaction.add((takes_effect_ns - chunk.stamp_ns) / NANOSECONDS)
        self._report.set_state(RUNNING, "")

    def _refuse(self, reason: str, state: str = HOLDING) -> None:
        self._report.refusals += 1
        self._report.last_refusal = reason
        self._report.last_refusal_ns = self._now()
        if self._sender.moving:
            self._sender.smooth_stop(reason)
        self._report.set_state(state, reason)


def _refused(reason: str) -> Decision:
    return Decision(None, None, Verdict("refuse", reason, None), None)

