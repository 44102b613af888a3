"""The arm, the node's process and a client of the node's services, for the fault benchmark."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.bench.faults.arm import FaultArm
from robovlms_ros.bench.faults.policy_node import FAULT_TOPIC
from robovlms_ros.core.types import Array, RoboVLMsError
from robovlms_ros.msg import PolicyStatus
from robovlms_ros.ros.graph import LATCHED
from robovlms_ros.ros.messages import to_time
from robovlms_ros.ros.processes import Child
from robovlms_ros.ros.spinning import SteadySingleThreadedExecutor

NODE = "vla_node"
PATIENCE = 60.0  # s


class BenchFailed(RoboVLMsError):
    """The graph did not come to the state that a fault needs."""


@dataclass(frozen=True)
class PolicyProcess:
    """Process of a policy node: module, ROS arguments, instruction.

    patience: s that a condition may take.
    """

    module: str = "robovlms_ros.bench.faults.policy_node"
    arguments: tuple[str, ...] = (
        "-p", "checkpoint:=demo", "-p", "robot:=panda", "-p", "resume_instruction:=true",
    )  # fmt: skip
    instruction: str = "lift the red cube"
    patience: float = PATIENCE


class FaultStage(Node):
    """The arm, the node's process and a client of the node's services. It ends the arm."""

    def __init__(
        self, logs: Path, simulated_time: bool, arm: FaultArm | None = None, policy: PolicyProcess | None = None
    ) -> None:
        super().__init__("fault_bench")
        self.arm = arm or FaultArm(simulated_time)
        self._policy = policy or PolicyProcess()
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
        self.instruct(self._policy.instruction)
        self.change_state(self._change, Transition.TRANSITION_ACTIVATE)

    def _child(self, name: str, remaps: Sequence[str]) -> Child:
        arguments = [
            "--ros-args", *remaps, *self._policy.arguments, "-p", "dry_run:=false",
            "-p", f"use_sim_time:={str(self.arm.simulated_time).lower()}",
            "-p", "speed_scaling_ramp:=0.2", "-p", "watchdog.following_time:=2.0",
        ]  # fmt: skip
        return Child(name, self._policy.module, arguments, self._logs / f"{name}.log", {})

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

    def wait(self, condition: Callable[[], Any], awaited: str) -> None:
        """Wait for a condition. Raises BenchFailed after the policy's patience."""
        patience = self._policy.patience
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
