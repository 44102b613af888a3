"""Appearance of the scene: light, colours, the table's texture and where the cameras are, drawn
within bounds."""

from dataclasses import dataclass

import mujoco
import numpy as np

from robovlms_ros.core.types import Array
from robovlms_ros.sim.scene import WRIST_CAMERA

TEXTURES = ("ceramic", "light-wood", "cream-plaster", "gray-felt")


@dataclass(frozen=True)
class SceneAppearance:
    """Bounds. light: part by which the lamps' brightness may differ; lamp: m by which the lamp may
    stand elsewhere;
    colour: part by which each channel of a colour may; textures: how many of TEXTURES the table may
        have. camera_shift
    (m) and camera_turn (rad): how far a camera may be off, each axis. exact: every draw lies on its
    bound.
    """

    light: float = 0.3
    lamp: float = 0.5
    colour: float = 0.12
    textures: int = 3
    camera_shift: float = 0.01
    camera_turn: float = 0.026
    exact: bool = False


PLAIN = SceneAppearance(0.0, 0.0, 0.0, 1, 0.0, 0.0)


class Painter:
    """Changes one model's looks; every change starts from the model as it was given."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._table = model.geom("table_visual").id
        self._cameras = [model.camera(name).id for name in ("static", WRIST_CAMERA)]
        self._as_built = {
            name: getattr(model, name).copy()
            for name in ("light_pos", "light_diffuse", "geom_rgba", "geom_matid", "cam_pos", "cam_quat")
        }
        self._head_light = model.vis.headlight.diffuse.copy()
        self._textures = [model.material(f"table_{name}").id for name in TEXTURES]

    def paint(self, looks: SceneAppearance, rng: np.random.Generator) -> None:
        """Draw one look within the bounds."""
        model = self._model
        for name, value in self._as_built.items():
            getattr(model, name)[:] = value

        def draw(bound: float, *shape: int) -> Array:
            values = rng.uniform(-1.0, 1.0, shape)
            return bound * (np.sign(values) if looks.exact else values)

        brightness = 1 + draw(looks.light, 1)
        model.light_diffuse[:] *= brightness * (1 + draw(looks.light / 4, 3))
        model.vis.headlight.diffuse[:] = self._head_light * brightness
        model.light_pos[:, :2] += draw(looks.lamp, 2)
        tints = 1 + draw(looks.colour, model.ngeom, 3)
        model.geom_rgba[:, :3] = np.clip(model.geom_rgba[:, :3] * tints, 0.0, 1.0)
        model.geom_matid[self._table] = self._textures[rng.integers(max(looks.textures, 1))]
        model.geom_rgba[self._table, :3] = np.clip(0.9 + draw(looks.colour, 3), 0.0, 1.0)
        for camera in self._cameras:
            # a wrist camera is screwed to the hand
            part = 1.0 if model.camera(camera).name == "static" else 0.3
            model.cam_pos[camera] += part * draw(looks.camera_shift, 3)
            turn = np.empty(4)
            vector = part * draw(looks.camera_turn, 3)
            angle = float(np.linalg.norm(vector))
            mujoco.mju_axisAngle2Quat(turn, vector / max(angle, 1e-12), angle)
            result = np.empty(4)
            mujoco.mju_mulQuat(result, model.cam_quat[camera], turn)
            model.cam_quat[camera] = result
