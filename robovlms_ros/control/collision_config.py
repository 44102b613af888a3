"""Collision settings of a robot's YAML: the blocks `collision` and `world`."""

import math
from dataclasses import dataclass
from typing import Literal

from robovlms_ros.core.schema import require

CollisionScope = Literal["auto", "none", "self", "all"]
MeshShape = Literal["hull", "box", "capsule"]

SMALLEST_MARGIN = 0.005
"""m: half of the largest motion between two checked configurations."""

BODY_SIZES = {
    "box": "the three edges",
    "cylinder": "radius and length",
    "sphere": "the radius",
    "half_space": "nothing",
}
"""Type of a world body -> the meaning of its `size`."""
_SIZE_COUNTS = {"box": 3, "cylinder": 2, "sphere": 1, "half_space": 0}


@dataclass(frozen=True)
class WorldBody:
    """A body of the robot's surroundings.

    size: m; `BODY_SIZES` lists the numbers. A cylinder's axis is z. A half-space is solid below
        z = 0.
    position, rpy: m and rad (fixed axes x, y, z), pose of the body in `frame`.
    frame: a link of the description, None is base_frame. A body of a moving link moves with it.
    margin: m, distance that the robot keeps; None is collision.margin.
    may_touch: links that may come into contact, by at most collision.touch_depth.
    """

    name: str
    type: Literal["box", "cylinder", "sphere", "half_space"]
    size: tuple[float, ...] = ()
    position: tuple[float, ...] = (0.0, 0.0, 0.0)
    rpy: tuple[float, ...] = (0.0, 0.0, 0.0)
    frame: str | None = None
    margin: float | None = None
    may_touch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.name), "world: name", self.name, "a name")
        where = f"world body '{self.name}'"
        count = _SIZE_COUNTS[self.type]
        sizes = all(math.isfinite(value) and value > 0 for value in self.size)
        allowed = f"{count} numbers above 0, m: {BODY_SIZES[self.type]} of a {self.type}"
        require(len(self.size) == count and sizes, f"{where}: size", self.size, allowed)
        for name in ("position", "rpy"):
            values = getattr(self, name)
            finite = len(values) == 3 and all(map(math.isfinite, values))
            require(finite, f"{where}: {name}", values, "3 finite numbers")
        if self.margin is not None:
            _check_margin(f"{where}: margin", self.margin)


@dataclass(frozen=True)
class CollisionConfig:
    """The gate's collision check.

    check: `self` checks the robot against itself, `all` against the world too; `auto` is `all` for
        a YAML with a `world` block and `none` for one without.
    margin: m, distance that is kept from world bodies. self_margin: m, between two links.
    touch_depth: m, largest overlap of a body and a link that may touch it.
    meshes: the shape that takes the place of a collision mesh.
    srdf: file with `disable_collisions`, relative to the YAML.
    ignore: pairs of links, or of a link and a world body, that are not checked.
    """

    check: CollisionScope = "auto"
    margin: float = 0.01
    self_margin: float = 0.005
    touch_depth: float = 0.005
    meshes: MeshShape = "hull"
    srdf: str | None = None
    ignore: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        _check_margin("collision.margin", self.margin)
        _check_margin("collision.self_margin", self.self_margin)
        depth = self.touch_depth
        allowed = "from 0 to 0.1 m"
        require(0 <= depth <= 0.1, "collision.touch_depth", depth, allowed)
        for i, pair in enumerate(self.ignore):
            require(len(pair) == 2, f"collision.ignore[{i}]", pair, "two names")


def _check_margin(where: str, margin: float) -> None:
    allowed = f"from {SMALLEST_MARGIN} to 1 m"
    require(SMALLEST_MARGIN <= margin <= 1, where, margin, allowed)
