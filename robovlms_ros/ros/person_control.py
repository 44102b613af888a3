"""A person's commands in place of the policy's, after `~/take_over`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from robovlms_ros.control.faults import Action
from robovlms_ros.control.interfaces import ObservationSource
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.motion_guard import CommandRejected
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.types import NANOSECONDS, JointPlan, RobotState, RoboVLMsError
from robovlms_ros.msg import PolicyStatus
from robovlms_ros.ros.command_sender import CommandInterfaces, CommandSender
from robovlms_ros.ros.status import NodeStatus

PERSON_SILENCE = 0.3
"""s without a command of a person who drives, after which the arm is held."""

PERSON_DRIVES = "a person drives (~/take_over)"

Plan = Callable[[RobotState, RobotSpec, Kinematics | None], JointPlan]
"""Makes a person's plan from the commanded state, at its stamp; may raise RoboVLMsError.
Kinematics: None for a policy in joint space."""


class PersonControl:
    """One person's turn: motions and openings while `drives`, silence as a smooth stop.

    lock: the policy runner's, which orders a person's commands with chunks and ticks. hindrance:
    the reason not to command the arm at a time (ns), empty for none; called with the lock.
    """

    def __init__(
        self,
        lock: AbstractContextManager[Any],
        sender: CommandSender,
        interfaces: CommandInterfaces,
        observations: ObservationSource,
        report: NodeStatus,
        now: Callable[[], int],
        hindrance: Callable[[int], str],
    ) -> None:
        self._lock = lock
        self._sender = sender
        self._interfaces = interfaces
        self._observations = observations
        self._report = report
        self._now = now
        self._hindrance = hindrance
        self._commanded_ns: int | None = None
        self._opening: float | None = None

    @property
    def drives(self) -> bool:
        """True from `begin` to `end`."""
        return self._commanded_ns is not None

    def begin(self) -> str:
        """The person drives from now on; returns the reason why not, empty where it is done."""
        with self._lock:
            if self._interfaces.executor is None or self._interfaces.arm is None:
                return "nothing is commanded: dry_run is true, or the robot is chunk_only"
            if self._report.state == PolicyStatus.PAUSED:
                return "the node is paused"
            if self.drives:
                return "a person drives already"
            self._commanded_ns = self._now()
            self._opening = None
            self._report.set_state(PolicyStatus.WAITING, PERSON_DRIVES)
            return ""

    def end(self) -> None:
        """The person drives no longer; the motion under way goes on."""
        with self._lock:
            self._commanded_ns = None

    def command(self, plan_of: Plan) -> str:
        """Execute a person's command, from the commanded state on; returns the reason why not."""
        with self._lock:
            now = self._now()
            problem = self._not_in_turn()
            if problem:
                return problem
            self._commanded_ns = now
            problem = self._hindrance(now)
            if problem:
                return problem
            measured = self._observations.measured()
            if measured is None:
                return "no joint states have come"
            executor = self._interfaces.executor
            assert executor is not None
            # From here on a command may differ from the one before it.
            start = executor.commanded_state(measured, now + executor.scheduler.lead_ns)
            try:
                plan = plan_of(start, executor.robot, executor.kinematics)
            except RoboVLMsError as error:
                return str(error)
            assert plan.chunk is not None
            now = self._now()
            counts = executor.gate.counts
            decision = self._sender.decide(plan.chunk, start, measured, now, plan)
            if decision.command is None:
                executor.gate.counts = counts  # the policy's refusals alone deactivate
                self._sender.smooth_stop(decision.verdict.reason)
                return decision.verdict.reason
            self._sender.send(decision, now)
            return ""

    def move_gripper(self, opening: float) -> str:
        """Move the gripper to an opening, 0 closed to 1 open; returns the reason why not.

        An opening that comes within the gripper's dwell is commanded at its end.
        """
        with self._lock:
            problem = self._not_in_turn()
            if problem:
                return problem
            if self._interfaces.gripper is None:
                return "the robot has no gripper"
            now = self._now()
            problem = self._hindrance(now)
            if problem:
                return problem
            try:
                self._sender.set_opening(opening, now)
            except CommandRejected as rejection:
                return str(rejection)
            self._opening = opening
            return ""

    def stop(self, reason: str) -> None:
        """Command a smooth stop; the person's next command moves the arm again."""
        with self._lock:
            if self.drives:
                self._sender.smooth_stop(reason)

    def tick(self, action: Action, text: str, now_ns: int) -> None:
        """Work that is due by time alone, while the person drives. action, text: the monitor's
        reaction."""
        assert self._commanded_ns is not None
        if action == "smooth_stop":
            self._sender.smooth_stop(text)
        elif action != "cease_commands":
            if not 0 <= now_ns - self._commanded_ns <= PERSON_SILENCE * NANOSECONDS:
                self._sender.smooth_stop(f"no command of the person for {PERSON_SILENCE} s")
            if self._opening is not None:
                self._sender.set_opening(self._opening, now_ns)
        self._report.set_state(PolicyStatus.WAITING, text or PERSON_DRIVES)

    def _not_in_turn(self) -> str:
        """The reason to refuse a person's command, empty for none."""
        if not self.drives:
            return "no person drives"
        return "the node is paused" if self._report.state == PolicyStatus.PAUSED else ""
