"""Environment of every test: a ROS graph of this run's own, and threads that do not fight for the processors."""

import os

import numpy as np
import pytest
from rosbags.typesys import get_types_from_msg

# Another run on the same machine or network would otherwise answer this run's services. 1 to 101 keep clear of the
# ports that Linux hands out to other programs. Set before the first rclpy.init of this process and its children.
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 101))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("OMP_NUM_THREADS", "1")


class ControllerStates:
    """Messages of a trajectory controller's state for the bags of tests: the fields that are read.

    field: the name that the distribution gives to the commanded point.
    """

    KIND = "control_msgs/msg/JointTrajectoryControllerState"

    def __init__(self, store, field):
        self._types, self._field = store.types, field

    @classmethod
    def of(cls, store, field="reference"):
        if cls.KIND not in store.fielddefs:
            fields = (
                "std_msgs/Header header",
                "string[] joint_names",
                f"trajectory_msgs/JointTrajectoryPoint {field}",
            )
            store.register(get_types_from_msg("\n".join(fields), cls.KIND))
        return cls(store, field)

    def message(self, header, joints, positions):
        """positions: rad, the reference at the header's stamp."""
        empty = np.empty(0)
        duration = self._types["builtin_interfaces/msg/Duration"](sec=0, nanosec=0)
        point = self._types["trajectory_msgs/msg/JointTrajectoryPoint"](
            positions=np.asarray(positions, dtype=np.float64), velocities=empty,
            accelerations=empty, effort=empty, time_from_start=duration)
        return self._types[self.KIND](
            header=header, joint_names=list(joints), **{self._field: point})


@pytest.fixture
def controller_states():
    return ControllerStates
