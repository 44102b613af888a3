"""The robot's state as the numbers that a policy was trained on."""

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.config.action import ProprioConfig
from robovlms_ros.core.rotations import vector_from_matrix
from robovlms_ros.core.types import ObservationError, RobotState


def state_vector(config: ProprioConfig, state: RobotState | None) -> NDArray[np.float32]:
    """(P,) float32 raw SI values of `state` in the order of `config.names`; the policy normalises
    them itself.

    Raises ObservationError when a value is absent or not finite.
    """
    if state is None:
        raise ObservationError("the policy takes proprioception, the observation has no robot state.")
    parts = [np.atleast_1d(_value(name, config, state)) for name in config.names]
    vector = np.concatenate(parts).astype(np.float32)
    if not np.isfinite(vector).all():
        raise ObservationError(f"proprioception {', '.join(config.names)} = {vector.tolist()}: must be finite.")
    return vector


def _value(name: str, config: ProprioConfig, state: RobotState) -> NDArray[np.float64]:
    if name == "gripper":
        if state.gripper is None:
            raise ObservationError("the policy takes the gripper's opening, the robot state has none.")
        return np.array(state.gripper)
    if name == "joint_positions":
        if len(state.positions) != config.joints:
            raise ObservationError(
                f"the policy takes {config.joints} joint positions, the state has {len(state.positions)}."
            )
        return np.asarray(state.positions)
    if state.eef_pose is None:
        raise ObservationError(f"the policy takes {name}, the robot state has no end-effector pose.")
    return state.eef_pose[:3, 3] if name == "eef_position" else vector_from_matrix(state.eef_pose[:3, :3])
