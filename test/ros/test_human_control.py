"""A person takes over and hands back, through real DDS, while the arm moves.

- Commands as TwistStamped, PoseStamped, Joy, JointState and JointTrajectory move the arm; both
  hand-overs are continuous; the policy goes on inferring and commands nothing.
- The gripper follows ~/human/gripper, a joystick's buttons and a leader arm's finger.
- Release of the joystick's deadman button is a smooth stop; without the button nothing moves.
- 0.3 s of silence is a smooth stop. Cameras that stop do not stop the person.
- After ~/hand_back the policy commands by observations taken after it.
- A goal ends as human_took_over, and no instruction is in force after it.
- A jump, a missing joint and an unknown frame are refused; nothing is sent.
- ~/control_source carries who commands the arm.
"""

import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros

PERIOD = 0.05


class Person:
    """Streams commands on ~/human/... of a graph's node from a timer."""

    def __init__(self, graph):
        from geometry_msgs.msg import PoseStamped, TwistStamped
        from rclpy.node import Node
        from ros_graph import Spinner
        from sensor_msgs.msg import JointState, Joy
        from std_msgs.msg import Float64
        from std_srvs.srv import Trigger
        from trajectory_msgs.msg import JointTrajectory

        from robovlms_ros.msg import ControlSource
        from robovlms_ros.ros.graph import LATCHED

        self.graph = graph
        self.make = None
        self.sources = []
        self.node = Node("person", namespace=graph.namespace)
        kinds = (
            ("twist", TwistStamped), ("pose", PoseStamped), ("joy", Joy), ("gripper", Float64),
            ("joint_states", JointState), ("joint_trajectory", JointTrajectory),
        )
        self.publishers = {
            name: self.node.create_publisher(kind, f"vla/human/{name}", 1) for name, kind in kinds
        }
        self.node.create_subscription(
            ControlSource, "vla/control_source", lambda m: self.sources.append(m.source), LATCHED
        )
        self._services = {
            name: self.node.create_client(Trigger, f"vla/{name}")
            for name in ("take_over", "hand_back")
        }
        self.node.create_timer(PERIOD, self._publish)
        self._spinner = Spinner(self.node)

    def _publish(self):
        made = self.make and self.make()
        if made:
            self.publishers[made[0]].publish(made[1])

    def call(self, name):
        return self.graph.answer(self._services[name])

    def fall_silent(self):
        """Stop the stream, and wait until what is under way has arrived."""
        self.make = None
        self.graph.wait_for(lambda: self.graph.is_quiet(1.0), "the end of the person's commands")

    def close(self):
        self._spinner.close()


@pytest.fixture
def person(live):
    person = Person(live)
    yield person
    person.make = None
    person.call("hand_back")
    person.close()
    live.arm.quirks.clear()


def twist(x=0.0, frame=""):
    from geometry_msgs.msg import TwistStamped

    message = TwistStamped()
    message.header.frame_id = frame
    message.twist.linear.x = x
    return lambda: ("twist", message)


def worst_step(graph, begin=0):
    """Largest step (rad) and kink (rad per 10 ms) between a command and the one it replaced."""
    from test_execute import worst_step as worst

    return worst(graph, begin)


def test_a_twist_and_the_way_back(live, person):
    live.run()
    begin = len(live.sent)
    person.make = twist(x=0.05)
    assert person.call("take_over").success
    assert not person.call("take_over").success
    live.wait_for(lambda: person.sources[-1] == "human", "the source")
    kinematics = live.node._runner._executor.kinematics
    start = kinematics.forward(live.arm.positions.copy())[0, 3]
    live.wait_for(
        lambda: kinematics.forward(live.arm.positions.copy())[0, 3] > start + 0.02, "the motion"
    )
    inferred = live.node._report.chunks
    live.wait_for(lambda: live.node._report.chunks > inferred, "the policy goes on inferring")
    assert live.listener.status.state == "waiting"
    assert "a person drives" in live.listener.status.detail
    moment = live.node.now_ns()
    assert person.call("hand_back").success
    person.make = None
    live.listener.wait_state("running")
    live.wait_for(lambda: person.sources[-1] == "policy", "the source")
    live.wait_for(lambda: live.sent[-1][0] > moment + 10**9, "the policy's commands")
    assert worst_step(live, begin) < 1e-3
    assert not live.arm.rejected


def test_silence_is_a_smooth_stop(live, person):
    live.run()
    assert person.call("take_over").success
    live.held("waiting", "a person drives")
    live.wait_for(lambda: "no command of the person" in live.listener.status.last_stop, "reason")
    person.make = twist(x=-0.05)
    moment = time.time_ns()
    live.wait_for(lambda: live.arm.commands_since(moment), "commands")
    person.fall_silent()
    live.held("waiting", "a person drives")


def test_joint_targets_and_a_trajectory_without_cameras(live, person):
    from sensor_msgs.msg import JointState
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    live.run()
    live.arm.quirks["wrist"] = lambda message: None
    live.held("holding", "camera wrist stopped")
    goal = live.arm.positions.copy()
    goal[6] += 0.2
    joints = list(live.arm.robot.joints)

    def towards():
        step = np.clip(goal - live.arm.positions, -0.05, 0.05)
        target = live.arm.positions + step
        return "joint_states", JointState(name=joints[::-1], position=target.tolist()[::-1])

    begin = len(live.sent)
    assert person.call("take_over").success
    person.make = towards

    live.wait_for(lambda: abs(live.arm.positions[6] - goal[6]) < 0.02, "the target")
    person.fall_silent()
    assert abs(live.arm.positions[6] - goal[6]) < 0.02  # the arm stops at the last target
    live.held("waiting", "a person drives")
    back = live.arm.positions.copy()
    back[6] -= 0.1
    point = JointTrajectoryPoint(positions=back.tolist())
    point.time_from_start.sec = 2
    trajectory = JointTrajectory(joint_names=joints, points=[point])
    trajectory.header.stamp = live.node.get_clock().now().to_msg()
    person.make = lambda: ("joint_trajectory", trajectory)
    live.wait_for(lambda: live.arm.positions[6] < goal[6] - 0.02, "the way back")
    assert worst_step(live, begin) < 1e-3
    assert not live.arm.rejected


def pose_at(matrix, frame=""):
    from geometry_msgs.msg import PoseStamped

    from robovlms_ros.core.rotations import quaternion_from_matrix

    message = PoseStamped()
    message.header.frame_id = frame
    position, turn = message.pose.position, message.pose.orientation
    position.x, position.y, position.z = matrix[:3, 3].tolist()
    turn.w, turn.x, turn.y, turn.z = quaternion_from_matrix(matrix[:3, :3]).tolist()
    return message


def test_a_stream_of_poses(live, person):
    live.run()
    begin = len(live.sent)
    kinematics = live.node._runner._executor.kinematics
    goal = kinematics.forward(live.arm.positions.copy())
    goal[:3, 3] += (0.03, 0.03, 0.0)

    def towards():
        pose = kinematics.forward(live.arm.positions.copy())
        pose[:3, 3] += np.clip(goal[:3, 3] - pose[:3, 3], -0.02, 0.02)
        return "pose", pose_at(pose, live.arm.robot.base_frame)

    assert person.call("take_over").success
    person.make = towards

    def distance():
        return np.abs(kinematics.forward(live.arm.positions.copy()) - goal)[:3, 3].max()

    live.wait_for(lambda: distance() < 5e-3, lambda: f"the pose, {distance()} m away")
    person.fall_silent()
    live.held("waiting", "a person drives")
    assert worst_step(live, begin) < 1e-3
    assert not live.arm.rejected


def joy(pressed=(), **deflected):
    """A Joy of the shipped gamepad's mapping: axes by component, pressed buttons by name."""
    from sensor_msgs.msg import Joy

    from robovlms_ros.control.joy_mapping import load_joy_mapping

    mapping = load_joy_mapping("gamepad")
    message = Joy(axes=[0.0] * 8, buttons=[0] * 11)
    for name, value in deflected.items():
        message.axes[mapping.axes[name].axis] = value
    for name in pressed:
        message.buttons[getattr(mapping, name)] = 1
    return lambda: ("joy", message)


def gripper_side(live):
    """True for the last gripper command open, None before the first."""
    commands = live.arm.gripper_commands
    return commands[-1].points[-1].positions[0] > 0.02 if commands else None


def test_a_joystick(live, person):
    live.run()
    assert person.call("take_over").success
    person.make = joy(x=1.0, pressed=["close"])
    live.held("waiting", "a person drives")  # the deadman button is not pressed
    openings = len(live.arm.gripper_commands)
    begin = len(live.sent)
    kinematics = live.node._runner._executor.kinematics
    start = kinematics.forward(live.arm.positions.copy())[2, 3]
    person.make = joy(["deadman"], z=0.6)
    live.wait_for(
        lambda: kinematics.forward(live.arm.positions.copy())[2, 3] > start + 0.03, "the motion"
    )
    person.make = joy(z=0.6)
    live.held("waiting", "a person drives")
    assert "joystick was released" in live.listener.status.last_stop
    assert len(live.arm.gripper_commands) == openings
    for name in ("open", "close", "open"):
        person.make = joy(["deadman", name])
        live.wait_for(lambda name=name: gripper_side(live) is (name == "open"), name)
    person.make = lambda: ("joy", type(joy()()[1])(axes=[0.0], buttons=[0]))
    live.held("waiting", "a person drives")
    assert worst_step(live, begin) < 1e-3
    assert not live.arm.rejected


def test_the_gripper(live, person):
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Float64

    live.run()
    assert person.call("take_over").success
    for opening in (1.0, 0.0, 1.0):
        person.make = lambda opening=opening: ("gripper", Float64(data=opening))
        live.wait_for(lambda opening=opening: gripper_side(live) is (opening == 1.0), opening)
    robot = live.arm.robot
    names = [*robot.joints, robot.gripper.joint]
    leader = JointState(name=names, position=[*live.arm.positions.tolist(), 0.0])
    person.make = lambda: ("joint_states", leader)
    live.wait_for(lambda: gripper_side(live) is False, "the leader's finger")
    count = len(live.arm.gripper_commands)
    for wrong in (float("nan"), -0.1, 1.5):
        person.make = lambda wrong=wrong: ("gripper", Float64(data=wrong))
        time.sleep(0.3)
    finger = JointState(name=names, position=[*live.arm.positions.tolist(), float("nan")])
    person.make = lambda: ("joint_states", finger)
    person.fall_silent()
    live.held("waiting", "a person drives")
    assert len(live.arm.gripper_commands) == count


@pytest.mark.parametrize("what", ["jump", "frame", "joint", "nan", "pose", "quaternion"])
def test_commands_that_do_not_fit(live, person, what):
    from sensor_msgs.msg import JointState

    live.run()
    assert person.call("take_over").success
    live.held("waiting", "a person drives")
    joints = list(live.arm.robot.joints)
    far = (live.arm.positions + 1.5).tolist()
    far_pose = np.eye(4)
    far_pose[:3, 3] = (0.2, 0.6, 0.2)
    no_rotation = pose_at(np.eye(4))
    no_rotation.pose.orientation.w = 0.0
    made = {
        "pose": ("pose", pose_at(far_pose)),
        "quaternion": ("pose", no_rotation),
        "jump": ("joint_states", JointState(name=joints, position=far)),
        "frame": twist(0.05, "camera_link")(),
        "joint": ("joint_states", JointState(name=joints[:3], position=far[:3])),
        "nan": twist(float("nan"))(),
    }[what]
    person.make = lambda: made
    assert live.is_quiet(1.0)


def test_a_goal_ends_when_a_person_takes_over(live, person):
    from action_client import GoalClient

    client = GoalClient(live)
    try:
        goal = client.send("lift the red cube")
        goal.wait_running()
        person.make = twist(x=0.03)
        assert person.call("take_over").success
        answer = goal.result()
        assert answer.result.termination_reason == "human_took_over"
        live.wait_for(lambda: live.listener.status.instruction == "", live.listener.said)
        assert client.send("lift the red cube") is None
        person.make = None
        assert person.call("hand_back").success
        live.held("waiting", "no instruction")
    finally:
        client.close()
