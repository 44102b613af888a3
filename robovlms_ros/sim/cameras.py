"""The simulated cameras: one software renderer for all of them, without multisampling, shadows or collision geometry.

MUJOCO_GL chooses the renderer; the package's default is `osmesa`, which needs no display.
"""

import mujoco
import numpy as np
from numpy.typing import NDArray

_SWITCHED_OFF = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_SKYBOX)
_VISUAL_GROUP = 1


class CameraRenderer:
    """Renders named cameras of one model at `size` x `size` pixels (about 5 ms an image at 96 under osmesa)."""

    def __init__(self, model: mujoco.MjModel, size: int) -> None:
        model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(size, model.vis.global_.offheight)
        self._renderer = mujoco.Renderer(model, size, size)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = 0
        self._options.geomgroup[_VISUAL_GROUP] = 1
        self._options.sitegroup[:] = 0
        for flag in _SWITCHED_OFF:
            self._renderer.scene.flags[flag] = 0

    def render(self, data: mujoco.MjData, camera: str) -> NDArray[np.uint8]:
        """One image (size, size, 3) uint8 RGB, the caller's own."""
        self._renderer.update_scene(data, camera, self._options)
        return self._renderer.render().copy()

    def close(self) -> None:
        self._renderer.close()
