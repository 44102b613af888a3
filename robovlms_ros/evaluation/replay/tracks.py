"""What was recorded, as the steps that a policy's answer is compared with."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.planner import EEF_SPACES
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, RobotState
from robovlms_ros.evaluation.replay.calibration import Calibration
from robovlms_ros.evaluation.replay.commands import CommandTrack
from robovlms_ros.evaluation.replay.reference import MotionTrack
from robovlms_ros.evaluation.replay.steps import Steps, step_times, steps_of_chunk, steps_of_targets

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """A chunk with what it was answered to. variants: label -> the chunk of another instruction or a blanked camera.

    camera: where the camera of `image` was.
    """

    chunk: ActionChunk
    start: RobotState
    episode: str
    image: NDArray[np.uint8] | None = None
    variants: tuple[tuple[str, ActionChunk], ...] = ()
    camera: Calibration | None = None


@dataclass
class Tracks:
    """What was recorded. commands None: the motion that followed is the reference. chunks: stamp -> recorded chunk."""

    motion: MotionTrack
    commands: CommandTrack | None
    chunks: dict[int, ActionChunk]
    by_chunks: bool = False

    def reference(self, answer: Answer, kinematics: Kinematics | None) -> Steps | None:
        """The recorded steps for an answer's times; None when nothing is known or the spaces cannot be compared."""
        chunk, start = answer.chunk, answer.start
        times = step_times(chunk.stamp_ns, chunk.spec, chunk.horizon)
        if self.by_chunks:
            return self._from_chunk(answer)
        source = self.commands or self.motion
        targets = source.at(times, start)
        gripper = self.gripper(times)
        if chunk.spec.space in EEF_SPACES:
            poses = targets.as_poses(kinematics)
            return None if poses is None else steps_of_targets(chunk.spec, start, poses, targets.valid, gripper)
        if targets.joints is None:
            return None
        return steps_of_targets(chunk.spec, start, targets.joints, targets.valid, gripper)

    def _from_chunk(self, answer: Answer) -> Steps | None:
        """A recorded chunk of the same observation, in our words."""
        chunk, recorded = answer.chunk, self.chunk_near(answer.chunk.stamp_ns, answer.chunk.spec.step_duration)
        if recorded is None:
            return None
        theirs = steps_of_chunk(recorded, answer.start)
        if recorded.spec == chunk.spec and recorded.horizon == chunk.horizon:
            return theirs
        targets = theirs.poses if chunk.spec.space in EEF_SPACES else theirs.joints
        if targets is None or abs(recorded.spec.step_duration - chunk.spec.step_duration) > 1e-9:
            return None
        count = min(recorded.horizon, chunk.horizon)
        padded = np.concatenate([targets[:count], np.repeat(targets[count - 1:count], chunk.horizon - count, axis=0)])
        gripper = np.full(chunk.horizon, np.nan)
        gripper[:count] = theirs.gripper[:count]
        return steps_of_targets(chunk.spec, answer.start, padded, np.arange(chunk.horizon) < count, gripper)

    def chunk_near(self, stamp_ns: int, step: float) -> ActionChunk | None:
        """The recorded chunk of this stamp, or the nearest within half a step."""
        if stamp_ns in self.chunks or not self.chunks:
            return self.chunks.get(stamp_ns)
        nearest = min(self.chunks, key=lambda stamp: abs(stamp - stamp_ns))
        return self.chunks[nearest] if abs(nearest - stamp_ns) <= step * NANOSECONDS / 2 else None

    def gripper(self, times: NDArray[np.int64]) -> Array:
        """(n,) openings: commanded where gripper commands were recorded, else measured."""
        if self.commands is not None and self.commands.has_gripper:
            return self.commands.gripper(times)
        return self.motion.gripper(times)
