"""An arm's commands: motions of chunks and persons, stops, and the set point's way back.

Both sources of motion, policy and person, and every stop send through one object, which knows what
is under way.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from robovlms_ros.control.executor import REST_SPEED, ChunkExecutor, Decision
from robovlms_ros.control.interfaces import ObservationSource
from robovlms_ros.control.motion_guard import AdmittedCommand, CommandRejected
from robovlms_ros.control.planner import PlanRefused
from robovlms_ros.control.schedule import ScheduleRefused
from robovlms_ros.control.shadow import Disagreement
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    JointPlan,
    RobotState,
    TrajectoryCommand,
)
from robovlms_ros.ros.controllers.base import Arm, Gripper
from robovlms_ros.ros.parameters import Confirm
from robovlms_ros.ros.status import NodeStatus


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


class CommandSender:
    """Sends what an executor admits. Not thread-safe: the policy runner's lock orders all calls.

    moving: True from a chunk's or a person's motion until it is stopped. returning: True while the
    set point goes back to an arm that did not move. Both stay False in dry_run. waiting: the chunk
    that waits for ~/confirm; a stop drops it, and the confirmation of what came before.
    """

    def __init__(
        self,
        interfaces: CommandInterfaces,
        observations: ObservationSource,
        observer: DecisionObserver,
        report: NodeStatus,
        now: Callable[[], int],
        steady_ns: Callable[[], int],
    ) -> None:
        self.moving = False
        self.returning = False
        self.waiting: WaitingChunk | None = None
        self.confirm: Confirm = "off" if interfaces.arm is None else interfaces.confirm
        self._confirmed = False
        self._next_chunk_ns = 0
        self._executor = interfaces.executor
        self._arm = interfaces.arm
        self._gripper = interfaces.gripper
        self._observations = observations
        self._observer = observer
        self._report = report
        self._now = now
        self._steady_ns = steady_ns

    def restart(self) -> None:
        """Activation or the end of a pause; see ChunkExecutor.restart."""
        self._forget_confirmation()
        if self._executor is not None:
            if self._arm is None:
                self._executor.reset()
            else:
                self._executor.restart()
        if self._gripper is not None:
            self._gripper.reset()

    def decide(
        self,
        chunk: ActionChunk,
        state: RobotState,
        measured: RobotState,
        now_ns: int,
        plan: JointPlan | PlanRefused,
        commit: bool = True,
    ) -> Decision:
        """The executor's decision on a chunk that was planned from `state`; nothing is sent.

        commit: False for a preview, after which nothing counts as commanded.
        """
        assert self._executor is not None
        if self._arm is None:
            return self._executor.dry_run_chunk(chunk, state, measured, now_ns, plan)
        clock = self._advancing(now_ns) if commit else None
        self._executor.shape = self._arm.shape
        speed = self._observations.speed()
        return self._executor.on_chunk(chunk, state, measured, now_ns, speed, plan, clock, commit)

    @property
    def next_waits(self) -> bool:
        """True if the next chunk must wait for ~/confirm."""
        first = self.confirm == "first_chunk" and not self._confirmed
        return first or self.confirm == "each_chunk"

    def has_turn(self, chunk: ActionChunk) -> bool:
        """False for a chunk that comes while another one waits or a confirmed one is executed."""
        return self.waiting is None and chunk.stamp_ns >= self._next_chunk_ns

    def decide_confirmed(
        self, waiting: WaitingChunk, measured: RobotState, now_ns: int
    ) -> Decision:
        """The decision on a chunk that waited, for an arm that is still where the chunk begins."""
        # Only its times move.
        chunk = replace(waiting.chunk, stamp_ns=now_ns)
        times_ns = waiting.plan.times_ns + (now_ns - waiting.chunk.stamp_ns)
        plan = replace(waiting.plan, times_ns=times_ns, chunk=waiting.plan.chunk and chunk)
        decision = self.decide(chunk, measured, measured, now_ns, plan)
        if decision.command is not None:
            self._confirmed = True
            if self.confirm == "each_chunk":
                length_ns = round(float(decision.command.times[-1]) * NANOSECONDS)
                self._next_chunk_ns = decision.command.stamp_ns + length_ns
        return decision

    def _forget_confirmation(self) -> None:
        self.waiting = None
        self._confirmed = False
        self._next_chunk_ns = 0

    def send(self, decision: Decision, now_ns: int) -> None:
        """Send a decision's motion and gripper opening; in dry_run only show the motion."""
        assert decision.command is not None
        if self._arm is None:
            self._observer.on_command(decision.command)
            return
        self._send(decision.command, now_ns)
        self.moving = True
        if self._gripper is not None and decision.gripper is not None:
            self._gripper.update(decision.gripper)

    def update_gripper(self, now_ns: int) -> None:
        """Send the opening that is due by time, while a motion is under way."""
        if not self.moving or self._executor is None or self._gripper is None:
            return
        opening = self._executor.gripper_at(now_ns)
        if opening is not None:
            self._gripper.update(opening)

    def set_opening(self, opening: float, now_ns: int) -> None:
        """Send a person's opening, 0 closed to 1 open, as hysteresis and dwell allow.

        Raises CommandRejected unless it is a number from 0 to 1.
        """
        assert self._executor is not None and self._gripper is not None
        admitted = self._executor.set_opening(opening, now_ns)
        if admitted is not None:
            self._gripper.update(admitted)

    def smooth_stop(self, reason: str) -> None:
        """Command a smooth stop, once, when anything is under way."""
        self._forget_confirmation()
        if not self.moving and not self.returning:
            return
        assert self._executor is not None and self._arm is not None
        self.moving = False
        self.returning = False
        now = self._now()
        self._report.last_stop = reason
        self._report.last_stop_ns = now
        self._executor.shape = self._arm.shape
        try:
            self._send(self._executor.smooth_stop(now, self._advancing(now)), now)
            if self._executor.stop_conflict:
                self._report.last_stop = f"{reason} ({self._executor.stop_conflict})"
        except (ScheduleRefused, CommandRejected) as error:
            # The last command ends at rest by itself; there is nothing better to send.
            self._report.last_stop = f"{reason} (no stop was sent: {error})"

    def cease_commands(self, reason: str) -> None:
        """Forget the commanded motion: the controller is away, or nothing can be timed. What it has
        ends at rest."""
        self._forget_confirmation()
        self.returning = False
        if self.moving:
            self.moving = False
            self._report.last_stop = reason
            self._report.last_stop_ns = self._now()
        if self._executor is not None:
            self._executor.reset()
        if self._arm is not None:
            self._arm.cease_commands()

    def move_back(self, now_ns: int) -> None:
        """Bring the set point back, once, to an arm that is at rest: on release nothing may
        jump."""
        measured = self._observations.measured()
        if self._executor is None or self._arm is None or self.returning or measured is None:
            return
        if not self._observations.speed().max() <= REST_SPEED:
            return
        self._executor.shape = self._arm.shape
        try:
            command = self._executor.move_back(measured, now_ns)
        except CommandRejected:
            return
        if command is not None:
            self._send(command, now_ns)
            self.returning = True

    def _send(self, command: AdmittedCommand, now_ns: int) -> None:
        assert self._arm is not None
        # The times of a replacement count from when it is sent.
        sent_ns = self._now() if command.shape == "replacement" else now_ns
        self._arm.send(command, sent_ns)
        self._observer.on_command(command)

    def _advancing(self, now_ns: int) -> Callable[[], int]:
        """A clock that reads `now_ns` now and advances steadily, as simulated time does not while a
        thread computes."""
        begin_ns = self._steady_ns()
        return lambda: now_ns + self._steady_ns() - begin_ns
