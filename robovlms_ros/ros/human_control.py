"""A person who drives: `~/take_over`, `~/hand_back`, `~/human/...`, `~/control_source`."""

import math
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Float64
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.control.controller_types import GripperBase
from robovlms_ros.control.joy_mapping import JoyMapping, JoyRefused
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.person_commands import (
    PersonTargets,
    in_robot_order,
    joints_of_pose,
    plan_trajectory,
    plan_twist,
)
from robovlms_ros.control.planner import PlanRefused
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.rotations import matrix_from_quaternion, pose_of
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import NANOSECONDS, Frame, JointPlan, RobotState
from robovlms_ros.msg import ControlSource, PolicyStatus
from robovlms_ros.ros.graph import LATCHED, NEWEST_ONLY
from robovlms_ros.ros.lifecycle import PlainLifecycleNode
from robovlms_ros.ros.messages import from_time, to_time
from robovlms_ros.ros.person_control import PersonControl, Plan
from robovlms_ros.ros.policy_runner import PolicyRunner
from robovlms_ros.ros.spinning import QUIET_PUBLISHER
from robovlms_ros.ros.status import TEXT_LIMIT, NodeStatus

STREAM_PERIOD_NS = NANOSECONDS // 50
"""Streamed commands that arrive sooner after the last one are dropped: each is planned anew."""


class HumanControl:
    """The services, topics and publisher of one node.

    runner: the present one, None while unconfigured. on_taken: called after a take-over. log:
    called with a line for the log.
    """

    def __init__(
        self,
        node: PlainLifecycleNode,
        report: NodeStatus,
        now: Callable[[], int],
        runner: Callable[[], PolicyRunner | None],
        on_taken: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        self._report = report
        self._now = now
        self._runner = runner
        self._on_taken = on_taken
        self._log = log
        self._targets = PersonTargets()
        self._streamed_ns = 0
        self._joy_held = False
        self.joy: JoyMapping | None = None
        """Mapping of `~/human/joy`; None before the first configure."""
        self._source = ControlSource()
        self._sources = node.create_publisher(
            ControlSource, "~/control_source", LATCHED, event_callbacks=QUIET_PUBLISHER
        )
        group = node.work_group
        node.create_service(Trigger, "~/take_over", self._on_take_over, callback_group=group)
        node.create_service(Trigger, "~/hand_back", self._on_hand_back, callback_group=group)
        for kind, name, callback, qos in (
            (TwistStamped, "twist", self._on_twist, NEWEST_ONLY),
            (PoseStamped, "pose", self._on_pose, NEWEST_ONLY),
            (Joy, "joy", self._on_joy, NEWEST_ONLY),
            (Float64, "gripper", self._on_gripper, 10),
            (JointState, "joint_states", self._on_joint_state, NEWEST_ONLY),
            (JointTrajectory, "joint_trajectory", self._on_trajectory, 10),
        ):
            node.create_subscription(kind, f"~/human/{name}", callback, qos, callback_group=group)
        self.publish_source()

    def publish_source(self) -> None:
        """Publish who commands the arm, where that has changed."""
        source = ControlSource.HOLD
        if self._person() is not None:
            source = ControlSource.HUMAN
        elif self._report.state == PolicyStatus.RUNNING:
            source = ControlSource.POLICY
        if source == self._source.source:
            return
        now = to_time(self._now())
        reason = printable(self._report.detail or self._report.state, TEXT_LIMIT)
        self._source = ControlSource(source=source, since=now, reason=reason)
        self._source.header.stamp = now
        self._sources.publish(self._source)

    def _on_take_over(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        runner = self._runner()
        response.message = "the node is not active" if runner is None else runner.take_over()
        response.success = not response.message
        if response.success:
            self._targets.reset()
            self._log("a person drives: ~/take_over")
            self._on_taken()
        self.publish_source()
        return response

    def _on_hand_back(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        runner = self._runner()
        response.message = "the node is not active" if runner is None else runner.hand_back()
        response.success = not response.message
        if response.success:
            self._log("the policy drives: ~/hand_back")
        self.publish_source()
        return response

    def _is_due(self) -> bool:
        now = self._now()
        due = not 0 <= now - self._streamed_ns < STREAM_PERIOD_NS
        if due:
            self._streamed_ns = now
        return due

    def _on_twist(self, message: TwistStamped) -> None:
        if not self._is_due():
            return
        twist = message.twist
        linear = twist.linear
        angular = twist.angular
        values = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])

        def plan(start: RobotState, robot: RobotSpec, kinematics: Kinematics | None) -> JointPlan:
            frame = _frame(message.header.frame_id, robot)
            return plan_twist(values, frame, start, kinematics, robot)

        self._command(plan)

    def _on_joy(self, message: Joy) -> None:
        person = self._person()
        mapping = self.joy
        if mapping is None or person is None:
            self._joy_held = False
            return
        try:
            held = mapping.is_held(message.axes, message.buttons)
            values = mapping.twist(message.axes)
            opening = mapping.opening(message.buttons)
        except JoyRefused as refusal:
            self._refuse(str(refusal))
            return
        if opening is not None and (held or mapping.deadman is None):
            self._move_gripper(opening)
        if held and self._is_due():

            def plan(start: RobotState, robot: RobotSpec, kinematics: Kinematics | None) -> JointPlan:
                return plan_twist(values, mapping.frame, start, kinematics, robot)

            self._command(plan)
        if self._joy_held and not held:
            person.stop("the joystick was released")
        self._joy_held = held

    def _on_gripper(self, message: Float64) -> None:
        self._move_gripper(message.data)

    def _on_pose(self, message: PoseStamped) -> None:
        if not self._is_due():
            return
        now = self._now()

        def plan(start: RobotState, robot: RobotSpec, kinematics: Kinematics | None) -> JointPlan:
            if _frame(message.header.frame_id, robot) != "base":
                raise PlanRefused(f"a pose must be in {robot.base_frame}, or its frame_id empty.")
            pose = _matrix(message)
            target = joints_of_pose(pose, start, kinematics, robot)
            return self._targets.plan(target, now, start, robot)

        self._command(plan)

    def _on_joint_state(self, message: JointState) -> None:
        if not self._is_due():
            return
        now = self._now()
        names = list(message.name)

        def plan(start: RobotState, robot: RobotSpec, kinematics: Kinematics | None) -> JointPlan:
            target = in_robot_order(names, message.position, robot)
            return self._targets.plan(target, now, start, robot)

        self._command(plan)
        gripper = self._gripper()
        if gripper is not None and gripper.joint in names[: len(message.position)]:
            position = message.position[names.index(gripper.joint)]
            # `opening` would clip a value that is not a number.
            opening = gripper.opening(position) if math.isfinite(position) else position
            self._move_gripper(opening)

    def _on_trajectory(self, message: JointTrajectory) -> None:
        def plan(start: RobotState, robot: RobotSpec, kinematics: Kinematics | None) -> JointPlan:
            points = message.points
            names = message.joint_names
            seconds = np.array([from_time(p.time_from_start) / NANOSECONDS for p in points])
            positions = [in_robot_order(names, p.positions, robot) for p in points]
            velocities = None
            if points and all(p.velocities for p in points):
                velocities = np.array([in_robot_order(names, p.velocities, robot) for p in points])
            begin_ns = from_time(message.header.stamp) or start.stamp_ns
            return plan_trajectory(seconds, np.array(positions), velocities, begin_ns, robot)

        self._command(plan)

    def _person(self) -> PersonControl | None:
        """The person's control; None while no person drives."""
        runner = self._runner()
        return runner.person if runner is not None and runner.person.drives else None

    def _command(self, plan: Plan) -> None:
        person = self._person()
        if person is not None:
            self._refuse(person.command(plan))

    def _gripper(self) -> GripperBase | None:
        runner = self._runner()
        return None if runner is None or runner.robot is None else runner.robot.gripper

    def _move_gripper(self, opening: float) -> None:
        person = self._person()
        if person is not None:
            self._refuse(person.move_gripper(opening))

    def _refuse(self, reason: str) -> None:
        if reason:
            self._log(f"a person's command was refused: {reason}")


def _matrix(message: PoseStamped) -> np.ndarray:
    """(4, 4) of a pose. Raises PlanRefused for a quaternion that is no rotation."""
    position = message.pose.position
    turn = message.pose.orientation
    quaternion = np.array([turn.w, turn.x, turn.y, turn.z])
    norm = np.linalg.norm(quaternion)
    if not 0.99 <= norm <= 1.01:
        raise PlanRefused(f"the pose's quaternion has the norm {norm:.3f}: must be 1.")
    rotation = matrix_from_quaternion(quaternion)
    return pose_of(rotation, np.array([position.x, position.y, position.z]))


def _frame(frame_id: str, robot: RobotSpec) -> Frame:
    if frame_id in ("", robot.base_frame):
        return "base"
    if frame_id == robot.eef_frame:
        return "tool"
    raise PlanRefused(
        f"frame_id = '{printable(frame_id)}': must be {robot.base_frame} (or empty) or "
        f"{robot.eef_frame}."
    )
