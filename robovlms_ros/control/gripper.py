"""A policy's opening per step becomes few, decided gripper commands: hysteresis and a shortest time between changes."""

from robovlms_ros.control.controller_types import GripperBase
from robovlms_ros.core.types import NANOSECONDS


class GripperSwitch:
    """Open or closed. A new side is taken beyond the gripper's thresholds, at most once per `dwell` seconds."""

    def __init__(self, gripper: GripperBase) -> None:
        self._gripper = gripper
        self.reset()

    def reset(self) -> None:
        """Forget the side: the next opening beyond a threshold decides it."""
        self.opening: float | None = None
        self._changed_ns = 0

    def update(self, wanted: float, now_ns: int) -> float | None:
        """The opening to command now, 1.0 or 0.0, for the policy's `wanted` 0 to 1; None until it was ever decided."""
        gripper = self._gripper
        if gripper.close_below < wanted < gripper.open_above:
            return self.opening
        side = 1.0 if wanted >= gripper.open_above else 0.0
        rested = self.opening is None or abs(now_ns - self._changed_ns) >= gripper.dwell * NANOSECONDS
        if side != self.opening and rested:
            self.opening, self._changed_ns = side, now_ns
        return self.opening
