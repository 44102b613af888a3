"""Every controller adapter against a real ROS peer of ours (a topic, action or service server).

What arrives is what the controller documents, at its rate, from where the arm is, and nothing after a stop. Where
control_msgs or moveit_msgs is absent the adapters that need it refuse by the apt package's name, and their tests skip.
"""

import sys

import numpy as np
import pytest

pytestmark = pytest.mark.ros

STEP_NS = 20_000_000


@pytest.fixture
def stage(ros):
    """Two spinning nodes, the one that sends and the one that hears, and a robot whose blocks can be replaced."""
    from rclpy.node import Node
    from ros_graph import Spinner, wait_for

    from robovlms_ros.ros.controllers.base import Context
    from robovlms_ros.ros.controllers.table import make_arm, make_gripper
    from robovlms_ros.runtime.kinematics import Kinematics
    from robovlms_ros.runtime.robot import load_robot, parse_robot
    from robovlms_ros.schema import read_mapping
    from robovlms_ros.types import RobotState, TrajectoryCommand

    class Stage:
        count = 0

        def __init__(self):
            Stage.count += 1
            space = f"controllers{Stage.count}"
            self.sender, self.hearer = Node("sender", namespace=space), Node("hearer", namespace=space)
            self.spinners = [Spinner(self.sender), Spinner(self.hearer)]
            self.robot = load_robot("panda")
            self.position = np.array(self.robot.home)
            self.kinematics = Kinematics(self.robot.description_path, self.robot.joints, self.robot.eef_frame,
                                         self.robot.base_frame)
            self.heard, self.made, self.wait_for = [], [], wait_for

        def context(self, **blocks):
            from robovlms_ros.resources import share_directory

            path = share_directory() / "config" / "robots" / "panda.yaml"
            robot = parse_robot({**read_mapping(path), **blocks}, "test", path.parent)
            return Context(self.sender, robot, lambda: RobotState(0, self.position, np.zeros(7)), self.kinematics)

        def arm(self, kind=None, heard_on=None, **block):
            """An adapter, and a subscription to what it publishes."""
            if kind is not None:
                self.hearer.create_subscription(kind, heard_on, self.heard.append, 100)
            arm = make_arm(self.context(controller=block))
            self.made.append(arm)
            if kind is not None:
                wait_for(arm.listeners, "the connection")
            return arm

        def gripper(self, kind=None, heard_on=None, **block):
            if kind is not None:
                self.hearer.create_subscription(kind, heard_on, self.heard.append, 100)
            fingers = {"joint": "finger", "open_position": 0.04, "closed_position": 0.0}
            gripper = make_gripper(self.context(gripper={**fingers, **block}))
            self.made.append(gripper)
            if kind is not None:
                wait_for(gripper.listeners, "the connection")
            return gripper

        def command(self, now_ns, delta=0.1, seconds=1.0):
            """A straight move of every joint by `delta` rad that begins 20 ms from now."""
            steps = np.linspace(0.0, 1.0, 11)
            smooth = steps**2 * (3 - 2 * steps)
            speeds = 6 * steps * (1 - steps) * delta / seconds
            return TrajectoryCommand(now_ns + STEP_NS, self.robot.joints, steps * seconds,
                                     self.position + np.outer(smooth, np.full(7, delta)), np.outer(speeds, np.ones(7)))

        def play(self, arm, begin_ns, end_ns):
            """Tick the adapter from one time to another, 50 Hz; the arm follows the truth a little late."""
            return [arm.tick(now) for now in range(begin_ns, end_ns, STEP_NS)]

        def close(self):
            for adapter in self.made:
                adapter.close()
            for spinner in self.spinners:
                spinner.close()

    stage = Stage()
    yield stage
    stage.close()


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
    stage.wait_for(lambda: np.allclose(stage.heard[-1].data, stage.position + 0.5), "the last target")
    targets = np.array([list(m.data) for m in stage.heard])
    assert 50 <= len(targets) <= 64, "silent soon after the end"
    np.testing.assert_allclose(targets[0], stage.position, atol=1e-9)
    np.testing.assert_allclose(targets[-1], stage.position + 0.5, atol=1e-9)
    assert (np.abs(np.diff(targets, axis=0)) <= np.array(stage.robot.limits.velocity) * 0.02 + 1e-9).all()


def test_forward_position_never_jumps(stage):
    from std_msgs.msg import Float64MultiArray

    from robovlms_ros.types import TrajectoryCommand

    arm = stage.arm(Float64MultiArray, "forward/commands", type="forward_position", topic="forward/commands", rate=50.0)
    far = TrajectoryCommand(10**9, stage.robot.joints, np.array([0.0, 1.0]), np.tile(stage.position + 0.3, (2, 1)),
                            np.zeros((2, 7)))
    arm.send(far, 10**9)
    stage.play(arm, 10**9 + STEP_NS, 2 * 10**9)
    stage.wait_for(lambda: len(stage.heard) >= 40, "targets")
    targets = np.vstack([stage.position, [list(m.data) for m in stage.heard]])
    assert (np.abs(np.diff(targets, axis=0)) <= np.array(stage.robot.limits.velocity) * 0.02 + 1e-9).all()


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
    stage.wait_for(lambda: stage.heard[-1].header.stamp.sec == 2 and
                   stage.heard[-1].header.stamp.nanosec > 10**8, "the last poses")
    assert len(stage.heard) >= 50 and {m.header.frame_id for m in stage.heard} == {"panda_link0"}
    for message, wanted in ((stage.heard[0], stage.position), (stage.heard[-1], stage.position + 0.2)):
        np.testing.assert_allclose(pose_matrix(message), stage.kinematics.forward(wanted), atol=1e-9)


def test_one_joint_trajectory_gripper_sends_edges(stage):
    from trajectory_msgs.msg import JointTrajectory

    gripper = stage.gripper(JointTrajectory, "hand/joint_trajectory", type="one_joint_trajectory",
                            topic="hand/joint_trajectory", travel_time=0.3)
    for opening in (1.0, 1.0, 0.0, 0.0, 0.0, 1.0):
        gripper.update(opening)
    stage.wait_for(lambda: len(stage.heard) == 3, "three edges")
    assert [m.points[0].positions[0] for m in stage.heard] == pytest.approx([0.04, 0.0, 0.04])
    assert stage.heard[0].points[0].time_from_start.nanosec == 300_000_000


def test_float64_multi_array_gripper(stage):
    from std_msgs.msg import Float64MultiArray

    gripper = stage.gripper(Float64MultiArray, "hand/commands", type="float64_multi_array", topic="hand/commands")
    gripper.update(0.0)
    stage.wait_for(lambda: stage.heard, "the command")
    assert list(stage.heard[0].data) == [0.0]


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


def serve(stage, action, name, result):
    """An action server that keeps the goals it is given and answers each at once with `result(goal)`."""
    from rclpy.action import ActionServer

    def execute(handle):
        stage.heard.append(handle.request)
        handle.succeed()
        return result(action.Result())

    return ActionServer(stage.hearer, action, name, execute)


def test_follow_joint_trajectory(stage):
    messages = pytest.importorskip("control_msgs.action", reason="control_msgs is not installed")
    kind = messages.FollowJointTrajectory
    arm = stage.arm(type="follow_joint_trajectory", action="arm/follow_joint_trajectory")
    arm.send(stage.command(10**9), 10**9)
    assert "no action server" in arm.problem()

    def abort_once(result):
        result.error_code = -4 if len(stage.heard) == 1 else 0
        return result

    server = serve(stage, kind, "arm/follow_joint_trajectory", abort_once)
    stage.wait_for(arm.listeners, "the server")
    arm.send(stage.command(10**9), 10**9)
    stage.wait_for(lambda: arm.problem() and "aborted" in arm.problem(), "the abort")
    arm.send(stage.command(2 * 10**9), 2 * 10**9)
    stage.wait_for(lambda: len(stage.heard) == 2 and arm.problem() is None, "the second goal")
    np.testing.assert_allclose(stage.heard[0].trajectory.points[-1].positions, stage.position + 0.1)
    assert stage.heard[0].goal_time_tolerance.nanosec == 500_000_000
    server.destroy()


def test_gripper_command(stage):
    messages = pytest.importorskip("control_msgs.action", reason="control_msgs is not installed")
    server = serve(stage, messages.GripperCommand, "hand/gripper_cmd", lambda result: result)
    gripper = stage.gripper(type="gripper_command", action="hand/gripper_cmd", max_effort=12.0)
    stage.wait_for(gripper.listeners, "the server")
    for opening in (1.0, 0.0, 0.0):
        gripper.update(opening)
    stage.wait_for(lambda: len(stage.heard) == 2, "two goals")
    assert sorted(goal.command.position for goal in stage.heard) == [0.0, 0.04]
    assert stage.heard[0].command.max_effort == 12.0
    server.destroy()


def test_parallel_gripper_command(stage):
    messages = pytest.importorskip("control_msgs.action", reason="control_msgs is not installed")
    if not hasattr(messages, "ParallelGripperCommand"):
        pytest.skip("this control_msgs has no ParallelGripperCommand")
    server = serve(stage, messages.ParallelGripperCommand, "hand/gripper_cmd", lambda result: result)
    gripper = stage.gripper(type="parallel_gripper_command", action="hand/gripper_cmd")
    stage.wait_for(gripper.listeners, "the server")
    gripper.update(1.0)
    stage.wait_for(lambda: stage.heard, "the goal")
    assert (list(stage.heard[0].command.name), list(stage.heard[0].command.position)) == (["finger"], [0.04])
    server.destroy()


class Servo:
    """MoveIt Servo's command-type service and status topic."""

    def __init__(self, stage, accept=True):
        services = pytest.importorskip("moveit_msgs.srv", reason="moveit_msgs is not installed")
        messages = pytest.importorskip("moveit_msgs.msg", reason="moveit_msgs is not installed")
        self.asked, self.accept, self.kind = [], accept, messages.ServoStatus
        stage.hearer.create_service(services.ServoCommandType, "servo_node/switch_command_type", self._answer)
        self.status = stage.hearer.create_publisher(messages.ServoStatus, "servo_node/status", 10)

    def _answer(self, request, response):
        self.asked.append(request.command_type)
        response.success = self.accept
        return response


def test_servo_twist_moves_the_tool_along_the_trajectory(stage):
    from geometry_msgs.msg import TwistStamped

    servo = Servo(stage)
    topic = "servo_node/delta_twist_cmds"
    arm = stage.arm(TwistStamped, topic, type="servo_twist", rate=50.0)
    command = stage.command(10**9, delta=0.2)
    arm.prepare()
    stage.wait_for(lambda: arm.tick(0) or (servo.asked and arm.problem() is None), "the command type")
    stage.wait_for(arm._link.ready, "the answer")
    assert servo.asked[0] == 1
    stage.heard.clear()
    arm.send(command, 10**9)
    for now in range(10**9 + STEP_NS, 22 * 10**8, STEP_NS):  # the arm does exactly as the plan says
        curve = arm._plan
        if curve is not None:
            stage.position = curve(np.array([now]))[0][0]
        arm.tick(now)
    stage.wait_for(lambda: stage.heard[-1].header.stamp.nanosec > 10**8 and stage.heard[-1].header.stamp.sec == 2,
                   "the last twists")
    middle = min(stage.heard, key=lambda m: abs(m.header.stamp.sec * 10**9 + m.header.stamp.nanosec - 152 * 10**7))
    at = middle.header.stamp.sec * 10**9 + middle.header.stamp.nanosec
    home = np.array(stage.robot.home)
    s = (at - command.stamp_ns) / 1e9
    q, v = home + 0.2 * s * s * (3 - 2 * s), np.full(7, 6 * s * (1 - s) * 0.2)
    wanted = stage.kinematics.jacobian(q) @ v
    twist = middle.twist
    got = [twist.linear.x, twist.linear.y, twist.linear.z, twist.angular.x, twist.angular.y, twist.angular.z]
    np.testing.assert_allclose(got, wanted, atol=2e-3)
    assert middle.header.frame_id == "panda_link0"
    last = stage.heard[-1].twist
    assert abs(last.linear.x) < 1e-3 and abs(last.angular.z) < 1e-3


def test_servo_twist_unitless_stays_within_one(stage):
    from geometry_msgs.msg import TwistStamped

    Servo(stage)
    arm = stage.arm(TwistStamped, "servo_node/delta_twist_cmds", type="servo_twist", units="unitless",
                    linear_scale=0.01, angular_scale=0.02)
    arm.prepare()
    stage.wait_for(arm._link.ready, "the command type")
    arm.send(stage.command(10**9, delta=0.5), 10**9)
    stage.play(arm, 10**9 + STEP_NS, 2 * 10**9)
    stage.wait_for(lambda: len(stage.heard) >= 30, "twists")
    parts = np.array([[m.twist.linear.x, m.twist.linear.y, m.twist.linear.z, m.twist.angular.x, m.twist.angular.y,
                       m.twist.angular.z] for m in stage.heard])
    assert np.abs(parts).max() == pytest.approx(1.0)


def test_servo_pose_and_its_status(stage):
    from geometry_msgs.msg import PoseStamped

    servo = Servo(stage)
    arm = stage.arm(PoseStamped, "servo_node/pose_target_cmds", type="servo_pose")
    arm.prepare()
    stage.wait_for(arm._link.ready, "the command type")
    assert servo.asked[0] == 2
    arm.send(stage.command(10**9), 10**9)
    stage.wait_for(lambda: stage.heard, "a pose")
    servo.status.publish(servo.kind(code=5, message="too close"))
    stage.wait_for(lambda: "HALT_FOR_COLLISION" in (arm.problem() or ""), "the halt")
    servo.status.publish(servo.kind(code=0))
    stage.wait_for(lambda: arm.problem() is None, "the recovery")


def test_servo_that_refuses_or_is_absent_gets_nothing(stage):
    from geometry_msgs.msg import PoseStamped

    pytest.importorskip("moveit_msgs.srv", reason="moveit_msgs is not installed")
    arm = stage.arm(PoseStamped, "servo_node/pose_target_cmds", type="servo_pose")
    arm.prepare()
    arm.send(stage.command(10**9), 10**9)
    assert "does not answer" in arm.problem()
    Servo(stage, accept=False)
    stage.wait_for(lambda: arm.tick(10**9) or "refused the command type" in (arm.problem() or ""), "the refusal")
    assert not stage.heard
