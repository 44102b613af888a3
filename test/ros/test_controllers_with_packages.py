"""The adapters that need control_msgs or moveit_msgs, against real action servers, services and topics of ours.

Where the packages are absent these tests skip; what then refuses, by the apt package's name, is in test_controllers.py.
"""

import numpy as np
import pytest

pytestmark = pytest.mark.ros

STEP_NS = 20_000_000


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
    from trajectory_msgs.msg import JointTrajectory

    kind = messages.FollowJointTrajectory
    arm = stage.arm(type="follow_joint_trajectory", action="arm/follow_joint_trajectory")
    arm.send(stage.command(10**9), 10**9)
    assert "no action server" in arm.problem()

    def abort_once(result):
        result.error_code = -4 if len(stage.heard) == 1 else 0
        return result

    serve(stage, kind, "arm/follow_joint_trajectory", abort_once)
    stage.wait_for(arm.listeners, "the server")
    arm.send(stage.command(10**9), 10**9)
    stage.wait_for(lambda: arm.problem() and "aborted" in arm.problem(), "the abort")
    arm.send(stage.command(2 * 10**9), 2 * 10**9)
    stage.wait_for(lambda: len(stage.heard) == 2 and arm.problem() is None, "the second goal")
    np.testing.assert_allclose(stage.heard[0].trajectory.points[-1].positions, stage.position + 0.1)
    assert stage.heard[0].goal_time_tolerance.nanosec == 500_000_000
    assert not arm.absence()
    assert not arm.other_commanders()
    stage.hearer.create_publisher(JointTrajectory, "arm/joint_trajectory", 10)
    stage.wait_for(arm.other_commanders, "the publisher on the controller's topic")
    assert arm.other_commanders() == (stage.hearer.get_fully_qualified_name(),)


def test_gripper_command(stage):
    messages = pytest.importorskip("control_msgs.action", reason="control_msgs is not installed")
    serve(stage, messages.GripperCommand, "hand/gripper_cmd", lambda result: result)
    gripper = stage.gripper(type="gripper_command", action="hand/gripper_cmd", max_effort=12.0)
    stage.wait_for(gripper.listeners, "the server")
    for opening in (1.0, 0.0, 0.0):
        gripper.update(stage.guard.admit_opening(opening))
    stage.wait_for(lambda: len(stage.heard) == 2, "two goals")
    assert sorted(goal.command.position for goal in stage.heard) == [0.0, 0.04]
    assert stage.heard[0].command.max_effort == 12.0


def test_parallel_gripper_command(stage):
    messages = pytest.importorskip("control_msgs.action", reason="control_msgs is not installed")
    if not hasattr(messages, "ParallelGripperCommand"):
        pytest.skip("this control_msgs has no ParallelGripperCommand")
    serve(stage, messages.ParallelGripperCommand, "hand/gripper_cmd", lambda result: result)
    gripper = stage.gripper(type="parallel_gripper_command", action="hand/gripper_cmd")
    stage.wait_for(gripper.listeners, "the server")
    gripper.update(stage.guard.admit_opening(1.0))
    stage.wait_for(lambda: stage.heard, "the goal")
    assert (list(stage.heard[0].command.name), list(stage.heard[0].command.position)) == (["finger"], [0.04])


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

    from robovlms_ros.control.trajectory import curve_of
    from robovlms_ros.ros.messages import from_time

    servo = Servo(stage)
    topic = "servo_node/delta_twist_cmds"
    arm = stage.arm(TwistStamped, topic, type="servo_twist", rate=50.0)
    command = stage.command(10**9, delta=0.2)
    arm.prepare()
    stage.wait_for(lambda: arm.tick(0) or (servo.asked and arm.problem() is None), "the command type")
    stage.wait_for(arm._link.ready, "the answer")
    assert servo.asked[0] == 1
    arm.send(command, 10**9)
    for now in range(10**9 + STEP_NS, 22 * 10**8, STEP_NS):  # the arm does exactly as the plan says
        stage.position = curve_of(command)(np.array([now]))[0][0]
        stage.tick(arm, now)
    stage.wait_for(lambda: stage.stamp() > 21 * 10**8, "the last twists")
    middle = min(stage.heard, key=lambda m: abs(from_time(m.header.stamp) - 152 * 10**7))
    at = from_time(middle.header.stamp)
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
