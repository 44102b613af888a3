"""The action `~/execute`: one instruction, executed until it is done, with the reason of its end;
and the marks that end any instruction: `~/mark_outcome`, `success`.

A goal ends by a rule, a mark, its duration, its client, another goal, a fault or the node's
deactivation. Every end but a preemption is a smooth stop, after which no instruction is in force.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from std_msgs.msg import Bool, String

from robovlms_ros.action import ExecuteInstruction
from robovlms_ros.control.done_rules import DoneDetector, DoneRules, parse_done_rules
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import NANOSECONDS, ObservationError
from robovlms_ros.msg import PolicyStatus
from robovlms_ros.ros.lifecycle import PlainLifecycleNode
from robovlms_ros.ros.observation_subscriber import check_instruction
from robovlms_ros.ros.policy_runner import PolicyRunner
from robovlms_ros.ros.spinning import QUIET_PUBLISHER
from robovlms_ros.ros.status import TEXT_LIMIT, NodeStatus
from robovlms_ros.srv import MarkOutcome

Goal = ExecuteInstruction.Goal
Result = ExecuteInstruction.Result

FEEDBACK_PERIOD = 0.2
"""s between two feedback messages."""

UNATTENDED_NS = NANOSECONDS
"""A goal without a client on the network for so long is canceled."""


@dataclass
class Execution:
    """A goal in progress. result: set once, before `ended`."""

    handle: ServerGoalHandle
    done: DoneDetector
    began_ns: int
    chunks_before: int
    undisturbed_ns: int
    attended_ns: int
    result: Result | None = None
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class ExecuteLimits:
    """max_length: characters of an instruction. fault_time: s. has_gripper: of the robot."""

    max_length: int
    fault_time: float
    has_gripper: bool


class ExecuteServer:
    """Serves `~/execute`; goals are accepted between `open` and `close` only. Thread-safe.

    begin: called with a new goal's instruction, which replaces the one in force. log: called with
    a line for the log. changed: called after a mark.
    """

    def __init__(
        self,
        node: PlainLifecycleNode,
        report: NodeStatus,
        now: Callable[[], int],
        begin: Callable[[str], None],
        log: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._node = node
        self._report = report
        self._now = now
        self._begin = begin
        self._log = log
        self._changed = changed
        self._lock = threading.RLock()
        self._running: Execution | None = None
        self._limits: ExecuteLimits | None = None
        self._runner: PolicyRunner | None = None
        self._server = ActionServer(
            node,
            ExecuteInstruction,
            "~/execute",
            self._abandoned,
            callback_group=MutuallyExclusiveCallbackGroup(),
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=lambda handle: CancelResponse.ACCEPT,
        )
        self._clients = f"{node.resolve_service_name('~/execute')}/_action/send_goal"

        group = node.work_group
        self._outcomes = node.create_publisher(String, "episode", 10, event_callbacks=QUIET_PUBLISHER)
        node.create_subscription(Bool, "success", self._on_success, 10, callback_group=group)
        node.create_service(
            MarkOutcome, "~/mark_outcome", self._on_mark_outcome, callback_group=group
        )

    def open(self, runner: PolicyRunner, limits: ExecuteLimits) -> None:
        """Accept goals, which the runner executes."""
        with self._lock:
            self._runner = runner
            self._limits = limits

    def close(self, message: str) -> None:
        """End a running goal as deactivated; accept none."""
        with self._lock:
            self.end(Result.DEACTIVATED, message)
            self._runner = None
            self._limits = None

    def destroy(self) -> None:
        """Give the action back."""
        self._server.destroy()

    @property
    def is_running(self) -> bool:
        """True while a goal runs."""
        return self._running is not None

    def end(self, reason: str, message: str, outcome: str = Result.UNKNOWN) -> bool:
        """End the running goal by a smooth stop; False where none runs."""
        with self._lock:
            if self._running is None:
                return False
            if self._runner is not None:
                self._runner.end_instruction(f"~/execute {reason}: {message}")
            self._finish(reason, message, outcome)
            return True

    def _on_success(self, message: Bool) -> None:
        if message.data:
            self._mark(MarkOutcome.Request.SUCCESS, "the success topic")

    def _on_mark_outcome(
        self, request: MarkOutcome.Request, response: MarkOutcome.Response
    ) -> MarkOutcome.Response:
        allowed = (request.SUCCESS, request.FAILURE)
        if request.outcome in allowed:
            note = f"~/mark_outcome: {request.note}" if request.note else "~/mark_outcome"
            response.success = self._mark(request.outcome, note)
            response.message = "" if response.success else "no instruction is in force"
        else:
            given = printable(request.outcome)
            response.message = f"outcome = '{given}': must be one of {', '.join(allowed)}."
        return response

    def _mark(self, outcome: str, note: str) -> bool:
        """End the instruction in force as a success or failure; False where there is none."""
        with self._lock:
            instruction = self._report.instruction
            if self._runner is None or not instruction:
                return False
            reason = Result.SUCCEEDED if outcome == Result.SUCCESS else Result.FAILED
            text = f"marked as {outcome} ({note})"
            if not self.end(reason, text, outcome):
                self._log(f"instruction '{printable(instruction)}' {text}")
                self._runner.end_instruction(text)
        self._outcomes.publish(String(data=outcome))
        self._changed()
        return True

    def tick(
        self,
        in_force: bool,
        opening: float | None,
        commanded_opening: float | None,
        speed: float,
    ) -> None:
        """End the goal by a rule, its duration, its client or a fault.

        in_force: False where a fault has ended the goal's instruction already. opening,
        commanded_opening: the gripper's, measured and commanded. speed: rad/s of the fastest
        joint. Call at 10 Hz or more.
        """
        with self._lock:
            execution = self._running
            if execution is None or self._limits is None:
                return
            now = self._now()
            state = self._report.state
            running = state == PolicyStatus.RUNNING
            text = execution.done.update(now, running, speed, opening, commanded_opening)
            if execution.handle.is_cancel_requested:
                self.end(Result.CANCELED, "canceled by the client")
            elif not in_force:
                self.end(Result.FAULT, self._report.detail or self._report.last_stop)
            elif text is not None:
                self.end(Result.SUCCEEDED, text)
            elif self._is_unattended(execution, now):
                self.end(Result.CANCELED, "no client of the action is left on the network")
            elif self._is_over(execution, now):
                duration = execution.handle.request.max_duration
                self.end(Result.TIMED_OUT, f"max_duration of {duration:g} s is over")
            elif self._is_disturbed(execution, now, state):
                self.end(Result.FAULT, self._report.detail or f"the policy did not run: {state}")

    def _is_over(self, execution: Execution, now_ns: int) -> bool:
        duration = execution.handle.request.max_duration
        if now_ns < execution.began_ns:
            execution.began_ns = now_ns  # the clock jumped back
        return duration > 0.0 and now_ns - execution.began_ns >= duration * NANOSECONDS

    def _is_unattended(self, execution: Execution, now_ns: int) -> bool:
        """True where every client left the network. Goals carry no client's name: one is enough."""
        if self._node.count_clients(self._clients) > 0 or now_ns < execution.attended_ns:
            execution.attended_ns = now_ns
        return now_ns - execution.attended_ns >= UNATTENDED_NS

    def _is_disturbed(self, execution: Execution, now_ns: int, state: str) -> bool:
        assert self._limits is not None
        waits = self._runner is not None and self._runner.awaits_confirmation
        fine = waits or state in (PolicyStatus.RUNNING, PolicyStatus.PAUSED)
        if fine or now_ns < execution.undisturbed_ns:
            execution.undisturbed_ns = now_ns
        return now_ns - execution.undisturbed_ns >= self._limits.fault_time * NANOSECONDS

    def _on_goal(self, goal: Goal) -> GoalResponse:
        reason = self._refusal(goal)
        if reason:
            self._node.get_logger().warning(printable(f"goal refused: {reason}", TEXT_LIMIT))
            self._report.last_refusal = f"goal refused: {reason}"
            self._report.last_refusal_ns = self._now()
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _refusal(self, goal: Goal) -> str:
        """Reason to refuse a goal, empty for none."""
        with self._lock:
            limits = self._limits
            if limits is None:
                return f"the node is {self._node.lifecycle_state}, not active."
            if self._runner is not None and self._runner.person.drives:
                return "a person drives: call ~/hand_back first."
            if self._running is not None and not goal.preempt:
                return "another goal runs. Cancel it, or set preempt to replace it."
            if not (math.isfinite(goal.max_duration) and goal.max_duration >= 0.0):
                return f"max_duration = {goal.max_duration}: must be 0 (no limit) or more, in s."
            try:
                check_instruction(goal.instruction.strip(), limits.max_length)
                self._rules_of(goal, limits)
            except ObservationError as error:
                return f"instruction: {error}"
            except ConfigError as error:
                return str(error)
            return ""

    def _rules_of(self, goal: Goal, limits: ExecuteLimits) -> DoneRules:
        return parse_done_rules(goal.done_when, limits.has_gripper)

    def _on_accepted(self, handle: ServerGoalHandle) -> None:
        with self._lock:
            limits = self._limits
            rules = DoneRules() if limits is None else self._rules_of(handle.request, limits)
            now = self._now()
            execution = Execution(handle, DoneDetector(rules), now, self._report.chunks, now, now)
            if self._running is not None:
                self._finish(Result.PREEMPTED, "another goal replaced it")
            self._running = execution
            if limits is None:
                self.end(Result.DEACTIVATED, f"the node is {self._node.lifecycle_state}")
            else:
                self._begin(handle.request.instruction.strip())
        handle.execute(lambda _: self._execute(execution))

    def _execute(self, execution: Execution) -> Result:
        """Publish feedback until the goal has ended. Holds a thread of the executor meanwhile."""
        handle = execution.handle
        while not execution.ended.wait(FEEDBACK_PERIOD):
            handle.publish_feedback(self._feedback(execution))
        assert execution.result is not None
        reason = execution.result.termination_reason
        if reason == Result.SUCCEEDED:
            handle.succeed()
        elif reason == Result.CANCELED and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        return execution.result

    def _abandoned(self, handle: ServerGoalHandle) -> Result:
        raise AssertionError("every goal is executed by its own callback")

    def _feedback(self, execution: Execution) -> ExecuteInstruction.Feedback:
        report = self._report
        return ExecuteInstruction.Feedback(
            state=report.state,
            detail=printable(report.detail, TEXT_LIMIT),
            elapsed=max(0.0, (self._now() - execution.began_ns) / NANOSECONDS),
            chunks=max(0, report.chunks - execution.chunks_before),
            reaction_time=report.reaction.percentile(50),
            progress=math.nan,
        )

    def _finish(self, reason: str, message: str, outcome: str = Result.UNKNOWN) -> None:
        execution = self._running
        assert execution is not None
        self._running = None
        instruction = printable(execution.handle.request.instruction)
        self._log(f"goal '{instruction}' {reason}: {message}")
        execution.result = Result(
            termination_reason=reason, outcome=outcome, message=printable(message, TEXT_LIMIT)
        )
        execution.ended.set()
