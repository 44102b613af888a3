"""The node finds out what its joint_trajectory_controller does with a new trajectory, and sends
what moves it smoothly.

- the parameters of the controller's node decide, at run time too; another build in its place
  is detected;
- where nothing answers the distribution decides, with a warning; `trajectory_shape` in the robot's
  YAML overrules both;
- the message of a replacement on the wire: no stamp, points ahead alone;
- through DDS to the simulated arm, whose controller blends or forgets, and is switched meanwhile:
  no step.
"""

import time
from dataclasses import replace

import numpy as np
import pytest

pytestmark = pytest.mark.ros

TOPIC = "some_controller/joint_trajectory"


@pytest.fixture
def controller(stage):
    """Starts the node of a controller with parameters, in the stage's namespace; returns it."""
    from rclpy.node import Node
    from ros_graph import Spinner

    spinners = []

    def start(**parameters):
        node = Node("some_controller", namespace=stage.sender.get_namespace())
        for name, value in parameters.items():
            node.declare_parameter(name.replace("__", "."), value)
        spinners.append(Spinner(node))
        return node, spinners[-1]

    yield start
    for spinner in spinners:
        spinner.close()


def arm_of(stage, **block):
    return stage.arm(type="joint_trajectory", topic=TOPIC, **block)


BLENDS = {"positions_upsampling__enable": False, "allow_trajectory_replacement": True}


def switch(node, value):
    from rclpy.parameter import Parameter

    node.set_parameters([Parameter("allow_trajectory_replacement", value=value)])


def test_a_build_that_blends_is_sent_replacements_until_it_is_switched(stage, controller):
    node, _ = controller(**BLENDS)
    arm = arm_of(stage)
    stage.wait_for(lambda: "is true" in arm.shape_text, "the answer")
    assert arm.shape == "replacement"
    for value, shape in ((False, "self_splice"), (True, "replacement")):
        switch(node, value)
        stage.wait_for(lambda: arm.shape == shape, f"the change to {shape}")  # noqa: B023
        assert f"allow_trajectory_replacement is {str(value).lower()}" in arm.shape_text


@pytest.mark.parametrize("parameters", [
    {"interpolate_from_desired_state": False},
    {"allow_trajectory_replacement": True},  # 6.8 and 6.9.0: the name means something else
])  # fmt: skip
def test_a_build_that_cannot_blend_is_sent_self_splices(stage, controller, parameters, monkeypatch):
    monkeypatch.setenv("ROS_DISTRO", "rolling")
    controller(**parameters)
    arm = arm_of(stage)
    shape, text = arm.shape, arm.shape_text
    # Unless the controller has answered already.
    assert "does not blend" in text or (shape == "replacement" and "ROS_DISTRO is rolling" in text)
    stage.wait_for(lambda: "does not blend" in arm.shape_text, "the answer")
    assert arm.shape == "self_splice"


def test_another_build_in_its_place_is_detected(stage, controller):
    _, spinner = controller(**BLENDS)
    arm = arm_of(stage)
    stage.wait_for(lambda: arm.shape == "replacement", "the answer")
    spinner.close()
    controller(interpolate_from_desired_state=False)
    stage.wait_for(lambda: arm.shape == "self_splice", "the other build's answer")


@pytest.mark.parametrize(
    "distribution, shape",
    [
        ("", "self_splice"),
        ("jazzy", "self_splice"),
        ("kilted", "self_splice"),
        ("lyrical", "replacement"),
    ],
)
def test_where_nothing_answers_the_distribution_decides(stage, monkeypatch, distribution, shape):
    monkeypatch.setenv("ROS_DISTRO", distribution)
    warnings = []
    monkeypatch.setattr(stage.sender.get_logger(), "warning", warnings.append)
    arm = arm_of(stage)
    assert arm.shape == shape
    stage.wait_for(lambda: warnings, "the warning")
    assert "answers no parameter service" in warnings[0] and "trajectory_shape" in warnings[0]
    assert arm.shape == shape and (distribution or "not set") in arm.shape_text


def test_the_robots_yaml_overrules(stage, controller):
    from robovlms_ros.core.schema import ConfigError

    controller(**BLENDS)
    arm = arm_of(stage, trajectory_shape="self_splice")
    assert (arm.shape, arm.shape_text) == (
        "self_splice", "self_splice: controller.trajectory_shape of the robot",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="trajectory_shape"):
        arm_of(stage, trajectory_shape="blend")


def test_a_replacement_on_the_wire(stage):
    from trajectory_msgs.msg import JointTrajectory

    from robovlms_ros.control.executor import build_executor
    from robovlms_ros.core.types import ActionChunk, ActionSpec, RobotState

    arm = stage.arm(JointTrajectory, TOPIC, type="joint_trajectory", topic=TOPIC,
                    trajectory_shape="replacement")  # fmt: skip
    executor = build_executor(stage.robot, None)
    executor.shape = arm.shape
    spec = ActionSpec("joint_position", "base", "rotation_vector", "chained", 0.05,
                      (*stage.robot.joints, "gripper"))  # fmt: skip
    values = np.hstack([np.tile(stage.position, (20, 1)) + 0.001, np.ones((20, 1))])
    now_ns = 10**9
    measured = RobotState(now_ns, stage.position, np.zeros(7))
    chunk = ActionChunk(now_ns - 10**8, values, spec, "", "")
    decision = executor.on_chunk(chunk, measured, measured, now_ns)
    arm.send(decision.command, now_ns)
    stage.wait_for(lambda: stage.heard, "the trajectory")
    message = stage.heard[0]
    times = [p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in message.points]
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (0, 0)
    assert times[0] == pytest.approx(0.118) and np.all(np.diff(times) > 0)
    assert list(message.points[-1].velocities) == [0.0] * 7


STEP = 0.012
"""rad in 10 ms: the swing moves 0.004 at most, a late message (in simulated time) up to 0.008."""

DEVIATION = 0.004
"""rad: median distance of the arm from the recorded motion; past points again are 0.05 s of motion."""


class Swing:
    """Streams chunks of a swing of joint 1 to the simulated arm through an adapter, as the node
    does."""

    def __init__(self, stage, namespace, blends):
        from rclpy.node import Node
        from rclpy.parameter import Parameter
        from ros_graph import Spinner
        from sensor_msgs.msg import JointState

        from robovlms_ros.control.executor import build_executor
        from robovlms_ros.control.robot import load_robot
        from robovlms_ros.sim.nodes.sim_arm import SimArmNode

        # In the simulation's own time at half its rate, a busy machine makes no message late.
        values = {"controller_blends": blends, "publish_clock": True, "real_time_factor": 0.5}
        self.sim = SimArmNode(
            parameter_overrides=[Parameter(name, value=value) for name, value in values.items()],
            cli_args=["--ros-args", "-r", f"__ns:=/{namespace}"],
        )
        simulated = [Parameter("use_sim_time", value=True)]
        self.node = Node("driver", namespace=namespace, parameter_overrides=simulated)
        self.states = []
        self.deviations = []
        self.node.create_subscription(JointState, "joint_states", self.states.append, 100)
        self.spinners = [Spinner(self.node), Spinner(self.sim, self.sim.controller)]
        self.wait_for = stage.wait_for
        self.robot = load_robot("panda")
        self.executor = build_executor(self.robot, None)
        self.arm = self.make_arm("auto")
        self.wait_for(lambda: self.states and self.arm.listeners(), "the arm")

    def make_arm(self, shape):
        from robovlms_ros.ros.controllers.base import Context
        from robovlms_ros.ros.controllers.table import make_arm

        controller = replace(self.robot.controller, trajectory_shape=shape)
        robot = replace(self.robot, controller=controller)
        return make_arm(Context(self.node, robot, self.measured))

    def measured(self):
        from robovlms_ros.core.types import RobotState
        from robovlms_ros.ros.messages import from_time

        message = self.states[-1]
        places = [message.name.index(name) for name in self.robot.joints]
        positions = np.array(message.position)[places]
        velocities = np.array(message.velocity)[places]
        return RobotState(from_time(message.header.stamp), positions, velocities)

    def run(self, seconds, meanwhile=lambda index: None):
        from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec

        names = (*self.robot.joints, "gripper")
        spec = ActionSpec("joint_position", "base", "rotation_vector", "chained", 1 / 30, names)
        home = self.measured().positions
        rng = np.random.default_rng(0)
        begin_ns = self.now_ns()
        end_ns = begin_ns + round(seconds * NANOSECONDS)
        index = 0
        while self.now_ns() < end_ns:
            meanwhile(index)
            index += 1
            stamp_ns = self.now_ns()
            time.sleep(rng.uniform(0.08, 0.12))
            t = (stamp_ns - begin_ns) / NANOSECONDS + np.arange(1, 31) / 30
            path = np.tile(home, (30, 1))
            path[:, 0] += 0.25 * (1 - np.cos(1.5 * t)) + rng.normal(0, 0.01)
            chunk = ActionChunk(stamp_ns, np.hstack([path, np.ones((30, 1))]), spec, "", "")
            now_ns = self.now_ns()
            measured = self.measured()
            known = self.executor.guard.commanded_at(measured.stamp_ns)
            if known is not None:
                self.deviations.append(np.abs(known[0] - measured.positions).max())
            self.executor.shape = self.arm.shape
            decision = self.executor.on_chunk(chunk, measured, measured, now_ns)
            if decision.command is not None:
                self.arm.send(decision.command, self.now_ns())

    def now_ns(self):
        return self.node.get_clock().now().nanoseconds

    def worst_step(self):
        """The largest change of measured joint 1 between two joint states, rad per 10 ms."""
        stamps = np.array([m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 for m in self.states])
        places = np.array([m.position[0] for m in self.states])
        return np.abs(np.diff(places) / np.maximum(np.diff(stamps), 0.01) * 0.01).max()

    def deviation(self):
        """Median distance of the arm from the recorded motion, rad."""
        return np.median(self.deviations)

    def travelled(self):
        return np.ptp([m.position[0] for m in self.states])

    def close(self):
        self.arm.close()
        for spinner in self.spinners:
            spinner.close()


@pytest.mark.sim
@pytest.mark.parametrize("mode", ["forgets", "blends", "switched"])
def test_the_simulated_arm_moves_without_a_step(stage, mode):
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    swing = Swing(stage, f"shape_{mode}", blends=mode != "forgets")
    try:
        first = "self_splice" if mode == "forgets" else "replacement"
        text = "does not blend" if mode == "forgets" else "is true"
        stage.wait_for(lambda: text in swing.arm.shape_text, "the controller's answer")
        assert swing.arm.shape == first

        def meanwhile(index):
            if mode == "switched" and index % 6 == 5:
                switch(swing.sim.controller, index % 12 == 11)
                wanted = "replacement" if index % 12 == 11 else "self_splice"
                stage.wait_for(lambda: swing.arm.shape == wanted, "the news of the switch")

        swing.run(6.0, meanwhile)
    finally:
        swing.close()
    assert swing.travelled() > 0.3
    assert swing.worst_step() < STEP
    assert swing.deviation() < DEVIATION


@pytest.mark.sim
def test_the_wrong_shape_is_followed_elsewhere(stage):
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    swing = Swing(stage, "shape_wrong", blends=True)
    try:
        swing.arm.close()
        swing.arm = swing.make_arm("self_splice")
        swing.run(6.0)
    finally:
        swing.close()
    assert swing.deviation() > DEVIATION
