"""Units of a recording of bus servos, seen in its numbers: a motor is read in whole ticks.

LeRobot's degrees are 360 / 4095 a tick, about the middle of a range of whole ticks; its percent are
200 / width a tick (100 / width of a gripper), with the calibrated range's width. Measured states
lie on one of these grids, and so show their unit and the width; commands of a leader arm do not.
"""

from collections.abc import Sequence

import numpy as np

from robovlms_ros.control.lerobot_block import TICKS, MotorRange
from robovlms_ros.control.lerobot_units import TICKS_PER_DEGREE, WHOLE_PERCENT
from robovlms_ros.core.types import Array
from robovlms_ros.training.data.episodes import Flaw

NEAR = 0.02
"""Ticks within which a number is on the grid; 32-bit numbers are within 0.001."""
ALMOST_ALL = 0.98
DISTINCT = 40
"""Different values of a motor, below which its grid cannot be told from another."""
NARROWEST = 300
"""Ticks of the narrowest range that is sought."""


def on_grid(numbers: Array, ticks_per_number: float) -> bool:
    """True where almost all numbers are whole ticks."""
    ticks = numbers * ticks_per_number
    return bool(np.mean(np.abs(ticks - np.rint(ticks)) < NEAR) >= ALMOST_ALL)


def is_degrees(numbers: Array) -> bool:
    """True for numbers on the grid of degrees; the middle of a range may lie between two ticks."""
    return on_grid(numbers, 2 * TICKS_PER_DEGREE)


def percent_width(numbers: Array, jaw: bool) -> int | None:
    """Width (ticks) of the range of which the numbers are percent, or None."""
    from_low = numbers if jaw else numbers + WHOLE_PERCENT
    whole = WHOLE_PERCENT if jaw else 2 * WHOLE_PERCENT
    sample = from_low[:: max(len(from_low) // 500, 1)]
    found = (width for width in range(NARROWEST, TICKS) if on_grid(sample, width / whole))
    return next((width for width in found if on_grid(from_low, width / whole)), None)


def _enough(numbers: Array) -> bool:
    return len(np.unique(numbers)) >= DISTINCT


def grid_flaws(
    states: Array,
    motors: Sequence[str],
    units: str,
    ranges: Sequence[MotorRange] | None,
    where: str,
) -> list[Flaw]:
    """Flaws of a declaration that the measured states contradict; none where they are on no grid.

    states: (N, M) recorded numbers in the order of the motors, the gripper last where there is one
    more than the arm has. units: as declared. ranges: the calibration's.
    """
    texts: dict[str, list[str]] = {}  # by remedy
    for i, motor in enumerate(motors):
        numbers = states[:, i]
        jaw = i == len(motors) - 1
        if not _enough(numbers):
            continue
        found = _contradiction(numbers, jaw, units, None if ranges is None else ranges[i], motor)
        if found:
            texts.setdefault(found[1], []).append(found[0])
    return [
        Flaw(
            "calibration",
            where,
            f"data.lerobot.units = '{units}', but the measured states of {', '.join(parts)}",
            remedy,
            refuse=True,
        )
        for remedy, parts in texts.items()
    ]


def _contradiction(
    numbers: Array, jaw: bool, units: str, calibrated: MotorRange | None, motor: str
) -> tuple[str, str] | None:
    """Text and remedy, or None."""
    if units == "degrees" and not jaw:
        if is_degrees(numbers):
            return None
        width = percent_width(numbers, jaw)
        if width is None:
            return None
        return f"{motor} are percent of a range of {width} ticks", "set units: percent"
    if not jaw and is_degrees(numbers):
        return f"{motor} are degrees", "set units: degrees"
    if calibrated is None:
        return None
    expected = calibrated.high - calibrated.low
    whole = WHOLE_PERCENT if jaw else 2 * WHOLE_PERCENT
    if on_grid(numbers if jaw else numbers + WHOLE_PERCENT, expected / whole):
        return None
    width = percent_width(numbers, jaw)
    if width is None:
        return None
    return (
        f"{motor} are percent of a range of {width} ticks, not of {expected} as in the calibration "
        "file",
        "give the calibration that was in use while recording: this one is of another arm, or the "
        "arm was calibrated since",
    )


def seen_units(states: Array, motors: Sequence[str]) -> str:
    """Unit of the recording in words, as its numbers show it; empty where they do not."""
    arm = [i for i in range(len(motors) - 1) if _enough(states[:, i])]
    if arm and all(is_degrees(states[:, i]) for i in arm):
        return "degrees"
    widths = {motors[i]: percent_width(states[:, i], False) for i in arm}
    if arm and all(widths.values()):
        return "percent of ranges of " + ", ".join(
            f"{width} ticks ({motor})" for motor, width in widths.items()
        )
    return ""
