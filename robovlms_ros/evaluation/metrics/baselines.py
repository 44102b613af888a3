"""Trivial policies on the same chunks, so that a reader knows what an error means."""

from dataclasses import dataclass, field

import numpy as np

from robovlms_ros.control.planner import GRIPPER
from robovlms_ros.core.types import ActionChunk, Array, RobotState
from robovlms_ros.evaluation.replay.steps import Steps, arm_columns, chunk_with, steps_of_chunk

BASELINES = ("hold still", "repeat the last action", "mean action")


@dataclass
class Baselines:
    """Answer of each trivial policy in place of the policy's `chunk`.

    hold still: the measured pose, the gripper as it is. repeat the last action: the recorded action
        of the step that
    ended at the image, again and again. mean action: the mean of the recorded actions so far (of
    this bag, before the
    image: it knows no future).
    """

    _sum: Array | None = None
    _count: Array = field(default_factory=lambda: np.zeros(0))

    def answers(self, chunk: ActionChunk, start: RobotState, last_action: Array | None) -> dict[str, Steps]:
        """Baseline -> its steps. last_action: (D,) recorded values of the step before the image,
        None if unknown."""
        hold = self._hold(chunk, start)
        dims = hold.shape[1]
        repeated = hold if last_action is None else np.where(np.isfinite(last_action), last_action, hold[0])
        mean = hold[0]
        if self._sum is not None:
            mean = np.where(self._count > 0, self._sum / np.maximum(self._count, 1), hold[0])
        factors = np.ones((chunk.horizon, dims))
        if chunk.spec.composition == "from_observation" and chunk.spec.space.endswith("delta"):
            factors[:, arm_columns(chunk.spec)] = np.arange(1, chunk.horizon + 1)[:, None]
        rows = {BASELINES[0]: hold, BASELINES[1]: repeated * factors, BASELINES[2]: mean * factors}
        return {name: steps_of_chunk(chunk_with(chunk, values), start) for name, values in rows.items()}

    def learn(self, recorded: Steps) -> None:
        """Add a chunk's first recorded step to the mean."""
        row = recorded.values[0]
        if self._sum is None:
            self._sum = np.zeros_like(row)
            self._count = np.zeros_like(row)
        known = np.isfinite(row)
        self._sum += np.where(known, row, 0.0)
        self._count += known

    @staticmethod
    def _hold(chunk: ActionChunk, start: RobotState) -> Array:
        spec = chunk.spec
        values = np.zeros((chunk.horizon, len(spec.names)))
        columns = arm_columns(spec)
        if spec.space == "joint_position":
            values[:, columns] = start.positions
        elif spec.space == "eef_pose":
            from robovlms_ros.control.planner import encode_poses

            assert start.eef_pose is not None
            values[:, columns] = encode_poses(start.eef_pose[None], start.eef_pose, spec)
        if GRIPPER in spec.names:
            opening = np.nan if start.gripper is None else start.gripper
            values[:, spec.names.index(GRIPPER)] = opening
        return values
