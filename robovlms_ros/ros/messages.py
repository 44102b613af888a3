"""The package's values as ROS messages. Back: `evaluation.bags.chunks`, whose functions take live
messages as well as a bag's."""

import numpy as np
from builtin_interfaces.msg import Duration, Time
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robovlms_ros.control.trajectory_controller_model import TrajectoryMessage, TrajectoryPoint
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    ChunkTiming,
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


def trajectory_from_message(message: JointTrajectory, offset_ns: int = 0) -> TrajectoryMessage:
    """The message for the model of joint_trajectory_controller; a stamp that is set is moved back by
    `offset_ns`."""
    stamp_ns = from_time(message.header.stamp)
    points = tuple(
        TrajectoryPoint(from_time(p.time_from_start), p.positions, p.velocities, p.accelerations)
        for p in message.points
    )
    joints = tuple(message.joint_names)
    return TrajectoryMessage(stamp_ns - offset_ns if stamp_ns else 0, joints, points)


def image_to_message(image: NDArray[np.uint8], stamp_ns: int, frame_id: str) -> Image:
    """(H, W, 3) RGB as a sensor_msgs/Image."""
    height, width = image.shape[:2]
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.data.frombytes(np.ascontiguousarray(image).tobytes())
    message.header.stamp = to_time(stamp_ns)
    message.header.frame_id = frame_id
    return message
