"""Values exchanged between packages: observations, action chunks, joint plans, trajectories.

Every stamp is an integer in nanoseconds on the clock of whoever made the data (node clock, bag
time, simulated time); nothing here reads a clock. Lengths are metres, angles radians, durations
seconds (REP-103). Poses are 4x4 homogeneous matrices `base_T_eef`: the end effector's frame
expressed in the robot's base frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Space = Literal["eef_delta", "eef_pose", "joint_delta", "joint_position"]
Frame = Literal["base", "tool"]
Rotation = Literal["rotation_vector", "euler_xyz_extrinsic", "euler_xyz_intrinsic"]
Composition = Literal["chained", "from_observation"]

EEF_NAMES = ("x", "y", "z", "rx", "ry", "rz", "gripper")

NANOSECONDS = 1_000_000_000


class RoboVLMsError(Exception):
    """Base of every error this package raises on purpose: its text names value, place, what is
    allowed, remedy."""


class ObservationError(RoboVLMsError):
    """An observation cannot be used: an image, a joint state or an instruction is missing, stale or
    malformed."""


class InstructionRefused(ObservationError):
    """The policy cannot take an instruction: it is empty, too long, or has words or control tokens
    it must not have."""


@dataclass(frozen=True)
class ActionSpec:
    """Meaning of an action chunk's numbers after the action pipeline. No field has a silent
    default.

    space: `eef_delta` (6 pose numbers + gripper), `eef_pose`, `joint_delta` or `joint_position`
        (joints + gripper).
    frame: the axes in which an end-effector delta is expressed: the robot's base, or the tool at
        the step's start. Translation and rotation share it. `base`: p' = p + d, R' = D R. `tool`:
        p' = p + R d, R' = R D.
    rotation: how three numbers make D. `rotation_vector` (axis times angle); `euler_xyz_extrinsic`,
        D = Rz Ry Rx (roll, pitch, yaw about fixed axes, REP-103); `euler_xyz_intrinsic`, D = Rx Ry
        Rz.
    composition: `chained`: step k starts from step k-1's target, step 0 from the pose measured at
        the image's stamp. `from_observation`: every step is relative to the pose measured at the
        image's stamp.
    step_duration: seconds between steps; step k is the target at stamp + (k + 1) * step_duration.
    names: one name per column of `ActionChunk.values`.
    """

    space: Space
    frame: Frame
    rotation: Rotation
    composition: Composition
    step_duration: float
    names: tuple[str, ...] = EEF_NAMES


@dataclass(frozen=True)
class RobotState:
    """The arm as measured at one instant.

    stamp_ns: time of the measurement.
    positions, velocities: (J,) float64 in the order of the robot's joints; rad, rad/s (m, m/s where
        prismatic). Velocities are None where the driver publishes none.
    eef_pose: (4, 4) float64 base_T_eef, None until kinematics filled it in.
    gripper: opening, 0 closed to 1 open; None for an arm without one.
    """

    stamp_ns: int
    positions: Array
    velocities: Array | None = None
    eef_pose: Array | None = None
    gripper: float | None = None


@dataclass(frozen=True)
class Observation:
    """Input of a policy at one instant.

    stamp_ns: the image time of the reference (first) camera.
    images: camera name -> (H, W, 3) uint8 RGB. Read-only by agreement: buffers may be shared.
    instruction: the task in words.
    state: the arm at `stamp_ns`, interpolated; None for a policy without proprioception that is not
        executed.
    """

    stamp_ns: int
    images: Mapping[str, NDArray[np.uint8]]
    instruction: str
    state: RobotState | None = None


@dataclass(frozen=True)
class ChunkTiming:
    """Times of one inference, on the caller's clock (ns): image stamp, inference start, inference
    end."""

    image_ns: int
    inference_start_ns: int
    inference_end_ns: int


@dataclass(frozen=True)
class ActionChunk:
    """One answer of the policy: targets for the steps that follow `stamp_ns`.

    values: (horizon, len(spec.names)) float64 in SI units; the gripper column is the opening, 0
        closed to 1 open.
    sequence: counts the chunks of a session, from 0.
    """

    stamp_ns: int
    values: Array
    spec: ActionSpec
    instruction: str
    policy_id: str
    sequence: int = 0
    timing: ChunkTiming | None = None

    @property
    def horizon(self) -> int:
        return int(self.values.shape[0])


@dataclass(frozen=True)
class JointPlan:
    """A chunk in joint space, before scheduling.

    times_ns: (N,) int64, absolute, strictly increasing.
    positions, velocities: (N, J) float64 in the robot's joint order.
    gripper: (N,) opening 0 to 1, or None.
    smooth: made within the acceleration limits and to rest; its corners are not rounded, and it is
        executed whole.
    """

    times_ns: NDArray[np.int64]
    positions: Array
    velocities: Array
    gripper: Array | None = None
    chunk: ActionChunk | None = field(default=None, compare=False)
    smooth: bool = False


TrajectoryShape = Literal["self_splice", "replacement"]


@dataclass(frozen=True)
class TrajectoryCommand:
    """Command for a joint trajectory controller: the content of one
    trajectory_msgs/JointTrajectory.

    stamp_ns: the header's stamp; 0 means "start when it arrives".
    times: (N,) float64 s after the stamp, >= 0 and strictly increasing. The last velocity is zero.
    shape: the controller that it is for: one that forgets the running trajectory, or one that
    blends into it, which is sent `control.trajectory_shape.wire_form` of it.
    """

    stamp_ns: int
    joints: tuple[str, ...]
    times: Array
    positions: Array
    velocities: Array
    accelerations: Array | None = None
    shape: TrajectoryShape = "self_splice"
