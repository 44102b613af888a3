"""The contents of a table as one MuJoCo model, and their places.

A layout's model holds every slot that its scenes may need; slots that a scene leaves out hang far
above the table, held by damping. The two cubes are drawn here, the tabletop's objects are placed by
robosuite's samplers.
"""

from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mujoco
import numpy as np

from robovlms_ros.core.types import Array
from robovlms_ros.sim import scene
from robovlms_ros.sim.tasks.domain_randomization import TEXTURES
from robovlms_ros.sim.tasks.objects import COLOURS, HEIGHT, PLATE_RADIUS, PLATES, WIDTH

REGION = ((-0.12, 0.12), (-0.19, 0.19))
"""Where things and plates lie: x and y ranges about the table's middle (m)."""
CLOSE = 0.075
"""A close neighbour lies within this distance in x and in y (m)."""
CUBE_REGION = ((-0.10, 0.10), (-0.16, 0.16))
"""Where the two cubes are placed, as REGION."""
CUBE_DISTANCE = 0.10
"""Smallest distance between the centres of the two cubes (m)."""
ATTEMPTS = 200
OBSTACLE_SIZE = (0.018, 0.018, 0.018)
OBSTACLE_COLOURS = ((0.85, 0.75, 0.1, 1.0), (0.25, 0.25, 0.28, 1.0), (0.5, 0.3, 0.15, 1.0), (0.1, 0.7, 0.7, 1.0))
RGBA = {"red": (0.85, 0.08, 0.08, 1.0), "green": (0.08, 0.65, 0.12, 1.0), "blue": (0.1, 0.2, 0.85, 1.0),
        "yellow plate": (0.9, 0.8, 0.15, 1.0), "purple plate": (0.5, 0.15, 0.6, 1.0)}
PARKED_DAMPING = 1e3


@dataclass(frozen=True)
class TableLayout:
    """The slots of a model. shapes: shape -> slots; obstacles: slots without a name; plates:
    names; textures: of the table."""

    shapes: tuple[tuple[str, tuple[str, ...]], ...]
    obstacles: tuple[str, ...] = ()
    plates: tuple[str, ...] = ()
    textures: tuple[str, ...] = ()

    @property
    def slots(self) -> tuple[str, ...]:
        """Everything that can move."""
        return (*(slot for _, slots in self.shapes for slot in slots), *self.obstacles)


TWO_CUBES = TableLayout((("cube", ("red_cube", "green_cube")),))
TABLETOP = TableLayout(
    (
        ("cube", tuple(f"{colour}_cube" for colour in COLOURS)),
        ("can", ("can_0", "can_1")),
        ("ball", ("ball_0",)),
    ),
    ("post_0", "post_1"),
    PLATES,
    TEXTURES,
)


@dataclass(frozen=True)
class Placement:
    """Placement of one slot: position (3,) in the world frame (m), yaw (rad)."""

    position: Array
    yaw: float


@lru_cache(maxsize=2)
def _built(layout: TableLayout) -> tuple[mujoco.MjModel, dict[str, Any]]:
    """The compiled model (about 3 s), and slot -> robosuite's object."""
    from robosuite.models.objects import BallObject, BoxObject, CylinderObject

    white = (1.0, 1.0, 1.0, 1.0)
    objects: dict[str, Any] = {}
    for shape, slots in layout.shapes:
        for slot in slots:
            if shape == "cube":
                colour = RGBA[slot.partition("_")[0]]
                objects[slot] = BoxObject(
                    name=slot, size=[WIDTH["cube"] / 2] * 3, rgba=colour, density=1000
                )
            elif shape == "can":
                size = [WIDTH["can"] / 2, HEIGHT["can"] / 2]
                objects[slot] = CylinderObject(name=slot, size=size, rgba=white, density=1000)
            else:
                objects[slot] = BallObject(
                    name=slot, size=[WIDTH["ball"] / 2], rgba=white, density=1000
                )
    for slot in layout.obstacles:
        objects[slot] = BoxObject(name=slot, size=OBSTACLE_SIZE, rgba=white, density=1000)
    for name in layout.plates:
        slot = name.replace(" ", "_")
        objects[slot] = CylinderObject(name=slot, size=[PLATE_RADIUS, 0.001], rgba=RGBA[name], joints=None,
                                       obj_type="visual")
    model = scene.compile_model(list(objects.values()), layout.textures)
    for slot in dict(layout.shapes).get("ball", ()):  # a ball on a table comes to rest
        for geom in _geoms(model, slot):
            model.geom_condim[geom] = 6
            model.geom_friction[geom, 2] = 0.002
    return model, objects


def _geoms(model: mujoco.MjModel, slot: str) -> list[int]:
    body = model.body(f"{slot}_main").id
    return [geom for geom in range(model.ngeom) if model.geom_bodyid[geom] == body]


def load_model(layout: TableLayout) -> mujoco.MjModel:
    """A copy of the layout's model, whose appearance may be changed."""
    return copy(_built(layout)[0])


@dataclass(frozen=True)
class Contents:
    """The contents of a scene. things: name -> slot. obstacles: slots. plates: they are there."""

    things: dict[str, str]
    obstacles: tuple[str, ...] = ()
    plates: bool = False


def place_cubes(rng: np.random.Generator) -> tuple[Contents, dict[str, Placement]]:
    """The two cubes, at least CUBE_DISTANCE apart, turned at random about the vertical."""
    low, high = np.array(CUBE_REGION).T
    slots = TWO_CUBES.slots
    while True:
        places = rng.uniform(low, high, (len(slots), 2))
        if np.linalg.norm(places[0] - places[1]) >= CUBE_DISTANCE:
            break
    turns = rng.uniform(-np.pi / 4, np.pi / 4, len(slots))
    height = scene.TABLE_HEIGHT + HEIGHT["cube"] / 2
    placements = {
        slot: Placement(np.array((x, y, height)), float(turn))
        for slot, (x, y), turn in zip(slots, places, turns, strict=True)
    }
    return Contents({slot.replace("_", " "): slot for slot in slots}), placements


def place_objects(
    shapes: dict[str, tuple[int, int]],
    plates: float,
    obstacles: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[Contents, dict[str, Placement]] | None:
    """Contents of the tabletop as `choose` draws them, and their places; None when they do not
    fit."""
    from robosuite.utils import RandomizationError

    contents = choose(shapes, plates, obstacles, rng)
    try:
        return contents, place(contents, rng)
    except RandomizationError:
        return None


def choose(shapes: dict[str, tuple[int, int]], plates: float, obstacles: tuple[int, int],
           rng: np.random.Generator) -> Contents:
    """Draw a scene's contents: per shape the least and the most that there may be of it, the
    chance of plates, and the least and the most obstacles."""
    things = {}
    for shape, (least, most) in shapes.items():
        colours = rng.permutation(COLOURS)[: int(rng.integers(least, most + 1))]
        for i, colour in enumerate(colours):
            slot = f"{colour}_cube" if shape == "cube" else dict(TABLETOP.shapes)[shape][i]
            things[f"{colour} {shape}"] = slot
    posts = TABLETOP.obstacles[: int(rng.integers(obstacles[0], obstacles[1] + 1))]
    return Contents(things, posts, bool(rng.uniform() < plates))


def place(contents: Contents, rng: np.random.Generator) -> dict[str, Placement]:
    """Slot -> where it goes, by robosuite's samplers; now and then one thing close beside another.

    Raises robosuite's RandomizationError when they do not fit.
    """
    from robosuite.utils.placement_samplers import UniformRandomSampler

    objects = _built(TABLETOP)[1]
    (x_low, x_high), (y_low, y_high) = REGION
    placed: dict[str, Any] = {}

    def sample(slot: str, reference: Any = (0.0, 0.0, scene.TABLE_HEIGHT), near: bool = False) -> None:
        nonlocal placed
        reach = (-CLOSE, CLOSE)
        sampler = UniformRandomSampler(
            name="sampler", mujoco_objects=objects[slot], x_range=reach if near else (x_low, x_high),
            y_range=reach if near else (y_low, y_high), rotation=(-np.pi / 4, np.pi / 4),
            ensure_object_boundary_in_range=not near, rng=rng,
        )
        placed = sampler.sample(fixtures=placed, reference=reference)

    if contents.plates:
        for name in PLATES:
            sample(name.replace(" ", "_"))
    slots = [*rng.permutation(list(contents.things.values())), *contents.obstacles]
    for i, slot in enumerate(slots):
        if i and rng.uniform() < 0.4:
            x, y, _ = placed[slots[int(rng.integers(i))]][0]
            x = np.clip(x, x_low + 0.03, x_high - 0.03)
            y = np.clip(y, y_low + 0.03, y_high - 0.03)
            sample(slot, (float(x), float(y), scene.TABLE_HEIGHT), near=True)
        else:
            sample(slot)
    return {slot: Placement(np.array(position), 2 * float(np.arctan2(quaternion[3], quaternion[0])))
            for slot, (position, quaternion, _) in placed.items()}


class Table:
    """Puts placements into a model's state, and reads them back. model: of a layout, changed by
    some of the methods."""

    def __init__(self, model: mujoco.MjModel, layout: TableLayout) -> None:
        self._model = model
        self.free = layout.slots
        self._addresses = {slot: int(model.joint(f"{slot}_joint0").qposadr[0]) for slot in self.free}
        self._dofs = {slot: int(model.joint(f"{slot}_joint0").dofadr[0]) for slot in self.free}
        self._damping = model.dof_damping.copy()
        self._plates = {
            name: model.body(f"{name.replace(' ', '_')}_main").id for name in layout.plates
        }

    def put(self, data: mujoco.MjData, placements: dict[str, Placement]) -> None:
        """Everything where it belongs; slots without a placement are parked."""
        model = self._model
        for i, slot in enumerate(self.free):
            dof = self._dofs[slot]
            self.move(data, slot, placements.get(slot, Placement(np.array((0.0, 0.0, 10.0 + i)), 0.0)))
            model.dof_damping[dof : dof + 6] = (
                self._damping[dof : dof + 6] if slot in placements else PARKED_DAMPING
            )
        for name, body in self._plates.items():
            parked = Placement(np.array((0.0, 0.0, -1.0)), 0.0)
            model.body_pos[body] = placements.get(name.replace(" ", "_"), parked).position

    def move(self, data: mujoco.MjData, slot: str, placement: Placement) -> None:
        """One free slot, at rest."""
        at = self._addresses[slot]
        dof = self._dofs[slot]
        data.qpos[at : at + 3] = placement.position
        data.qpos[at + 3 : at + 7] = np.cos(placement.yaw / 2), 0.0, 0.0, np.sin(placement.yaw / 2)
        data.qvel[dof : dof + 6] = 0.0

    def colour(self, contents: Contents, rng: np.random.Generator) -> None:
        """Give cans, balls and obstacles the colours of this scene."""
        for name, slot in contents.things.items():
            self._model.geom_rgba[_geoms(self._model, slot)] = RGBA[name.split()[0]]
        for slot in contents.obstacles:
            self._model.geom_rgba[_geoms(self._model, slot)] = OBSTACLE_COLOURS[rng.integers(len(OBSTACLE_COLOURS))]

    def pose(self, data: mujoco.MjData, slot: str) -> tuple[Array, float]:
        """World position (3,) and yaw (rad) of a free slot now."""
        at = self._addresses[slot]
        w, x, y, z = data.qpos[at + 3 : at + 7]
        return data.qpos[at : at + 3].copy(), float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))

    def plate(self, name: str) -> Array:
        """World position (3,) of a plate."""
        return self._model.body_pos[self._plates[name]].copy()
