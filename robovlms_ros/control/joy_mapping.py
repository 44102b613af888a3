"""A gamepad's or a SpaceMouse's axes and buttons as a tool velocity and a gripper opening.

A mapping is a YAML file; config/joy holds one for each kind of device.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core import resources
from robovlms_ros.core.schema import ConfigError, build, read_mapping, require
from robovlms_ros.core.types import EEF_NAMES, Frame, RoboVLMsError

COMPONENTS = EEF_NAMES[:6]
"""Components of a tool velocity: x, y, z in m/s, rx, ry, rz in rad/s."""

FASTEST = 10.0
"""m/s and rad/s: largest scale of an axis that a mapping may have."""


class JoyRefused(RoboVLMsError):
    """A sensor_msgs/Joy lacks an axis or a button of the mapping."""


@dataclass(frozen=True)
class JoyAxis:
    """One axis of the device. scale: m/s or rad/s at full deflection; negative turns it round."""

    axis: int
    scale: float

    def __post_init__(self) -> None:
        require(self.axis >= 0, "axis", self.axis, "0 or more")
        fits = math.isfinite(self.scale) and 0.0 < abs(self.scale) <= FASTEST
        require(fits, "scale", self.scale, f"a speed other than 0, at most {FASTEST:g}")


@dataclass(frozen=True)
class JoyMapping:
    """The mapping of one device. Axes and buttons are counted from 0, as sensor_msgs/Joy has them.

    axes: velocity component (x, y, z, rx, ry, rz) -> axis; the others are zero. frame: their axes.
    deadzone: part of an axis' range that counts as zero. deadman: button that is held while the
    person drives; None: any deflection drives. close, open: buttons of the gripper, None for none.
    """

    axes: Mapping[str, JoyAxis]
    frame: Frame = "base"
    deadzone: float = 0.1
    deadman: int | None = None
    close: int | None = None
    open: int | None = None
    _rows: tuple[int, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        allowed = f"one or more of {', '.join(COMPONENTS)}"
        known = bool(self.axes) and set(self.axes) <= set(COMPONENTS)
        require(known, "axes", list(self.axes), allowed)
        require(0.0 <= self.deadzone < 1.0, "deadzone", self.deadzone, "0 or more, below 1")
        buttons = {"deadman": self.deadman, "close": self.close, "open": self.open}
        given = {name: button for name, button in buttons.items() if button is not None}
        for name, button in given.items():
            require(button >= 0, name, button, "0 or more")
        different = len(set(given.values())) == len(given)
        require(different, ", ".join(given), list(given.values()), "different buttons")
        rows = tuple(COMPONENTS.index(name) for name in self.axes)
        object.__setattr__(self, "_rows", rows)

    def is_held(self, axes: Sequence[float], buttons: Sequence[int]) -> bool:
        """True while the person drives: by the deadman button, else by any deflection."""
        if self.deadman is not None:
            return self._is_pressed(self.deadman, buttons)
        return bool(np.any(self.twist(axes) != 0.0))

    def twist(self, axes: Sequence[float]) -> NDArray[np.float64]:
        """(6,) tool velocity, m/s and rad/s, in `frame`. Raises JoyRefused for a missing axis."""
        twist = np.zeros(len(COMPONENTS))
        for row, (name, entry) in zip(self._rows, self.axes.items(), strict=True):
            if entry.axis >= len(axes):
                raise JoyRefused(
                    f"axis {entry.axis} ({name}) is missing: the message has {len(axes)} axes. "
                    "Is joy_mapping the device's?"
                )
            value = float(np.clip(axes[entry.axis], -1.0, 1.0))
            beyond = max(abs(value) - self.deadzone, 0.0) / (1.0 - self.deadzone)
            # A value that is not a number stays one: the plan refuses it.
            twist[row] = entry.scale * (math.copysign(beyond, value) if value == value else value)
        return twist

    def opening(self, buttons: Sequence[int]) -> float | None:
        """The gripper opening of the pressed button, 0 closed or 1 open; None without one.

        Raises JoyRefused for a missing button.
        """
        if self.close is not None and self._is_pressed(self.close, buttons):
            return 0.0
        if self.open is not None and self._is_pressed(self.open, buttons):
            return 1.0
        return None

    def _is_pressed(self, button: int, buttons: Sequence[int]) -> bool:
        if button >= len(buttons):
            raise JoyRefused(
                f"button {button} is missing: the message has {len(buttons)} buttons. "
                "Is joy_mapping the device's?"
            )
        return bool(buttons[button])


def load_joy_mapping(name_or_path: str | Path) -> JoyMapping:
    """The mapping of a YAML file, or of a shipped one by name (`gamepad`, `spacemouse`).

    Raises ConfigError naming place and remedy.
    """
    path = resources.find(name_or_path, "config/joy")
    try:
        return build(JoyMapping, read_mapping(path), "joy_mapping")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
