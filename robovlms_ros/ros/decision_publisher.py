"""Publishes chunks, commands and decisions: `~/action_chunk`, `~/planned_trajectory`, `~/verdict`,
`~/shadow/...` and the preview."""

import math

from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.control.executor import Decision
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.shadow import Disagreement
from robovlms_ros.control.trajectory import bounds_of, curve_of, nearest_limit
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import ActionChunk, TrajectoryCommand
from robovlms_ros.msg import ActionChunk as ActionChunkMsg
from robovlms_ros.msg import ChunkVerdict
from robovlms_ros.ros.command_sender import DecisionObserver
from robovlms_ros.ros.lifecycle import PlainLifecycleNode
from robovlms_ros.ros.messages import chunk_to_message, to_time, trajectory_to_message
from robovlms_ros.ros.preview_publisher import PreviewPublisher
from robovlms_ros.ros.spinning import QUIET_PUBLISHER
from robovlms_ros.ros.status import TEXT_LIMIT


class DecisionPublisher(DecisionObserver):
    """Publishers of one node; but for chunks, a message without a subscriber is not made."""

    def __init__(self, node: PlainLifecycleNode, previews: PreviewPublisher) -> None:
        self._previews = previews
        self._robot: RobotSpec | None = None
        self._chunks = node.create_publisher(
            ActionChunkMsg, "~/action_chunk", 10, event_callbacks=QUIET_PUBLISHER
        )
        self._planned = node.create_publisher(
            JointTrajectory, "~/planned_trajectory", 10, event_callbacks=QUIET_PUBLISHER
        )
        self._verdicts = node.create_publisher(
            ChunkVerdict, "~/verdict", 10, event_callbacks=QUIET_PUBLISHER
        )
        self._shadow_chunks = node.create_publisher(
            ActionChunkMsg, "~/shadow/chunk", 10, event_callbacks=QUIET_PUBLISHER
        )
        self._disagreements = node.create_publisher(
            JointState, "~/shadow/disagreement", 10, event_callbacks=QUIET_PUBLISHER
        )

    def set_robot(self, robot: RobotSpec) -> None:
        """Set the robot whose limits are compared with."""
        self._robot = robot

    def on_chunk(self, chunk: ActionChunk) -> None:
        """Publish a chunk of the policy that commands the arm, with or without a subscriber."""
        if self._robot is not None:
            self._chunks.publish(chunk_to_message(chunk, self._robot.base_frame))

    def on_command(self, command: TrajectoryCommand) -> None:
        """Publish a trajectory that was sent, would be in dry_run, or waits for ~/confirm."""
        if self._planned.get_subscription_count() > 0:
            self._planned.publish(trajectory_to_message(command))

    def on_decision(self, chunk: ActionChunk, decision: Decision, sent: bool) -> None:
        """Publish the verdict on a chunk."""
        self._previews.on_decision(chunk, decision)
        if self._verdicts.get_subscription_count() == 0:
            return
        message = ChunkVerdict(
            sequence=chunk.sequence,
            verdict=decision.verdict.kind,
            reason=printable(decision.verdict.reason, TEXT_LIMIT),
            limit_use=math.nan,
            sent=sent,
        )
        message.header.stamp = to_time(chunk.stamp_ns)
        command = decision.command
        robot = self._robot
        if command is not None and robot is not None and robot.limits is not None:
            bounds = bounds_of(robot.limits, len(robot.joints))
            nearest = nearest_limit(curve_of(command, command.stamp_ns), bounds, robot.joints)
            message.nearest_limit = nearest.name
            message.limit_use = nearest.use
        self._verdicts.publish(message)

    def on_shadow_chunk(self, chunk: ActionChunk) -> None:
        """Publish a chunk that is not executed."""
        if self._robot is not None and self._shadow_chunks.get_subscription_count() > 0:
            self._shadow_chunks.publish(chunk_to_message(chunk, self._robot.base_frame))

    def on_disagreement(self, disagreement: Disagreement) -> None:
        """Publish a shadow chunk's distance from the commanded motion: joints (rad), tool (m)."""
        robot = self._robot
        if robot is None or self._disagreements.get_subscription_count() == 0:
            return
        names = list(robot.joints)
        values = disagreement.joints.tolist()
        if disagreement.tool is not None:
            names.append(robot.eef_frame)
            values.append(disagreement.tool)
        message = JointState(name=names, position=values)
        message.header.stamp = to_time(disagreement.stamp_ns)
        message.header.frame_id = disagreement.policy_id
        self._disagreements.publish(message)
