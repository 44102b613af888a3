"""This package's values as bag messages, and back: the same translation as the node's, on a bag
library's types."""

from typing import Any

import numpy as np
from rosbags.typesys.store import Typestore

from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    ActionSpec,
    ChunkTiming,
    RoboVLMsError,
    TrajectoryCommand,
)

CHUNK = "robovlms_ros/msg/ActionChunk"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"


def _time(store: Typestore, stamp_ns: int) -> Any:
    seconds, nanoseconds = divmod(stamp_ns, NANOSECONDS)
    return store.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)


def _ns(time: Any) -> int:
    return int(time.sec) * NANOSECONDS + int(time.nanosec)


def chunk_of_message(message: Any) -> ActionChunk:
    """The chunk of an ActionChunk message. Raises RoboVLMsError when values, horizon and names do
    not agree."""
    names = tuple(message.dimension_names)
    if not names or len(message.values) != message.horizon * len(names):
        raise RoboVLMsError(
            f"ActionChunk: {len(message.values)} values for horizon {message.horizon} and {len(names)} dimensions: "
            f"must be {message.horizon * len(names)}."
        )
    spec = ActionSpec(message.action_space, message.frame, message.rotation, message.composition,
                      float(message.step_duration), names)
    timing = ChunkTiming(_ns(message.image_time), _ns(message.inference_start), _ns(message.inference_end))
    values = np.array(message.values, dtype=np.float64).reshape(message.horizon, len(names))
    return ActionChunk(_ns(message.header.stamp), values, spec, message.instruction, message.policy_id,
                       int(message.sequence), None if timing == ChunkTiming(0, 0, 0) else timing)


def message_of_chunk(store: Typestore, chunk: ActionChunk, frame_id: str) -> bytes:
    """A serialized ActionChunk message; `frame_id` is the robot's base frame."""
    types = store.types
    spec = chunk.spec
    timing = chunk.timing or ChunkTiming(0, 0, 0)

    def time(stamp_ns: int) -> Any:
        return _time(store, stamp_ns)

    message = types[CHUNK](
        header=types["std_msgs/msg/Header"](stamp=time(chunk.stamp_ns), frame_id=frame_id),
        instruction=chunk.instruction, policy_id=chunk.policy_id, sequence=chunk.sequence,
        step_duration=spec.step_duration, action_space=spec.space, frame=spec.frame, rotation=spec.rotation,
        composition=spec.composition, dimension_names=list(spec.names), horizon=chunk.horizon,
        values=np.asarray(chunk.values, dtype=np.float64).ravel(), image_time=time(timing.image_ns),
        inference_start=time(timing.inference_start_ns), inference_end=time(timing.inference_end_ns))
    return bytes(store.serialize_cdr(message, CHUNK))


def message_of_command(store: Typestore, command: TrajectoryCommand) -> bytes:
    """A serialized JointTrajectory message."""
    types = store.types
    point = types["trajectory_msgs/msg/JointTrajectoryPoint"]
    empty = np.empty(0)
    points = []
    for i, seconds in enumerate(command.times):
        nanoseconds = round(float(seconds) * NANOSECONDS)
        duration = types["builtin_interfaces/msg/Duration"](
            sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)
        accelerations = empty if command.accelerations is None else command.accelerations[i]
        points.append(point(positions=command.positions[i], velocities=command.velocities[i],
                            accelerations=accelerations, effort=empty, time_from_start=duration))
    header = types["std_msgs/msg/Header"](stamp=_time(store, command.stamp_ns), frame_id="")
    message = types[TRAJECTORY](header=header,
                                joint_names=list(command.joints), points=points)
    return bytes(store.serialize_cdr(message, TRAJECTORY))
