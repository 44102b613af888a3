"""Environment of every test: a ROS graph of this process's own, and one thread per process."""

import fcntl
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from rosbags.typesys import get_types_from_msg


def reserve_domain() -> tuple[int, IO[str]]:
    """A ROS domain that no other test process of this machine has, and the file that locks it.

    1 to 101 are clear of the ports that Linux gives to other programs.
    """
    for offset in range(101):
        domain = 1 + (os.getpid() + offset) % 101
        try:
            file = (Path(tempfile.gettempdir()) / f"robovlms_ros_test_domain_{domain}").open("w")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # locked by another process, or another user's file
            continue
        return domain, file
    raise RuntimeError("ROS domains 1 to 101: each is reserved by a test run. Set ROS_DOMAIN_ID.")


# Another run on the same machine would otherwise answer this run's services. A worker of
# pytest-xdist inherits its parent's domain and takes one of its own. Set before the first
# rclpy.init of this process and its children.
if "PYTEST_XDIST_WORKER" in os.environ or "ROS_DOMAIN_ID" not in os.environ:
    domain, domain_file = reserve_domain()
    os.environ["ROS_DOMAIN_ID"] = str(domain)
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("OMP_NUM_THREADS", "1")

with suppress(ImportError):  # without it the tests that need it are not collected
    import hypothesis

    # A busy machine is no fault: no test has a limit of time.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")


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
