"""The package's values as ROS messages, and back."""

import numpy as np
from builtin_interfaces.msg import Duration, Time
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    ActionSpec,
    ChunkTiming,
    RoboVLMsError,
    TrajectoryCommand,
)
from robovlms_ros.msg import ActionChunk as ActionChunkMsg


def to_time(stamp_ns: int) -> Time:
    """Nanoseconds as a builtin_interfaces/Time."""
    return Time(sec=int(stamp_ns // NANOSECONDS), nanosec=int(stamp_ns % NANOSECONDS))


def from_time(time: Time) -> int:
    """A builtin_interfaces/Time in nanoseconds."""
    return int(time.sec) * NANOSECONDS + int(time.nanosec)


def chunk_to_message(chunk: ActionChunk, frame_id: str) -> ActionChunkMsg:
    """The chunk without loss; `frame_id` is the robot's base frame."""
    spec = chunk.spec
    timing = chunk.timing or ChunkTiming(0, 0, 0)
    message = ActionChunkMsg(
        instruction=chunk.instruction,
        policy_id=chunk.policy_id,
        sequence=chunk.sequence,
        step_duration=spec.step_duration,
        action_space=spec.space,
        frame=spec.frame,
        rotation=spec.rotation,
        composition=spec.composition,
        dimension_names=list(spec.names),
        horizon=chunk.horizon,
        values=np.asarray(chunk.values, dtype=np.float64).ravel().tolist(),
        image_time=to_time(timing.image_ns),
        inference_start=to_time(timing.inference_start_ns),
        inference_end=to_time(timing.inference_end_ns),
    )
    message.header.stamp = to_time(chunk.stamp_ns)
    message.header.frame_id = frame_id
    return message


def chunk_from_message(message: ActionChunkMsg) -> ActionChunk:
    """The chunk of a message. Raises RoboVLMsError when values, horizon and dimension names do not
    agree."""
    names = tuple(message.dimension_names)
    if len(message.values) != message.horizon * len(names):
        raise RoboVLMsError(
            f"ActionChunk: {len(message.values)} values for horizon {message.horizon} and {len(names)} dimensions "
            f"({', '.join(names)}): must be {message.horizon * len(names)}."
        )
    spec = ActionSpec(message.action_space, message.frame, message.rotation, message.composition,
                      message.step_duration, names)
    timing = ChunkTiming(*map(from_time, (message.image_time, message.inference_start, message.inference_end)))
    return ActionChunk(
        stamp_ns=from_time(message.header.stamp),
        values=np.array(message.values, dtype=np.float64).reshape(message.horizon, len(names)),
        spec=spec,
        instruction=message.instruction,
        policy_id=message.policy_id,
        sequence=message.sequence,
        timing=None if timing == ChunkTiming(0, 0, 0) else timing,
    )


def trajectory_to_message(command: TrajectoryCommand) -> JointTrajectory:
    """A message for joint_trajectory_controller; `header.frame_id` stays empty, as it has no
    meaning there."""
    message = JointTrajectory(joint_names=list(command.joints))
    message.header.stamp = to_time(command.stamp_ns)
    for i, seconds in enumerate(command.times):
        nanoseconds = round(float(seconds) * NANOSECONDS)
        point = JointTrajectoryPoint(
            positions=command.positions[i].tolist(),
            velocities=command.velocities[i].tolist(),
            time_from_start=Duration(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS),
        )
        if command.accelerations is not None:
            point.accelerations = command.accelerations[i].tolist()
        message.points.append(point)
    return message
