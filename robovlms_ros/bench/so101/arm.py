"""A simulated SO-101 without physics whose camera draws it and whose jaw follows its commands."""

import numpy as np
from numpy.typing import NDArray
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.bench.faults.arm import PERIOD, FaultArm
from robovlms_ros.bench.so101.episode import CAMERA, JAW_LAG
from robovlms_ros.bench.so101.picture import ArmPicture
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.types import Array


class DrawnArm(FaultArm):
    """The arm in a start configuration.

    jaw_commands: (recorded period, rad) of each command of the gripper.
    """

    def __init__(self, robot: RobotSpec, start: Array) -> None:
        self._drawing = ArmPicture(robot)
        self._jaw_goal = robot.gripper.open_position  # type: ignore[union-attr]
        self._jaw_share = 1 - np.exp(-PERIOD / JAW_LAG)
        self.jaw_commands: list[tuple[int, float]] = []
        super().__init__(robot=robot, cameras=(CAMERA,), start=start)

    def _on_gripper(self, message: JointTrajectory) -> None:
        self._jaw_goal = float(message.points[-1].positions[0])
        self.jaw_commands.append((self.mark(), self._jaw_goal))

    def _control(self, now: float) -> None:
        super()._control(now)
        self.gripper_position += self._jaw_share * (self._jaw_goal - self.gripper_position)

    def _picture(self, camera: str) -> NDArray[np.uint8]:
        gripper = self.robot.gripper
        assert gripper is not None
        return self._drawing.draw(self.positions, gripper.opening(self.gripper_position))
