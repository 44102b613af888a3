"""`sim_arm` on the graph: the topics of a real arm and its cameras at their rates in simulated time, scenes by seed,
trajectories followed or rejected as the controller does, and ground truth that says what happened.
"""

import json

import numpy as np
import pytest

pytest.importorskip("robosuite", reason="robosuite is not installed")

pytestmark = [pytest.mark.ros, pytest.mark.sim]


@pytest.fixture(scope="module")
def sim(ros):
    """A simulated arm with /clock, and a listener that keeps what it hears."""
    from rclpy.node import Node
    from rclpy.parameter import Parameter
    from rclpy.qos import qos_profile_sensor_data
    from ros_graph import LATCHED, Spinner, wait_for
    from sensor_msgs.msg import CompressedImage, Image, JointState
    from std_msgs.msg import String
    from std_srvs.srv import Trigger
    from trajectory_msgs.msg import JointTrajectory

    from robovlms_ros.sim.nodes.sim_arm import SimArmNode

    class Ears(Node):
        def __init__(self):
            super().__init__("ears", namespace="simtest")
            self.heard = {}
            for name, kind, qos in (
                ("static/image_raw", Image, qos_profile_sensor_data),
                ("wrist/image_raw", Image, qos_profile_sensor_data),
                ("static/image_raw/compressed", CompressedImage, qos_profile_sensor_data),
                ("joint_states", JointState, 10), ("robot_description", String, LATCHED),
                ("sim_arm/ground_truth", String, 10),
            ):
                self.create_subscription(kind, name, self.heard.setdefault(name, []).append, qos)
            self.arm = self.create_publisher(JointTrajectory, "panda_arm_controller/joint_trajectory", 10)
            self.gripper = self.create_publisher(JointTrajectory, "gripper_controller/joint_trajectory", 10)
            self.reset = self.create_client(Trigger, "sim_arm/reset")

        def truth(self):
            wait_for(lambda: self.heard["sim_arm/ground_truth"], "the ground truth")
            return json.loads(self.heard["sim_arm/ground_truth"][-1].data)

    node = SimArmNode(parameter_overrides=[Parameter("publish_clock", value=True), Parameter("compressed", value=True)],
                      cli_args=["--ros-args", "-r", "__ns:=/simtest"])
    ears = Ears()
    spinners = [Spinner(ears), Spinner(node, node.controller)]
    ears.sim = node
    yield ears
    for spinner in spinners:
        spinner.close()


def stamps(messages):
    return np.array([m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 for m in messages])


def test_topics_and_rates(sim):
    from ros_graph import wait_for

    wait_for(lambda: all(sim.heard.values()) and len(sim.heard["static/image_raw"]) > 20, "every topic")
    images = sim.heard["static/image_raw"]
    assert (images[0].encoding, images[0].width, images[0].step) == ("rgb8", 96, 288)
    assert images[0].header.frame_id == "static_camera_optical_frame"
    assert np.median(np.diff(stamps(images))) == pytest.approx(0.05, abs=1e-6)
    assert np.median(np.diff(stamps(sim.heard["joint_states"]))) == pytest.approx(0.01, abs=1e-6)
    assert sim.heard["joint_states"][0].name[-1] == "panda_finger_joint1"
    assert "<robot" in sim.heard["robot_description"][0].data


def test_compressed_shows_the_same(sim):
    from ros_graph import wait_for

    from robovlms_ros.observations.images import to_rgb

    pairs = []

    def paired():
        raw = {stamps([m])[0]: m for m in list(sim.heard["static/image_raw"])}
        found = list(sim.heard["static/image_raw/compressed"])
        pairs[:] = [(raw[t], m) for m in found if (t := stamps([m])[0]) in raw]
        return pairs

    wait_for(paired, "a raw and a compressed image of one stamp")
    one, other = (to_rgb(m).astype(int) for m in pairs[0])
    assert np.abs(one - other).mean() < 4


def reset(sim, seed, **values):
    from rclpy.parameter import Parameter
    from ros_graph import wait_for

    before = sim.truth()["resets"]
    sim.sim.set_parameters([Parameter("seed", value=seed), *(Parameter(k, value=v) for k, v in values.items())])
    wait_for(sim.reset.service_is_ready, "the reset service")
    future = sim.reset.call_async(sim.reset.srv_type.Request())
    wait_for(future.done, "the reset")
    assert future.result().success
    wait_for(lambda: sim.truth()["resets"] > before, "the new scene")
    assert sim.truth()["seed"] == seed
    return sim.truth()


def test_a_seed_is_a_scene(sim):
    from robovlms_ros.sim.tasks.objects import TableTruth

    first, other, again = (TableTruth.from_json(reset(sim, seed)).things for seed in (7, 8, 7))
    for name in ("red cube", "green cube"):
        np.testing.assert_allclose(first[name].position, again[name].position, atol=1e-3)
        assert np.abs(first[name].position - other[name].position).max() > 0.005


def test_the_same_scene_again_is_judged_afresh(sim):
    """The examiner goes on with the new scene's truth, not with what was left of the same scene before."""
    from ros_graph import Spinner

    from robovlms_ros.sim.nodes.demo_client import DemoClient

    examiner = DemoClient((), "/simtest")
    spinner = Spinner(examiner)
    try:
        counts = []
        for _ in range(3):
            examiner.new_scene(7, blank_cameras=False)
            counts.append(examiner.truth()["resets"])
        assert counts == [counts[0], counts[0] + 1, counts[0] + 2]
    finally:
        spinner.close()


def test_blanked_cameras(sim):
    from ros_graph import wait_for

    reset(sim, 9, blank_cameras=True)
    wait_for(lambda: sim.heard["static/image_raw"] and not any(sim.heard["static/image_raw"][-1].data),
             "a black image")
    reset(sim, 9, blank_cameras=False)
    wait_for(lambda: any(sim.heard["static/image_raw"][-1].data), "a picture")


def test_follows_a_trajectory_and_rejects_a_bad_one(sim):
    from ros_graph import wait_for

    from robovlms_ros.core.types import TrajectoryCommand
    from robovlms_ros.ros.messages import trajectory_to_message

    reset(sim, 1)
    joints = tuple(sim.truth()["joints"])
    before = np.array(sim.heard["joint_states"][-1].position[:7])
    target = before + 0.1
    command = TrajectoryCommand(0, joints, np.array([0.5]), target[None], np.zeros((1, 7)))
    wait_for(lambda: sim.arm.get_subscription_count(), "the controller")
    sim.arm.publish(trajectory_to_message(command))
    wait_for(lambda: np.abs(np.array(sim.heard["joint_states"][-1].position[:7]) - target).max() < 0.005, "the target")
    moving = trajectory_to_message(TrajectoryCommand(0, joints, np.array([0.5]), before[None], np.full((1, 7), 0.3)))
    count = len(sim.heard["joint_states"])
    sim.arm.publish(moving)  # ends with a velocity: the real controller drops it, and so does this one
    wait_for(lambda: len(sim.heard["joint_states"]) > count + 40, "time to pass")
    assert np.abs(np.array(sim.heard["joint_states"][-1].position[:7]) - target).max() < 0.005


def test_the_gripper_closes(sim):
    from ros_graph import wait_for

    from robovlms_ros.core.types import TrajectoryCommand
    from robovlms_ros.ros.messages import trajectory_to_message

    reset(sim, 1)
    close = TrajectoryCommand(0, ("panda_finger_joint1",), np.array([0.2]), np.zeros((1, 1)), np.zeros((1, 1)))
    wait_for(lambda: sim.gripper.get_subscription_count(), "the gripper")
    sim.gripper.publish(trajectory_to_message(close))
    wait_for(lambda: sim.heard["joint_states"][-1].position[7] < 0.005, "closed fingers")
