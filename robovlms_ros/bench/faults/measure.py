"""Faults injected through the real graph into an arm at working speed, and the arm's motion judged
against its limits.

The node is a process of its own, on a domain of its own; the arm is `FaultArm`. For each fault the
arm first moves at WORKING_SPEED or more. Judged from the fault on, the recovery included: every
command step against the joints' speed limit, measured speed, commanded and measured acceleration,
positions, and the time to rest (`rows`).
"""

import itertools
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.bench.faults.arm import PERIOD, FaultArm
from robovlms_ros.bench.faults.policy_node import FAULT_TOPIC
from robovlms_ros.bench.faults.rows import (
    FaultRow,
    Motion,
    judge,
    longest_standstill,
    time_to_rest,
)
from robovlms_ros.core.types import NANOSECONDS, Array, RoboVLMsError
from robovlms_ros.msg import PolicyStatus
from robovlms_ros.ros.graph import LATCHED
from robovlms_ros.ros.messages import from_time, to_time
from robovlms_ros.ros.processes import Child, isolated_environment
from robovlms_ros.ros.spinning import SteadySingleThreadedExecutor

NODE = "vla_node"
WORKING_SPEED = 0.6  # rad/s
AFTER = 2.6  # s recorded after a fault
RECOVERY = 1.0  # s recorded after the node runs again
STOP = 0.6  # s: the longest stop from working speed, below the 0.8 s in which a plan ends by itself
SILENCE = 0.6  # s until silence counts (max_age), and a tick
FROZEN = 2.5  # s: found after 0.5 s, a stop, and the set point's way back to the arm
PLAN = 1.3  # s: a chunk's horizon and the stop at its end
TAKEN_UP = 2 * PERIOD
"""s after which the controller has taken up a command that arrived."""

PATIENCE = 60.0  # s


class BenchFailed(RoboVLMsError):
    """The graph did not come to the state that a fault needs."""


@dataclass(frozen=True)
class InjectedFault:
    """One fault. inject is called at working speed, mend after the record.

    rest_allowed: s until the arm must be at rest, from the injection on; NaN where the motion goes
    on. resumes: the motion may stop and must move again while the fault is present. slow: the
    injection takes seconds, and the fault is complete at its end; the time to rest counts from
    there.
    restarts: the node's process has ended and is started again afterwards. simulated_time: needs
        /clock.
    """

    name: str
    inject: Callable[["FaultStage"], Any]
    mend: Callable[["FaultStage"], Any] = lambda stage: None
    rest_allowed: float = math.nan
    resumes: bool = False
    slow: bool = False
    restarts: bool = False
    simulated_time: bool = False

    @property
    def motion(self) -> Motion:
        """The motion that the fault must leave."""
        if self.resumes:
            return "resumes"
        return "goes on" if math.isnan(self.rest_allowed) else "rests"


class FaultStage(Node):
    """The arm, the node's process and a client of the node's services."""

    def __init__(self, logs: Path, simulated_time: bool) -> None:
        super().__init__("fault_bench")
        self.arm = FaultArm(simulated_time)
        self._logs = logs
        self._starts = 0
        self.status = PolicyStatus()
        self._strangers: list[Node] = []
        self._second: Child | None = None
        self._instruction = self.create_publisher(String, "instruction", LATCHED)
        self._fault = self.create_publisher(String, FAULT_TOPIC, 10)
        self.create_subscription(PolicyStatus, f"{NODE}/status", self._on_status, LATCHED)
        self._change = self.create_client(ChangeState, f"{NODE}/change_state")
        self._pause = self.create_client(SetBool, f"{NODE}/pause")
        self._reset = self.create_client(Trigger, f"{NODE}/reset")
        self.executor_ = SteadySingleThreadedExecutor()
        self.executor_.add_node(self)
        self.executor_.add_node(self.arm)
        self.executor_.add_node(self.arm.controller)
        self._spinner = threading.Thread(target=self._spin, name="fault bench", daemon=True)
        self._spinner.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self.executor_.spin()

    def _on_status(self, message: PolicyStatus) -> None:
        self.status = message

    def start_node(self) -> None:
        """Start the node's process and bring it to active."""
        self._starts += 1
        self.status = PolicyStatus()
        self.node = self._child(f"node{self._starts}", [])
        # A killed process stays in the graph for a while: its service must not be taken for the new
        # one's.
        self.wait(lambda: self.status.state == "unconfigured", "the node's first status")
        self.change_state(self._change, Transition.TRANSITION_CONFIGURE)
        self.instruct("lift the red cube")
        self.change_state(self._change, Transition.TRANSITION_ACTIVATE)

    def _child(self, name: str, remaps: Sequence[str]) -> Child:
        arguments = [
            "--ros-args", *remaps, "-p", "checkpoint:=demo", "-p", "robot:=panda", "-p", "dry_run:=false",
            "-p", f"use_sim_time:={str(self.arm.simulated_time).lower()}",
            "-p", "speed_scaling_ramp:=0.2", "-p", "watchdog.following_time:=2.0",
            "-p", "resume_instruction:=true",
        ]  # fmt: skip
        return Child(name, "robovlms_ros.bench.faults.policy_node", arguments, self._logs / f"{name}.log", {})

    def change_state(self, client: Any, transition: int) -> None:
        """Request a transition. Raises BenchFailed where it is refused."""
        self.wait(client.service_is_ready, "the lifecycle service")
        future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        self.wait(future.done, "a transition's answer")
        if not future.result().success:
            raise BenchFailed(f"transition {transition} was refused; see {self._logs}.")

    def instruct(self, text: str) -> None:
        """Publish an instruction."""
        self._instruction.publish(String(data=text))

    def policy_fault(self, kind: str) -> None:
        """Set the scripted policy's fault; empty for none."""
        self._fault.publish(String(data=kind))

    def call(self, client: Any, request: Any) -> None:
        """Call a service and wait for its answer."""
        future = client.call_async(request)
        self.wait(future.done, "a service's answer")

    def pause(self, paused: bool) -> None:
        """Call ~/pause."""
        self.call(self._pause, SetBool.Request(data=paused))

    def reset(self) -> None:
        """Call ~/reset."""
        self.call(self._reset, Trigger.Request())

    def deactivate(self) -> None:
        """Request the deactivate transition."""
        self.change_state(self._change, Transition.TRANSITION_DEACTIVATE)

    def activate(self) -> None:
        """Request the activate transition."""
        self.change_state(self._change, Transition.TRANSITION_ACTIVATE)

    def signal(self, number: int) -> None:
        """Send a signal to the node's process."""
        self.node._process.send_signal(number)

    def second_publisher(self, positions: Array | None) -> None:
        """Publish joint states from a second node at 10 Hz: the given positions, or the arm's own
        (None)."""
        node = Node("second_driver")
        publisher = node.create_publisher(JointState, "joint_states", 10)

        def publish() -> None:
            values = self.arm.positions if positions is None else positions
            message = JointState(name=list(self.arm.robot.joints), position=values.tolist())
            message.header.stamp = to_time(self.arm.now_ns())
            publisher.publish(message)

        node.create_timer(0.1, publish)
        self._add(node)

    def second_commander(self) -> None:
        """Create a publisher of another node on the command topic."""
        node = Node("stranger")
        node.create_publisher(JointTrajectory, self.arm.robot.controller.topic, 10)  # type: ignore[union-attr]
        self._add(node)

    def _add(self, node: Node) -> None:
        self._strangers.append(node)
        self.executor_.add_node(node)

    def second_node(self) -> None:
        """Start a second policy node on the same controller and activate it."""
        self._second = self._child("second", ["-r", "__node:=second_vla"])
        client = self.create_client(ChangeState, "second_vla/change_state")
        self.change_state(client, Transition.TRANSITION_CONFIGURE)
        self.change_state(client, Transition.TRANSITION_ACTIVATE)

    def remove_strangers(self) -> None:
        """End what `second_...` began."""
        for node in self._strangers:
            self.executor_.remove_node(node)
            node.destroy_node()
        self._strangers.clear()
        if self._second is not None:
            self._second.stop()
            self._second = None

    def wait(self, condition: Callable[[], Any], awaited: str, patience: float = PATIENCE) -> None:
        """Wait for a condition. Raises BenchFailed after `patience` seconds."""
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                raise BenchFailed(
                    f"waited {patience:.0f} s for {awaited}; the node is {self.status.state}: {self.status.detail}"
                )
            time.sleep(0.005)

    def close(self) -> None:
        """End processes, threads and nodes."""
        self.remove_strangers()
        self.node.stop()
        self.arm.close()
        self.executor_.shutdown(timeout_sec=5.0)
        self._spinner.join(5.0)
        self.arm.controller.destroy_node()
        self.arm.destroy_node()


def _hook_joints(change: Callable[[JointState], JointState | None]) -> Callable[[FaultStage], None]:
    def inject(stage: FaultStage) -> None:
        stage.arm.joint_hook = change

    return inject


def _hook_images(change: Callable[[Any], Any]) -> Callable[[FaultStage], None]:
    def inject(stage: FaultStage) -> None:
        stage.arm.image_hook = change

    return inject


def _mend_messages(stage: FaultStage) -> None:
    stage.arm.joint_hook = lambda message: message
    stage.arm.image_hook = lambda message: message
    stage.arm.silent_camera = ""


def _shifted(seconds: float) -> Callable[[Any], Any]:
    def change(message: Any) -> Any:
        message.header.stamp = to_time(from_time(message.header.stamp) + round(seconds * NANOSECONDS))
        return message

    return change


def _once(change: Callable[[JointState], JointState]) -> Callable[[JointState], JointState]:
    done: list[bool] = []

    def first(message: JointState) -> JointState:
        if done:
            return message
        done.append(True)
        return change(message)

    return first


def _moved(joint: int, distance: float) -> Callable[[JointState], JointState]:
    def change(message: JointState) -> JointState:
        message.position[joint] += distance
        return message

    return change


def _not_a_number(message: JointState) -> JointState:
    message.position[3] = math.nan
    return message


def _velocities_not_a_number(message: JointState) -> JointState:
    message.velocity = [math.nan] * len(message.name)
    return message


def _one_joint_less(message: JointState) -> JointState:
    del message.name[6]
    del message.position[6]
    return message


def _named_twice(message: JointState) -> JointState:
    message.name = [*message.name, message.name[3]]
    message.position = [*message.position, 0.0]
    return message


def _frozen(field: str) -> Callable[[Any], Any]:
    """A field of every message repeats the first message's value."""
    kept: list[Any] = []

    def change(message: Any) -> Any:
        kept.append(getattr(message, field))
        setattr(message, field, kept[0])
        return message

    return change


def _every_other(change: Callable[[JointState], JointState]) -> Callable[[JointState], JointState]:
    count = itertools.count()
    return lambda message: change(message) if next(count) % 2 else message


def _without_wrist(stage: FaultStage) -> None:
    stage.arm.silent_camera = "wrist"


def _controller_restart(stage: FaultStage) -> None:
    stage.arm.listen(False)
    stage.arm.restart_controller()
    time.sleep(0.3)
    stage.arm.listen(True)


def _controller_away(stage: FaultStage) -> None:
    stage.arm.listen(False)
    stage.arm.restart_controller()


def _release(stage: FaultStage) -> None:
    stage.arm.frozen = False


def _jump_clock(seconds: float) -> Callable[[FaultStage], None]:
    def inject(stage: FaultStage) -> None:
        # No client can take back what is under way to a controller whose clock jumps.
        before = stage.arm.received
        stage.wait(lambda: stage.arm.received > before, "a command, before the clock jumps")
        time.sleep(TAKEN_UP)
        stage.arm.jump_clock(seconds)

    return inject


def faults() -> tuple[InjectedFault, ...]:
    """Every fault of docs/faults.md, each watchdog and each end."""
    healthy = _mend_messages
    silent = SILENCE + STOP
    policy = lambda kind: lambda stage: stage.policy_fault(kind)  # noqa: E731
    strangers = FaultStage.remove_strangers
    return (
        InjectedFault("joint states silent", _hook_joints(lambda message: None), healthy, silent),
        InjectedFault("joint states 0.6 s old", _hook_joints(_shifted(-0.6)), healthy, silent),
        InjectedFault("joint states stamped 8 s ahead", _hook_joints(_shifted(8.0)), healthy, STOP),
        InjectedFault(
            "one glitch of 0.6 rad",
            lambda s: _hook_joints(_once(_moved(0, 0.6)))(s),
            healthy,
            resumes=True,
        ),
        InjectedFault(
            "one reading of 100 rad",
            lambda s: _hook_joints(_once(_moved(2, 100.0)))(s),
            healthy,
            resumes=True,
        ),
        InjectedFault(
            "zeros of a second publisher",
            lambda s: s.second_publisher(np.zeros(7)),
            strangers,
            STOP,
        ),
        InjectedFault(
            "a second publisher that agrees",
            lambda s: s.second_publisher(None),
            strangers,
            0.5 + STOP,
        ),
        InjectedFault(
            "a position that is not a number", _hook_joints(_not_a_number), healthy, STOP
        ),
        InjectedFault(
            "joint states without their last joint", _hook_joints(_one_joint_less), healthy, STOP
        ),
        InjectedFault(
            "joint states that repeat one pose",
            lambda s: _hook_joints(_frozen("position"))(s),
            healthy,
            2.0 + STOP,
        ),
        InjectedFault(
            "every other joint state 0.3 s old",
            lambda s: _hook_joints(_every_other(_shifted(-0.3)))(s),
            healthy,
        ),
        InjectedFault(
            "every other joint state 0.09 s ahead",
            lambda s: _hook_joints(_every_other(_shifted(0.09)))(s),
            healthy,
        ),
        InjectedFault(
            "velocities that are not numbers", _hook_joints(_velocities_not_a_number), healthy
        ),
        InjectedFault("a joint with two values", _hook_joints(_named_twice), healthy, STOP),
        InjectedFault("cameras silent", _hook_images(lambda message: None), healthy, silent),
        InjectedFault("one of two cameras silent", _without_wrist, healthy, silent),
        InjectedFault("camera clock 8 s ahead", _hook_images(_shifted(8.0)), healthy, silent),
        InjectedFault(
            "cameras frozen", lambda s: _hook_images(_frozen("data"))(s), healthy, 1.2 + STOP
        ),
        InjectedFault(
            "empty instruction",
            lambda s: s.instruct(""),
            lambda s: s.instruct("lift the red cube"),
            STOP,
        ),
        InjectedFault("inference late", policy("late"), policy(""), PLAN + 0.2),
        InjectedFault("inference failed", policy("died"), policy(""), 0.3 + STOP),
        InjectedFault("chunk not finite", policy("not_finite"), policy(""), 0.3 + STOP),
        InjectedFault("chunk of 1e6 rad", policy("huge"), policy(""), 0.3 + STOP),
        InjectedFault("chunk 0.5 rad away", policy("jump"), policy("")),
        InjectedFault("controller away", _controller_away, lambda s: s.arm.listen(True), STOP),
        InjectedFault("controller restarted", _controller_restart, resumes=True),
        InjectedFault("arm frozen, then released", lambda s: s.arm.freeze(), _release, FROZEN),
        InjectedFault(
            "second publisher of commands", lambda s: s.second_commander(), strangers, STOP
        ),
        InjectedFault(
            "second policy node", lambda s: s.second_node(), strangers, 0.5 + STOP, slow=True
        ),
        InjectedFault("pause", lambda s: s.pause(True), lambda s: s.pause(False), STOP),
        InjectedFault(
            "pause and resume at once",
            lambda s: (s.pause(True), s.pause(False)),
            resumes=True,
        ),
        InjectedFault("reset", lambda s: s.reset(), resumes=True),
        InjectedFault("deactivate", lambda s: s.deactivate(), lambda s: s.activate(), STOP),
        InjectedFault(
            "SIGINT", lambda s: s.signal(signal.SIGINT), rest_allowed=STOP, restarts=True
        ),
        InjectedFault(
            "SIGTERM", lambda s: s.signal(signal.SIGTERM), rest_allowed=STOP, restarts=True
        ),
        InjectedFault(
            "kill -9", lambda s: s.signal(signal.SIGKILL), rest_allowed=PLAN, restarts=True
        ),
        InjectedFault(
            "clock 50 s back", _jump_clock(-50.0), resumes=True, simulated_time=True
        ),
        InjectedFault(
            "clock 60 s forward", _jump_clock(60.0), resumes=True, simulated_time=True
        ),
    )


def measure(stage: FaultStage, fault: InjectedFault) -> FaultRow:
    """Bring the arm to working speed, inject the fault and judge the motion after it."""
    stage.wait(lambda: stage.status.state == PolicyStatus.RUNNING, f"running, before '{fault.name}'")
    # The gripper closes once in two of its periods: faults are injected then, where it comes in
    # time.
    deadline = time.monotonic() + 6.0

    def ready() -> bool:
        fast = stage.arm.speed() >= WORKING_SPEED
        closing = time.monotonic() - stage.arm.gripper_closes_s < 0.4
        return fast and (closing or time.monotonic() > deadline)

    stage.wait(ready, f"{WORKING_SPEED} rad/s, before '{fault.name}'")
    closing = time.monotonic() - stage.arm.gripper_closes_s < 0.4
    speed = stage.arm.speed()
    since = stage.arm.mark()
    earlier = stage.status.last_stop
    begin = time.monotonic()
    fault.inject(stage)
    complete = since
    if fault.slow:
        complete = stage.arm.mark()
        begin = time.monotonic()
    time.sleep(max(0.0, begin + AFTER - time.monotonic()))
    state = stage.status.state
    stopped = stage.status.last_stop
    detail = stage.status.detail or (stopped if stopped != earlier else "")
    until = stage.arm.mark()
    fault.mend(stage)
    _recover(stage, fault)
    times, commands, measured, own = stage.arm.recorded(max(0, since - 3))
    judged = judge(times, commands, measured, own, stage.arm.robot)
    present = slice(3 + complete - since, until - since)
    rest = time_to_rest(times[present], commands[present])
    standstill = longest_standstill(times[present], commands[present])
    return FaultRow(
        fault.name,
        speed,
        closing,
        *judged,
        rest,
        fault.rest_allowed,
        fault.motion,
        standstill,
        state,
        detail,
    )


def _recover(stage: FaultStage, fault: InjectedFault) -> None:
    """Bring the node back to running and let the arm move: what a recovery commands is judged like
    the fault."""
    if fault.restarts:
        stage.node.stop()
        stage.start_node()
    # the node deactivated itself after many refusals
    if stage.status.state == PolicyStatus.INACTIVE:
        stage.activate()
    stage.wait(lambda: stage.status.state == PolicyStatus.RUNNING, f"running, after '{fault.name}'")
    time.sleep(RECOVERY)


@contextmanager
def _stage(simulated_time: bool) -> Iterator[FaultStage]:
    logs = Path(tempfile.mkdtemp(prefix="robovlms_faults_"))
    stage = FaultStage(logs, simulated_time)
    try:
        stage.start_node()
        yield stage
    finally:
        stage.close()
        stage.destroy_node()


def run(chosen: Sequence[InjectedFault], report: Callable[[FaultRow], None]) -> list[FaultRow]:
    """Measure the chosen faults; `report` is called with each row. Raises BenchFailed,
    ChildDied."""
    # A domain of its own, on this machine only: the commands must never reach a real arm on the
    # network.
    os.environ.update(isolated_environment())
    rows = []
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        for simulated_time in (False, True):
            group = [fault for fault in chosen if fault.simulated_time == simulated_time]
            if not group:
                continue
            with _stage(simulated_time) as stage:
                for fault in group:
                    rows.append(measure(stage, fault))
                    report(rows[-1])
    finally:
        rclpy.try_shutdown()
    return rows
