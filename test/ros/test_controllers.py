"""Every controller adapter against a real ROS peer of ours (a topic, action or service server).

What arrives is what the controller documents, at its rate, from where the arm is, and nothing after a stop. Where
control_msgs or moveit_msgs is absent the adapters that need it refuse by the apt package's name, and their tests skip.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = [pytest.mark.ros, pytest.mark.untimed]

STEP_NS = 20_000_000


def test_joint_trajectory(stage):
    from trajectory_msgs.msg import JointTrajectory

    arm = stage.arm(JointTrajectory, "arm/joint_trajectory", type="joint_trajectory", topic="arm/joint_trajectory")
    command = stage.command(10**9)
    arm.send(command, 10**9)
    stage.wait_for(lambda: stage.heard, "the trajectory")
    message = stage.heard[0]
    assert message.joint_names == list(stage.robot.joints) and len(message.points) == 11
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1, STEP_NS)
    np.testing.assert_allclose([p.positions for p in message.points], command.positions)
    np.testing.assert_allclose([p.velocities for p in message.points], command.velocities)
    assert arm.name.endswith("/arm/joint_trajectory") and arm.problem() is None


def test_forward_position_is_upsampled_limited_and_ends(stage):
    from std_msgs.msg import Float64MultiArray

    arm = stage.arm(Float64MultiArray, "forward/commands", type="forward_position", topic="forward/commands", rate=50.0)
    arm.send(stage.command(10**9, delta=0.5), 10**9)
    stage.play(arm, 10**9 + STEP_NS, 4 * 10**9)
    stage.wait_for(lambda: stage.heard and np.allclose(stage.heard[-1].data, stage.position + 0.5), "the last target")
    targets = np.array([list(m.data) for m in stage.heard])
    assert 50 <= len(targets) <= 64, "silent soon after the end"
    np.testing.assert_allclose(targets[0], stage.position, atol=1e-9)
    np.testing.assert_allclose(targets[-1], stage.position + 0.5, atol=1e-9)
    assert (np.abs(np.diff(targets, axis=0)) <= np.array(stage.robot.limits.velocity) * 0.02 + 1e-9).all()


def test_forward_position_never_jumps_after_late_ticks(stage):
    from std_msgs.msg import Float64MultiArray

    arm = stage.arm(Float64MultiArray, "forward/commands", type="forward_position", topic="forward/commands", rate=50.0)
    arm.send(stage.command(10**9, delta=0.5), 10**9)
    stage.play(arm, 10**9 + STEP_NS, 10**9 + 15 * STEP_NS)
    stage.play(arm, 10**9 + 35 * STEP_NS, 4 * 10**9)  # 0.4 s without a tick in the middle of the motion
    goal = stage.position + 0.5
    stage.wait_for(lambda: stage.heard and np.allclose(stage.heard[-1].data, goal, atol=1e-5), "the end")
    targets = np.array([list(m.data) for m in stage.heard])
    limits = stage.robot.limits
    steps = np.diff(targets, axis=0)
    assert (np.abs(steps) <= np.array(limits.velocity) * 0.02 + 1e-9).all()
    assert (np.abs(np.diff(steps, axis=0)) <= np.array(limits.acceleration) * 0.02**2 * 1.05 + 1e-9).all()


def test_nothing_is_sent_that_the_motion_guard_has_not_admitted(stage):
    from std_msgs.msg import Float64MultiArray
    from trajectory_msgs.msg import JointTrajectory

    from robovlms_ros.core.types import TrajectoryCommand
    from robovlms_ros.ros.controllers.base import ControllerError

    arm = stage.arm(JointTrajectory, "arm/joint_trajectory", type="joint_trajectory", topic="arm/joint_trajectory")
    gripper = stage.gripper(Float64MultiArray, "hand/commands", type="float64_multi_array", topic="hand/commands")
    plain = TrajectoryCommand(10**9, stage.robot.joints, np.array([0.0, 1.0]), np.tile(stage.position, (2, 1)),
                              np.zeros((2, 7)))
    with pytest.raises(ControllerError, match="TrajectoryCommand was not admitted by the motion guard"):
        arm.send(plain, 10**9)
    with pytest.raises(ControllerError, match="a gripper opening of 1.0 was not admitted"):
        gripper.update(1.0)
    assert stage.sent == 0


def pose_matrix(message):
    p, q = message.pose.position, message.pose.orientation
    x, y, z, w = q.x, q.y, q.z, q.w
    pose = np.eye(4)
    pose[:3, :3] = [[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                    [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                    [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]
    pose[:3, 3] = p.x, p.y, p.z
    return pose


def test_cartesian_pose_is_the_tool_on_the_trajectory(stage):
    from geometry_msgs.msg import PoseStamped

    arm = stage.arm(PoseStamped, "target_frame", type="cartesian_pose", topic="target_frame", rate=50.0)
    arm.send(stage.command(10**9, delta=0.2), 10**9)
    stage.play(arm, 10**9 + STEP_NS, 3 * 10**9)
    stage.wait_for(lambda: stage.stamp() > 21 * 10**8, "the last poses")
    assert len(stage.heard) >= 50 and {m.header.frame_id for m in stage.heard} == {"panda_link0"}
    for message, wanted in ((stage.heard[0], stage.position), (stage.heard[-1], stage.position + 0.2)):
        np.testing.assert_allclose(pose_matrix(message), stage.kinematics.forward(wanted), atol=1e-9)


def test_one_joint_trajectory_gripper_sends_edges(stage):
    from trajectory_msgs.msg import JointTrajectory

    gripper = stage.gripper(JointTrajectory, "hand/joint_trajectory", type="one_joint_trajectory",
                            topic="hand/joint_trajectory", travel_time=0.3)
    for opening in (1.0, 1.0, 0.0, 0.0, 0.0, 1.0):
        gripper.update(stage.guard.admit_opening(opening))
    stage.wait_for(lambda: len(stage.heard) == 3, "three edges")
    assert [m.points[0].positions[0] for m in stage.heard] == pytest.approx([0.04, 0.0, 0.04])
    assert stage.heard[0].points[0].time_from_start.nanosec == 300_000_000


def test_float64_multi_array_gripper(stage):
    from std_msgs.msg import Float64MultiArray

    gripper = stage.gripper(Float64MultiArray, "hand/commands", type="float64_multi_array", topic="hand/commands")
    gripper.update(stage.guard.admit_opening(0.0))
    stage.wait_for(lambda: stage.heard, "the command")
    assert list(stage.heard[0].data) == [0.0]


def test_goals_of_a_gripper_action_are_published_for_recordings(stage, monkeypatch):
    from sensor_msgs.msg import JointState

    from robovlms_ros.ros.controllers import actions

    class GoalsThere:
        there = False

        def __init__(self, context, action, name):
            self.name = name

        def send(self, goal):
            return self.there

        def listeners(self):
            return int(self.there)

        def close(self):
            pass

    kind = SimpleNamespace(Goal=lambda: SimpleNamespace(command=SimpleNamespace()))
    monkeypatch.setattr(actions, "Goals", GoalsThere)
    monkeypatch.setattr(actions, "message_package", lambda *_: SimpleNamespace(GripperCommand=kind))
    stage.hearer.create_subscription(JointState, "sender/gripper_command", stage.heard.append, 10)
    gripper = stage.gripper(type="gripper_command", action="hand/gripper_cmd")
    stage.wait_for(gripper._commands.get_subscription_count, "the subscription")
    gripper.update(stage.guard.admit_opening(0.0))  # no server: no goal was sent
    GoalsThere.there = True
    for opening in (1.0, 1.0, 0.0):
        gripper.update(stage.guard.admit_opening(opening))
    stage.wait_for(lambda: len(stage.heard) == 2, "two goals")
    assert [list(m.position) for m in stage.heard] == [[0.04], [0.0]]
    assert stage.heard[0].name == ["finger"] and stage.heard[0].header.stamp.sec > 0


def test_chunk_only_has_no_adapter(stage):
    from robovlms_ros.ros.controllers.table import make_arm

    assert make_arm(stage.context(controller={"type": "chunk_only"})) is None


NEEDS = {
    "follow_joint_trajectory": ("arm", {"action": "arm/follow_joint_trajectory"}, "control_msgs"),
    "servo_twist": ("arm", {}, "moveit_msgs"),
    "servo_pose": ("arm", {}, "moveit_msgs"),
    "gripper_command": ("gripper", {"action": "hand/gripper_cmd"}, "control_msgs"),
    "parallel_gripper_command": ("gripper", {"action": "hand/gripper_cmd"}, "control_msgs"),
}


@pytest.mark.parametrize("kind", NEEDS)
def test_a_missing_message_package_is_named(stage, monkeypatch, kind):
    from robovlms_ros.ros.controllers.base import ControllerError

    part, block, package = NEEDS[kind]
    for module in (package, f"{package}.msg", f"{package}.srv", f"{package}.action"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    with pytest.raises(ControllerError, match=f"sudo apt install ros-jazzy-{package.replace('_', '-')}"):
        getattr(stage, part)(type=kind, **block)
