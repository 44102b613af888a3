"""Objects on the table, and their ground truth. No simulator is imported."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from robovlms_ros.core.types import Array

FINGER_OPEN = 0.04
"""Position of each finger when open, in metres; 0 is closed."""
LIFTED = 0.04
"""An object counts as lifted when its centre is this far above its place on the table (m)."""

COLOURS = ("red", "green", "blue")
SHAPES = ("cube", "can", "ball")
PLATES = ("yellow plate", "purple plate")
THINGS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
"""Everything that can be named and moved; a scene holds some of it. Plates lie on the table and
cannot be moved."""

WIDTH = {"cube": 0.040, "can": 0.040, "ball": 0.044}
"""What the fingers close upon, in metres."""
HEIGHT = {"cube": 0.040, "can": 0.044, "ball": 0.044}
RADIUS = {"cube": 0.0283, "can": 0.020, "ball": 0.022}
"""Largest horizontal distance of a point of it from its axis (m)."""
PLATE_RADIUS = 0.05
PLATE_MARGIN = 0.01
TABLE_Z = -0.112
"""Height of the table's surface in the robot's base frame (m)."""

RELEASED = 0.08
"""A thing is released when the gripper is open wider than its width by this opening (0 to 1)."""


def shape_of(name: str) -> str:
    """`cube` of `red cube`."""
    return name.split()[-1]


@dataclass(frozen=True)
class TableObject:
    """A thing as it lies now. position (3,): its centre in the base frame (m); yaw: rad, about the
    vertical."""

    name: str
    position: Array
    yaw: float = 0.0

    @property
    def shape(self) -> str:
        return shape_of(self.name)

    @property
    def half_height(self) -> float:
        return HEIGHT[self.shape] / 2

    @property
    def radius(self) -> float:
        return RADIUS[self.shape]

    @property
    def height(self) -> float:
        """Height above its place on the table (m)."""
        return float(self.position[2]) - TABLE_Z - self.half_height

    @property
    def grip(self) -> float:
        """The gripper's opening (0 to 1) at which the fingers touch it on both sides."""
        return WIDTH[self.shape] / 2 / FINGER_OPEN


@dataclass(frozen=True)
class TableTruth:
    """Ground truth for the judge and the scripted expert alone. plates: name -> (3,) centre of the
    surface, base frame (m).
    obstacles: things without a name. opening: the gripper's. hand (3,): its grip in the base frame
        (m), where known."""

    things: dict[str, TableObject]
    plates: dict[str, Array]
    opening: float = 1.0
    obstacles: tuple[TableObject, ...] = ()
    hand: Array | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON form, the inverse of `from_json`."""
        def rows(things: Iterable[TableObject]) -> list[list[Any]]:
            return [[thing.name, *thing.position.tolist(), thing.yaw] for thing in things]

        return {"things": rows(self.things.values()), "obstacles": rows(self.obstacles), "opening": self.opening,
                "plates": {name: place.tolist() for name, place in self.plates.items()},
                "hand": None if self.hand is None else self.hand.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TableTruth":
        """Ground truth as a node published it."""
        things, obstacles = ([TableObject(name, np.array((x, y, z)), yaw) for name, x, y, z, yaw in data[key]]
                             for key in ("things", "obstacles"))
        plates = {name: np.array(place) for name, place in data["plates"].items()}
        hand = None if data.get("hand") is None else np.array(data["hand"])
        return cls({thing.name: thing for thing in things}, plates, float(data["opening"]), tuple(obstacles), hand)

    def lifted(self) -> tuple[str, ...]:
        """Names of what is lifted."""
        return tuple(name for name, thing in self.things.items() if thing.height > LIFTED)

    def others(self, *names: str) -> list[TableObject]:
        """Everything in the way but the named things."""
        return [thing for name, thing in self.things.items() if name not in names] + list(self.obstacles)

    def released(self, name: str) -> bool:
        return self.opening > self.things[name].grip + RELEASED

    def on_plate(self, name: str, plate: str) -> bool:
        """True if it lies within the plate, PLATE_MARGIN from its rim."""
        thing = self.things[name]
        apart = float(np.hypot(*(thing.position[:2] - self.plates[plate][:2])))
        return apart < PLATE_RADIUS - PLATE_MARGIN and thing.height < 0.01

    def stacked(self, upper: str, lower: str) -> bool:
        """True if one rests on the other."""
        a = self.things[upper]
        b = self.things[lower]
        apart = float(np.hypot(*(a.position[:2] - b.position[:2])))
        gap = float(a.position[2] - b.position[2]) - a.half_height - b.half_height
        return apart < 0.025 and abs(gap) < 0.008
