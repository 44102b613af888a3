"""Faults injected through the real graph into an arm at working speed, and the arm's motion judged against its limits.

The node is a process of its own, on a domain of its own; the arm is `FaultArm`. For each fault the arm first moves at
WORKING_SPEED or more. Judged from the fault on: every command step against the joints' speed limit, measured speed (at
most 1.05 times its limit), commanded and measured acceleration (at most 1.2 times), and the time to rest.
"""

import math
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from numpy.typing import NDArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.msg import PolicyStatus
from robovlms_ros.ros.demo.processes import Child
from robovlms_ros.ros.fault_bench.arm import FaultArm
from robovlms_ros.ros.fault_bench.policy_node import FAULT_TOPIC
from robovlms_ros.ros.inputs import LATCHED
from robovlms_ros.ros.messages import from_time, to_time
from robovlms_ros.types import NANOSECONDS, RoboVLMsError

Array = NDArray[np.float64]

NODE = "vla_node"
WORKING_SPEED = 0.6  # rad/s
AFTER = 2.6  # s recorded after a fault
REST = 1e-3  # rad/s
STOP = 0.9  # s: the longest stop from working speed, the lead and the middleware included
SILENCE = 0.6  # s until silence counts (max_age), and a tick
PLAN = 1.3  # s: a chunk's horizon and the stop at its end
STEP_LIMIT = 1.01
SPEED_LIMIT = 1.05
ACCELERATION_LIMIT = 1.2
PATIENCE = 60.0  # s


class BenchFailed(RoboVLMsError):
    """The graph did not come to the state that a fault needs."""


@dataclass(frozen=True)
class Row:
    """One fault's measurements. Ratios are parts of the joints' limits; times are seconds, NaN for never at rest.

    rest_allowed: the longest time to rest; NaN where the motion goes on.
    """

    fault: str
    speed: float
    gripper_closing: bool
    step: float
    measured_speed: float
    acceleration: float
    measured_acceleration: float
    rest: float
    rest_allowed: float
    state: str
    detail: str

    @property
    def within(self) -> bool:
        """True where every measurement is within its bound."""
        rests = math.isnan(self.rest_allowed) or self.rest <= self.rest_allowed
        return bool(
            self.step <= STEP_LIMIT
            and self.measured_speed <= SPEED_LIMIT
            and max(self.acceleration, self.measured_acceleration) <= ACCELERATION_LIMIT
            and rests
        )


@dataclass(frozen=True)
class Fault:
    """One fault. inject is called at working speed, mend after the record; rest_allowed as in Row.

    restarts: the node's process has ended and is started again afterwards. simulated_time: needs /clock.
    """

    name: str
    inject: Callable[["Stage"], Any]
    mend: Callable[["Stage"], Any] = lambda stage: None
    rest_allowed: float = math.nan
    restarts: bool = False
    simulated_time: bool = False


class Stage(Node):
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
        self.executor_ = SingleThreadedExecutor()
        self.executor_.add_node(self)
        self.executor_.add_node(self.arm)
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
        # A killed process stays in the graph for a while: its service must not be taken for the new one's.
        self.wait(lambda: self.status.state == "unconfigured", "the node's first status")
        self.change_state(self._change, Transition.TRANSITION_CONFIGURE)
        self.instruct("lift the red cube")
        self.change_state(self._change, Transition.TRANSITION_ACTIVATE)

    def _child(self, name: str, remaps: Sequence[str]) -> Child:
        arguments = [
            "--ros-args", *remaps, "-p", "checkpoint:=demo", "-p", "robot:=panda", "-p", "dry_run:=false",
            "-p", f"use_sim_time:={str(self.arm.simulated_time).lower()}",
            "-p", "authority_ramp:=0.2", "-p", "watchdog.following_time:=2.0",
        ]  # fmt: skip
        return Child(name, "robovlms_ros.ros.fault_bench.policy_node", arguments, self._logs / f"{name}.log", {})

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
        """Publish joint states from a second node at 10 Hz: the given positions, or the arm's own (None)."""
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
        """Start a second policy node on the same controller and configure it."""
        self._second = self._child("second", ["-r", "__node:=second_vla"])
        client = self.create_client(ChangeState, "second_vla/change_state")
        self.change_state(client, Transition.TRANSITION_CONFIGURE)

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
        self.arm.destroy_node()


def _hook_joints(change: Callable[[JointState], JointState | None]) -> Callable[[Stage], None]:
    def inject(stage: Stage) -> None:
        stage.arm.joint_hook = change

    return inject


def _hook_images(change: Callable[[Any], Any]) -> Callable[[Stage], None]:
    def inject(stage: Stage) -> None:
        stage.arm.image_hook = change

    return inject


def _mend_messages(stage: Stage) -> None:
    stage.arm.joint_hook = lambda message: message
    stage.arm.image_hook = lambda message: message


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


def _named_twice(message: JointState) -> JointState:
    message.name = [*message.name, message.name[3]]
    message.position = [*message.position, 0.0]
    return message


def _frozen_image() -> Callable[[Any], Any]:
    kept: list[Any] = []

    def change(message: Any) -> Any:
        kept.append(message.data)
        message.data = kept[0]
        return message

    return change


def _controller_restart(stage: Stage) -> None:
    stage.arm.listen(False)
    stage.arm.restart_controller()
    time.sleep(0.3)
    stage.arm.listen(True)


def _controller_away(stage: Stage) -> None:
    stage.arm.listen(False)
    stage.arm.restart_controller()


def _jump_clock(seconds: float) -> Callable[[Stage], None]:
    def inject(stage: Stage) -> None:
        stage.arm.jump_clock(seconds)

    return inject


def faults() -> tuple[Fault, ...]:
    """Every fault of docs/faults.md, each watchdog and each end."""
    healthy = _mend_messages
    silent = SILENCE + STOP
    policy = lambda kind: lambda stage: stage.policy_fault(kind)  # noqa: E731
    strangers = Stage.remove_strangers
    return (
        Fault("joint states silent", _hook_joints(lambda message: None), healthy, silent),
        Fault("joint states 0.6 s old", _hook_joints(_shifted(-0.6)), healthy, silent),
        Fault("joint states stamped 8 s ahead", _hook_joints(_shifted(8.0)), healthy, STOP),
        Fault("one glitch of 0.6 rad", lambda s: _hook_joints(_once(_moved(0, 0.6)))(s), healthy),
        Fault("one reading of 100 rad", lambda s: _hook_joints(_once(_moved(2, 100.0)))(s), healthy),
        Fault("zeros of a second publisher", lambda s: s.second_publisher(np.zeros(7)), strangers, STOP),
        Fault("a second publisher that agrees", lambda s: s.second_publisher(None), strangers, 0.5 + STOP),
        Fault("a position that is not a number", _hook_joints(_not_a_number), healthy, STOP),
        Fault("velocities that are not numbers", _hook_joints(_velocities_not_a_number), healthy),
        Fault("a joint with two values", _hook_joints(_named_twice), healthy, STOP),
        Fault("cameras silent", _hook_images(lambda message: None), healthy, silent),
        Fault("camera clock 8 s ahead", _hook_images(_shifted(8.0)), healthy, silent),
        Fault("cameras frozen", lambda s: _hook_images(_frozen_image())(s), healthy, 1.2 + STOP),
        Fault("empty instruction", lambda s: s.instruct(""), lambda s: s.instruct("lift the red cube"), STOP),
        Fault("inference late", policy("late"), policy(""), PLAN + 0.2),
        Fault("inference failed", policy("died"), policy(""), 0.3 + STOP),
        Fault("chunk not finite", policy("not_finite"), policy(""), 0.3 + STOP),
        Fault("chunk of 1e6 rad", policy("huge"), policy(""), 0.3 + STOP),
        Fault("chunk 0.5 rad away", policy("jump"), policy("")),
        Fault("controller away", _controller_away, lambda s: s.arm.listen(True), STOP),
        Fault("controller restarted", _controller_restart),
        Fault("second publisher of commands", lambda s: s.second_commander(), strangers, STOP),
        Fault("second policy node", lambda s: s.second_node(), strangers, math.nan),
        Fault("pause", lambda s: s.pause(True), lambda s: s.pause(False), STOP),
        Fault("pause and resume at once", lambda s: (s.pause(True), s.pause(False))),
        Fault("reset", lambda s: s.reset()),
        Fault("deactivate", lambda s: s.deactivate(), lambda s: s.activate(), STOP),
        Fault("SIGINT", lambda s: s.signal(signal.SIGINT), rest_allowed=STOP, restarts=True),
        Fault("SIGTERM", lambda s: s.signal(signal.SIGTERM), rest_allowed=STOP, restarts=True),
        Fault("kill -9", lambda s: s.signal(signal.SIGKILL), rest_allowed=PLAN, restarts=True),
        Fault("clock 50 s back", _jump_clock(-50.0), rest_allowed=math.nan, simulated_time=True),
        Fault("clock 60 s forward", _jump_clock(60.0), rest_allowed=math.nan, simulated_time=True),
    )


def measure(stage: Stage, fault: Fault) -> Row:
    """Bring the arm to working speed, inject the fault and judge the motion after it."""
    if stage.status.state == PolicyStatus.INACTIVE:  # the node deactivated itself after many refusals
        stage.activate()
    stage.wait(lambda: stage.status.state == PolicyStatus.RUNNING, f"running, before '{fault.name}'")
    # The gripper closes once in two of its periods: faults are injected then, where it comes in time.
    deadline = time.monotonic() + 6.0

    def ready() -> bool:
        fast = stage.arm.speed() >= WORKING_SPEED
        closing = time.monotonic() - stage.arm.gripper_closes_s < 0.4
        return fast and (closing or time.monotonic() > deadline)

    stage.wait(ready, f"{WORKING_SPEED} rad/s, before '{fault.name}'")
    closing = time.monotonic() - stage.arm.gripper_closes_s < 0.4
    speed = stage.arm.speed()
    since = stage.arm.mark()
    begin = time.monotonic()
    fault.inject(stage)
    time.sleep(max(0.0, begin + AFTER - time.monotonic()))
    state = stage.status.state
    detail = stage.status.detail or stage.status.last_stop
    times, commands, measured, own = stage.arm.recorded(max(0, since - 3))
    judged = judge(times, commands, measured, own, stage.arm.robot)
    rest = time_to_rest(times[3:], commands[3:])
    fault.mend(stage)
    return Row(fault.name, speed, closing, *judged, rest, fault.rest_allowed, state, detail)


def judge(
    times: Array, commands: Array, measured: Array, own: Sequence[int], robot: Any
) -> tuple[float, float, float, float]:
    """Worst command step, measured speed, commanded and measured acceleration, as parts of the limits.

    own: indices at which the restarted controller itself takes up the measured pose; no client can prevent that step.
    """
    limits = robot.limits
    ratios = []
    for values in (commands, measured):
        step = np.diff(times)[:, None]
        speeds = np.diff(values, axis=0) / step
        between = (times[2:] - times[:-2])[:, None] / 2
        accelerations = np.diff(speeds, axis=0) / between
        for index in own:
            speeds[max(0, index - 2) : index + 2] = 0.0
            # The joints follow the step with their lag.
            until = index + (40 if values is measured else 3)
            accelerations[max(0, index - 3) : until] = 0.0
        ratios.append(float(np.abs(speeds / limits.velocity).max()))
        ratios.append(float(np.abs(accelerations / limits.acceleration).max()))
    step_ratio, acceleration, speed_ratio, measured_acceleration = ratios
    return step_ratio, speed_ratio, acceleration, measured_acceleration


def time_to_rest(times: Array, commands: Array) -> float:
    """Seconds until the commanded joints stay at rest; NaN where they move at the end."""
    speeds = np.abs(np.diff(commands, axis=0)).max(axis=1) / np.diff(times)
    moving = np.flatnonzero(speeds > REST)
    if not len(moving):
        return 0.0
    if moving[-1] >= len(speeds) - 20:
        return math.nan
    return float(times[moving[-1] + 1] - times[0])


@contextmanager
def _stage(simulated_time: bool) -> Iterator[Stage]:
    logs = Path(tempfile.mkdtemp(prefix="robovlms_faults_"))
    stage = Stage(logs, simulated_time)
    try:
        stage.start_node()
        yield stage
    finally:
        stage.close()
        stage.destroy_node()


def run(chosen: Sequence[Fault], report: Callable[[Row], None]) -> list[Row]:
    """Measure the chosen faults; `report` is called with each row. Raises BenchFailed, ChildDied."""
    # A domain of its own, on this machine only: the commands must never reach a real arm on the network.
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(1, 100))
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
                    if fault.restarts:
                        stage.node.stop()
                        stage.start_node()
    finally:
        rclpy.try_shutdown()
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table of the rows."""
    lines = [
        "| fault | speed at the fault (rad/s) | gripper closing | command step | measured speed | acceleration, "
        "commanded | acceleration, measured | at rest after (s) | allowed (s) | state: detail |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        allowed = "goes on" if math.isnan(row.rest_allowed) else f"{row.rest_allowed:.1f}"
        rest = "moves" if math.isnan(row.rest) else f"{row.rest:.2f}"
        detail = row.detail.replace("|", "/")[:140]
        lines.append(
            f"| {row.fault}{'' if row.within else ' **BEYOND**'} | {row.speed:.2f} | "
            f"{'yes' if row.gripper_closing else 'no'} | {row.step:.2f} | {row.measured_speed:.2f} | "
            f"{row.acceleration:.2f} | {row.measured_acceleration:.2f} | {rest} | {allowed} | {row.state}: {detail} |"
        )
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values."""
    return [{**asdict(row), "within": row.within} for row in rows]
