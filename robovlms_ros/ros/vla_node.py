"""`vla_node`: a lifecycle node that receives images, joint states and an instruction, and drives an
arm by a policy.

configure loads, validates and warms up; activate starts at once; deactivate (and SIGINT, SIGTERM)
holds the arm, then is silent; cleanup frees the memory. What it publishes: `~/action_chunk`,
`~/status`, `/diagnostics`, and, unless `dry_run`, the commands of the robot's controller. Topics,
services and the action: docs/operate.md.
"""

import gc
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import rclpy
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.subscription import Subscription
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from robovlms_ros.control.executor import ChunkExecutor
from robovlms_ros.control.faults import FAULTS
from robovlms_ros.control.joy_mapping import load_joy_mapping
from robovlms_ros.control.safety_monitor import SafetyMonitor
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, RoboVLMsError
from robovlms_ros.inference.worker import InferenceWorker
from robovlms_ros.ros.command_sender import CommandInterfaces
from robovlms_ros.ros.controllers.base import Arm, Context, Gripper
from robovlms_ros.ros.controllers.table import make_arm, make_gripper
from robovlms_ros.ros.decision_publisher import DecisionPublisher
from robovlms_ros.ros.declare import DeclaredParameters
from robovlms_ros.ros.execute import ExecuteLimits, ExecuteServer, Result
from robovlms_ros.ros.graph import LATCHED, NEWEST_ONLY, wait_for_description
from robovlms_ros.ros.human_control import HumanControl
from robovlms_ros.ros.lifecycle import PlainLifecycleNode, run_until_signalled
from robovlms_ros.ros.loading import (
    DelayedSession,
    LoadedPolicy,
    PoseFiller,
    RobotModel,
    check_speed,
    check_weights,
    example_state,
    load_body,
    load_brain,
    load_shadow,
    thinning_of,
    with_example_policy,
)
from robovlms_ros.ros.observation_subscriber import ObservationSubscriber
from robovlms_ros.ros.parameters import NodeParameters
from robovlms_ros.ros.policy_runner import PolicyRunner
from robovlms_ros.ros.preview_publisher import PreviewPublisher
from robovlms_ros.ros.status import TEXT_LIMIT, NodeStatus, StatusPublisher

if TYPE_CHECKING:
    from robovlms_ros.inference.session import PolicySession
    from robovlms_ros.models.vla_policy import VLAPolicy

TICK_RATE = 20.0
ResponseT = TypeVar("ResponseT", Trigger.Response, SetBool.Response)


class VLANode(PlainLifecycleNode):
    """See the module's docstring. `_setup` makes everything that `_teardown` frees."""

    def __init__(self, name: str = "vla_node", **options: object) -> None:
        super().__init__(name, **options)
        self._report = NodeStatus()
        self._own_end = ""
        # Timers run while a transition in another thread takes apart what they use.
        self._parts = threading.RLock()
        self._runner: PolicyRunner | None = None
        self._inputs: ObservationSubscriber | None = None
        self._worker: InferenceWorker | None = None
        self._shadow_worker: InferenceWorker | None = None
        self._loaded: dict[InferenceWorker, LoadedPolicy] = {}
        self._arm: Arm | None = None
        self._gripper: Gripper | None = None
        self._policy: VLAPolicy | None = None
        self._session: PolicySession | None = None
        self._connected: tuple[bool, str] | None = None
        self._executor: ChunkExecutor | None = None
        self._tick_timer: rclpy.timer.Timer | None = None
        self._permissions: Subscription | None = None
        self._declared = DeclaredParameters(self, self._locked, self._on_live_change)
        for kind, name, callback in (
            (Trigger, "reset", self._on_reset),
            (SetBool, "pause", self._on_pause),
            (Trigger, "confirm", self._on_confirm),
            (Trigger, "switch_policy", self._on_switch_policy),
        ):
            self.create_service(kind, f"~/{name}", callback, callback_group=self.work_group)
        # Reports go on while simulated time is paused; decisions use the node's clock alone.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._reporter = StatusPublisher(self, self._report, self._watched, self._steady)
        self._previews = PreviewPublisher(self, self._steady)
        self._decisions = DecisionPublisher(self, self._previews)
        self._execute = ExecuteServer(
            self, self._report, self.now_ns, self._set_instruction, self._reporter.log_edge,
            self._reporter.publish_on_change,
        )
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jumps = self.get_clock().create_jump_callback(threshold, post_callback=self._on_clock_jump)
        self._human = HumanControl(
            self, self._report, self.now_ns, lambda: self._runner, self._on_taken_over,
            self._reporter.log_edge,
        )
        self._reporter.publish()

    def now_ns(self) -> int:
        """The node's clock, ns."""
        return int(self.get_clock().now().nanoseconds)

    def destroy_node(self) -> None:
        """Give the action back, then everything else."""
        self._execute.destroy()
        super().destroy_node()

    def _locked(self, inactive: bool) -> str | None:
        """The reason why a parameter cannot be changed now; inactive: it can be while inactive."""
        state = self.lifecycle_state
        if state == "unconfigured" or (inactive and state == "inactive"):
            return None
        if inactive:
            return f"can be changed only while the node is not active; it is {state}."
        return (
            f"can be changed only while the node is unconfigured; it is {state}. "
            "Deactivate and clean up first."
        )

    def _on_live_change(self) -> None:
        with self._parts:
            if self._runner is not None:
                self._runner.set_speed_scaling(*self._declared.read().speed_scaling_of(self._gate))
        self._reporter.publish_on_change()

    def _setup(self) -> None:
        parameters = with_example_policy(self._declared.read(), self.get_logger().warning)
        check_weights(parameters)
        self._human.joy = load_joy_mapping(parameters.joy_mapping)
        body = load_body(parameters, lambda topic: wait_for_description(self, topic))
        self._report.dry_run = parameters.dry_run
        example = example_state(body)
        brain = load_brain(parameters, self.now_ns, example, body.robot)
        shadow = load_shadow(parameters, self.now_ns, example, body.robot, brain.cameras)
        loaded = [brain] if shadow is None else [brain, shadow]
        for policy in loaded:
            _check_random(policy.policy, parameters)
            for warning in check_speed(parameters, policy, body.robot):
                self.get_logger().warning(warning)
            policy.session.thin_history(thinning_of(parameters, policy))
        self._wire(parameters, body, brain, shadow)

    def _wire(
        self,
        parameters: NodeParameters,
        body: RobotModel,
        brain: LoadedPolicy,
        shadow: LoadedPolicy | None = None,
    ) -> None:
        """Everything between the topics and the policies."""
        names = tuple(camera.name for camera in brain.cameras)
        config = replace(parameters.watchdog, max_age=body.robot.max_age)
        permission = parameters.permission
        self._monitor = SafetyMonitor(config, names, self.now_ns(), permission)
        if permission is not None:
            qos = LATCHED if permission.timeout == 0.0 else NEWEST_ONLY
            self._permissions = self.create_subscription(
                Bool, permission.topic, self._on_robot_may_move, qos, callback_group=self.work_group
            )
        loaded = [brain] if shadow is None else [brain, shadow]
        states = [policy.policy.config.proprioception for policy in loaded]
        states = [state for state in states if state is not None]
        self._inputs = ObservationSubscriber(
            self, parameters, body.robot, brain.cameras, bool(states), self._monitor,
            PoseFiller(body.make_kinematics and body.make_kinematics()), self._on_observation,
            self._on_instruction, any("gripper" in state.names for state in states),
            self._instruction_locked,
        )
        self._report.instruction = self._inputs.instruction
        self._first_instruction = self._inputs.instruction
        self._body = body
        self._previews.configure(body, brain.cameras, self._inputs.state_at)
        self._connect_arm(parameters)
        self._worker = self._start_worker(parameters, brain)
        self._shadow_worker = None if shadow is None else self._start_worker(parameters, shadow)
        self._take_policy(brain)

    def _start_worker(self, parameters: NodeParameters, loaded: LoadedPolicy) -> InferenceWorker:
        rate = parameters.max_inference_rate
        session: PolicySession | DelayedSession = loaded.session
        if parameters.added_latency > 0:
            session = DelayedSession(loaded.session, parameters.added_latency, self.now_ns)
        worker = InferenceWorker(
            session,
            self.now_ns,
            lambda chunk: self._on_chunk(chunk, worker),
            lambda error: self._on_error(error, worker),
            round(NANOSECONDS / rate) if rate > 0 else 0,
            loaded.thread,
        )
        self._loaded[worker] = loaded
        return worker

    def _take_policy(self, loaded: LoadedPolicy) -> None:
        """The policy that commands the arm, for status and diagnostics."""
        self._policy = loaded.policy
        self._session = loaded.session
        self._report.history_step = loaded.history_step
        self._report.policy_id = loaded.policy.identity

    def _connect_arm(self, parameters: NodeParameters) -> None:
        """Everything from chunks to the controller; in dry_run there is no controller."""
        assert self._inputs is not None
        body = self._body
        if not parameters.dry_run:
            kinematics = body.make_kinematics and body.make_kinematics()
            context = Context(self, body.robot, self._inputs.measured, kinematics)
            self._arm = make_arm(context)
            self._gripper = make_gripper(context)
        self._executor = body.executor(parameters.schedule)
        interfaces = CommandInterfaces(
            self._executor, self._arm, self._gripper, parameters.schedule.lead, parameters.confirm
        )
        self._decisions.set_robot(body.robot)
        self._runner = PolicyRunner(
            self._inputs,
            self._monitor,
            interfaces,
            self.now_ns,
            self._report,
            self._reporter.log_edge,
            observer=self._decisions,
        )
        self._gate = body.robot.gate
        self._runner.set_speed_scaling(*parameters.speed_scaling_of(body.robot.gate))
        self._connected = (parameters.dry_run, parameters.confirm)
        self._report.dry_run = parameters.dry_run
        rate = max(TICK_RATE, 0.0 if self._arm is None else self._arm.rate)
        self._tick_timer = self.create_timer(
            1.0 / rate, self._on_tick, callback_group=self.work_group, clock=self._steady
        )

    def _disconnect_arm(self) -> None:
        with self._parts:
            if self._tick_timer is not None:
                self.destroy_timer(self._tick_timer)
            for part in (self._arm, self._gripper):
                if part is not None:
                    part.close()
            self._runner = None
            self._arm = None
            self._gripper = None
            self._executor = None
            self._tick_timer = None
            self._connected = None

    def _start(self) -> None:
        parameters = self._declared.read()
        self._own_end = ""
        # dry_run may have changed since configure.
        check_weights(with_example_policy(parameters))
        _check_random(self._policy, parameters)
        if self._connected != (parameters.dry_run, parameters.confirm):
            with self._parts:
                self._disconnect_arm()
                self._connect_arm(parameters)
        assert self._runner is not None and self._worker is not None
        if not parameters.resume_instruction:
            self._set_instruction(self._first_instruction)
        self._first_instruction = ""
        if self._arm is not None:
            self._arm.prepare()
        self._runner.start(self._worker, self._shadow_worker)
        limits = ExecuteLimits(
            parameters.max_instruction_length,
            parameters.goal_fault_time,
            self._body.robot.gripper is not None,
        )
        self._execute.open(self._runner, limits)

    def _halt(self, reason: str) -> None:
        self._execute.close(self._own_end or reason)
        if self._runner is not None:
            self._runner.deactivate(self._own_end or reason)

    def _teardown(self) -> None:
        for worker in (self._worker, self._shadow_worker):
            if worker is not None:
                worker.stop(timeout=10.0)
        self._disconnect_arm()
        self._previews.close()
        with self._parts:
            if self._permissions is not None:
                self.destroy_subscription(self._permissions)
                self._permissions = None
            if self._inputs is not None:
                self._inputs.close()
            self._inputs = None
            self._worker = None
            self._shadow_worker = None
            self._loaded.clear()
            self._policy = None
            self._session = None
        self._own_end = ""
        self._report.policy_id = ""
        self._report.history = (0, 0)
        self._report.trajectory_shape = ""
        _free_memory()

    def _entered(self, state: str) -> None:
        if state != "active":
            self._report.state = state
            self._report.detail = self._own_end if state == "inactive" else ""
            self._human.publish_source()
        self._reporter.publish()

    def _failed(self, transition: str, reason: str) -> None:
        self._report.last_stop = f"{transition} failed: {reason}"
        self._report.last_stop_ns = self.now_ns()
        self._reporter.publish()

    def _on_observation(self, observation) -> None:  # type: ignore[no-untyped-def]
        if self._runner is not None:
            self._runner.observe(observation)
        self._previews.observe(observation)

    def _on_instruction(self, instruction: str) -> None:
        self._reporter.log_edge(f"instruction: {printable(instruction) or '(none)'}")
        self._report.instruction = instruction
        if self._runner is not None:
            self._runner.instruction_changed(instruction)

    def _set_instruction(self, instruction: str) -> None:
        if self._inputs is not None:
            self._inputs.set_instruction(instruction)

    def _instruction_locked(self, instruction: str) -> str:
        """The reason to refuse an instruction on the topic: a goal of ~/execute is in force."""
        if not self._execute.is_running:
            return ""
        reason = "a goal of ~/execute runs. Cancel it first."
        text = f"instruction '{printable(instruction)}' on the topic refused: {reason}"
        self._report.last_refusal = text
        self._report.last_refusal_ns = self.now_ns()
        self.get_logger().warning(printable(text, TEXT_LIMIT))
        return reason

    def _on_taken_over(self) -> None:
        self._execute.end(Result.HUMAN_TOOK_OVER, "~/take_over")
        self._reporter.publish_on_change()

    def _respond(self, response: ResponseT, problem: str, done: str = "") -> ResponseT:
        """problem: the reason why it was not done, empty where it was."""
        response.success = not problem
        response.message = problem or done
        self._reporter.publish_on_change()
        return response

    def _active_runner(self) -> PolicyRunner | None:
        return self._runner if self.lifecycle_state == "active" else None

    def _not_active(self) -> str:
        return f"the node is {self.lifecycle_state}, not active"

    def _on_confirm(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        runner = self._active_runner()
        return self._respond(response, self._not_active() if runner is None else runner.confirm())

    def _on_robot_may_move(self, message: Bool) -> None:
        with self._parts:
            self._monitor.robot_may_move(message.data, self.now_ns())
            if self._runner is not None and not message.data:
                self._runner.tick()  # the next tick would come up to 50 ms later
        self._reporter.publish_on_change()

    def _on_switch_policy(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        with self._parts:
            runner = self._runner
            other = self._shadow_worker
            problem = "the node is not active" if runner is None else runner.switch_policy()
            if not problem:
                assert other is not None and self._worker is not None
                self._shadow_worker = self._worker
                self._worker = other
                self._take_policy(self._loaded[other])
                self._reporter.log_edge(f"~/switch_policy: {self._report.policy_id} commands the arm")
        return self._respond(response, problem, f"{self._report.policy_id} commands the arm")

    def _on_chunk(self, chunk: ActionChunk, worker: InferenceWorker) -> None:
        runner = self._runner
        session = self._session
        if runner is not None and runner.is_shadow(worker):
            runner.on_chunk(chunk, worker)
        elif runner is not None and session is not None:
            self._report.history = session.history_fill
            self._report.history_every = session.history_report.every
            self._report.path = f"{session.path}: {session.path_reason}"
            runner.on_chunk(chunk, worker)
            self._reporter.publish_on_change()

    def _on_error(self, error: Exception, worker: InferenceWorker) -> None:
        runner = self._runner
        if runner is not None and runner.is_shadow(worker):
            self._reporter.log_edge(f"the shadow policy failed: {type(error).__name__}: {error}")
            return
        if not isinstance(error, RoboVLMsError):
            self._reporter.log_edge(f"inference failed: {type(error).__name__}: {error}")
        if runner is not None:
            runner.on_error(error)
            self._reporter.publish_on_change()

    def _on_tick(self) -> None:
        with self._parts:
            if self._runner is None:
                return
            self._runner.tick()
            self._tick_goal()
            deactivation_requested = self._runner.deactivation_requested
            if self._arm is not None:
                self._report.trajectory_shape = self._arm.shape_text
        self._reporter.publish_on_change()
        self._human.publish_source()
        if deactivation_requested and self.lifecycle_state == "active":
            self._own_end = f"the node deactivated itself: {self._report.last_refusal}"
            self.get_logger().error(printable(self._own_end, TEXT_LIMIT))
            self.change_state("deactivate")

    def _tick_goal(self) -> None:
        inputs = self._inputs
        executor = self._executor
        if inputs is None or not self._execute.is_running:
            return
        measured = inputs.measured()
        opening = None if measured is None else measured.gripper
        commanded = None if executor is None else executor.commanded_opening
        speed = float(inputs.speed().max())
        self._execute.tick(bool(inputs.instruction), opening, commanded, speed)

    def _watched(self) -> dict[str, str]:
        """Entries of /diagnostics beside the policy: name -> what is wrong, empty when nothing
        is."""
        watched = {}
        with self._parts:
            if self._inputs is not None and self.lifecycle_state == "active":
                watched["inputs"] = self._inputs.problem(self.now_ns()) or ""
                watched |= dict.fromkeys(FAULTS, "")
                watched |= {fault.name.split()[0]: fault.text for fault in self._monitor.present}
                watched["history_rate"] = self._report.falls_behind()
            if self._arm is not None:
                watched["controller"] = self._arm.problem() or self._arm.absence()
        return watched

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._runner is not None:
            self._runner.reset("reset")
        return self._respond(response, "", "history, plan and what was in flight are forgotten")

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        runner = self._active_runner()
        if runner is None:
            return self._respond(response, self._not_active())
        runner.pause(request.data)
        return self._respond(response, "")

    def _on_clock_jump(self, jump: TimeJump) -> None:
        self.get_logger().warning("the clock jumped back or changed: starting afresh")
        if self._runner is not None:
            self._runner.clock_jumped()
        elif self._inputs is not None:
            self._inputs.clear()


def _check_random(policy: "VLAPolicy | None", parameters: NodeParameters) -> None:
    if policy is not None and policy.is_random and not parameters.dry_run:
        raise ConfigError("the policy's weights are random: dry_run must be true.")


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM, which leave the arm held."""
    return run_until_signalled(VLANode, arguments)


if __name__ == "__main__":
    sys.exit(main())
