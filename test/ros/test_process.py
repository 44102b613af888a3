"""The policy node as a process: SIGINT leaves a driven arm held, SIGTERM ends one that still configures; both end
with code 0.
"""

import signal
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.ros


class Process:
    """One node in a process of its own, in a namespace of its own."""

    count = 0

    def __init__(self, module, **values):
        Process.count += 1
        self.namespace = f"process{Process.count}"
        given = [part for name, value in values.items() for part in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", f"robovlms_ros.ros.{module}", "--ros-args", "-r", f"__ns:=/{self.namespace}"]
        self.process = subprocess.Popen(command + given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def end(self, number):
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


@pytest.fixture
def start(ros):
    """A function that starts a node's process; what is left at the end is killed."""
    running = []

    def run(module, **values):
        running.append(Process(module, **values))
        return running[-1]

    yield run
    for process in running:
        if process.process.poll() is None:
            process.process.kill()
            process.process.communicate()


@pytest.fixture
def bystanders(ros):
    """A function that makes a fake arm and a listener in a namespace."""
    from fake_arm import FakeArm
    from ros_graph import Listener, Spinner

    spinners = []

    def make(namespace, node):
        arm, listener = FakeArm(namespace), Listener(node, namespace)
        spinners.append(Spinner(arm, arm.controller, listener))
        return arm, listener

    yield make
    for spinner in spinners:
        spinner.close()


def change_state(listener, node, transition):
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    from ros_graph import wait_for

    client = listener.create_client(ChangeState, f"{node}/change_state")
    wait_for(client.service_is_ready, "the lifecycle service")
    return client.call_async(ChangeState.Request(transition=Transition(id=transition)))


def patient():
    from ros_graph import PATIENT

    return {name.replace("__", "."): value for name, value in PATIENT.items()}


def test_a_signal_leaves_the_arm_held(start, bystanders, tiny_checkpoint):
    from fake_arm import is_stop
    from ros_graph import wait_for

    process = start("vla_node", checkpoint=tiny_checkpoint, dry_run="false", **patient())
    arm, listener = bystanders(process.namespace, "vla_node")
    for transition in (1, 3):  # configure, activate
        future = change_state(listener, "vla_node", transition)
        wait_for(future.done, "the transition", deadline=240.0)
        assert future.result().success
    listener.instruct("lift the red cube")
    listener.wait_state("running")
    wait_for(lambda: len(arm.commands) > 3, "commands")
    code, output = process.end(signal.SIGINT)
    assert code == 0, output
    wait_for(lambda: "asked to end" in listener.status.last_stop, "the reason")
    wait_for(lambda: is_stop(arm.last), lambda: f"the stop: {listener.status.last_stop}")
    wait_for(lambda: not arm.is_moving(), "the arm at rest")
    np.testing.assert_allclose(arm.positions, arm.last.points[-1].positions, atol=1e-6)
    assert not arm.rejected


def test_a_signal_during_configure(start, bystanders, tiny_checkpoint):
    from ros_graph import wait_for

    process = start("vla_node", checkpoint=tiny_checkpoint)
    arm, listener = bystanders(process.namespace, "vla_node")
    change_state(listener, "vla_node", 1)
    wait_for(lambda: listener.status.state == "configuring", "configuring")
    code, output = process.end(signal.SIGTERM)
    assert code == 0, output
    assert not arm.commands


def test_spinning_goes_on_when_something_is_destroyed_meanwhile(ros):
    """Reaction of rclpy when an entity is destroyed between being listed and being waited for."""
    from rclpy._rclpy_pybind11 import RCLError
    from rclpy.node import Node
    from rclpy.waitable import Waitable
    from ros_graph import Spinner, wait_for

    class Vanishing(Waitable):
        failed = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def get_num_entities(self):
            from rclpy.waitable import NumberOfEntities

            return NumberOfEntities()

        def is_ready(self, wait_set):
            return False

        def add_to_wait_set(self, wait_set):
            Vanishing.failed += 1
            if Vanishing.failed < 3:
                raise RCLError("pointer is invalid")

    node, ticks = Node("vanishing"), []
    node.add_waitable(Vanishing(node.default_callback_group))
    for threads in (1, 3):
        Vanishing.failed = 0
        ticks.clear()
        timer = node.create_timer(0.01, lambda: ticks.append(1))
        spinner = Spinner(node, threads=threads)
        wait_for(lambda: Vanishing.failed >= 3 and len(ticks) > 3, "the timer to go on")
        spinner.executor.shutdown()
        node.destroy_timer(timer)
    node.destroy_node()
