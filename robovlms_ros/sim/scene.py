"""The simulated arm as a MuJoCo model: robosuite's Panda at its table, two cameras, and given
objects.

robosuite (1.5.2) supplies the robot, the gripper and the arena; nothing of it runs afterwards. The
visual meshes are thinned by vertex clustering: software rendering spends its time on vertices, and
at 96 x 96 pixels none is missed.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.types import Array

TABLE_HEIGHT = 0.8
TIMESTEP = 0.002
"""Seconds a tick: 500 Hz."""

BASE_POSITION = np.array((-0.56, 0.0, 0.912))
"""The robot's base in the world, whose axes it shares (m)."""
STATIC_CAMERA: dict[str, Any] = {"pos": (0.78, 0.0, 1.38), "target": (-0.06, 0.0, 0.885), "fovy": 36.0}
WRIST_CAMERA = "robot0_eye_in_hand"
_MESH_GRID = 0.012


def compile_model(objects: Sequence[Any], textures: Sequence[str] = ()) -> mujoco.MjModel:
    """Robot, table, cameras and these robosuite objects, made for fast software rendering.

    textures: names of robosuite's textures; each becomes a material `table_NAME` that the table may
    wear.
    """
    root = ElementTree.fromstring(_robosuite_xml(objects))
    _add_table_materials(root, textures)
    fine = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    _thin_visual_meshes(root, fine)
    _add_static_camera(root)
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    model.opt.timestep = TIMESTEP
    model.light_castshadow[:] = 0
    model.mat_reflectance[:] = 0
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    return model


def _robosuite_xml(objects: Sequence[Any]) -> str:
    from robosuite.models.arenas import TableArena
    from robosuite.models.bases import robot_base_factory
    from robosuite.models.grippers import gripper_factory
    from robosuite.models.robots import Panda
    from robosuite.models.tasks import ManipulationTask

    table = (0.8, 0.8, 0.05)
    robot = Panda()
    robot.add_base(robot_base_factory("RethinkMount", idn=0))
    robot.add_gripper(gripper_factory("PandaGripper"))
    robot.set_base_xpos(robot.base_xpos_offset["table"](table[0]))
    arena = TableArena(table_full_size=table, table_friction=(1.0, 5e-3, 1e-4), table_offset=(0, 0, TABLE_HEIGHT))
    arena.set_origin([0, 0, 0])
    return str(ManipulationTask(mujoco_arena=arena, mujoco_robots=[robot], mujoco_objects=list(objects)).get_xml())


def _thin_visual_meshes(root: ElementTree.Element, model: mujoco.MjModel) -> None:
    """Replace every mesh that only visual geoms use by a thinned copy written into the XML."""
    visual: set[int] = set()
    solid: set[int] = set()
    for geom in range(model.ngeom):
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            (visual if model.geom_group[geom] == 1 else solid).add(int(model.geom_dataid[geom]))
    for mesh_id in visual - solid:
        vertices, faces = _thinned(*_mesh(model, mesh_id))
        element = root.find(f"./asset/mesh[@name='{model.mesh(mesh_id).name}']")
        if element is None or len(faces) < 4:
            continue
        for attribute in ("file", "scale"):
            element.attrib.pop(attribute, None)
        element.set("vertex", " ".join(f"{x:.6g}" for x in vertices.ravel()))
        element.set("face", " ".join(map(str, faces.ravel())))
        element.set("inertia", "shell")


def _mesh(model: mujoco.MjModel, mesh_id: int) -> tuple[Array, NDArray[np.int64]]:
    """Vertices (V, 3) in the frame of the mesh's file and faces (F, 3)."""
    first = model.mesh_vertadr[mesh_id]
    count = model.mesh_vertnum[mesh_id]
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[mesh_id])
    vertices = model.mesh_vert[first : first + count] @ rotation.reshape(3, 3).T + model.mesh_pos[mesh_id]
    first = model.mesh_faceadr[mesh_id]
    count = model.mesh_facenum[mesh_id]
    return vertices.astype(np.float64), model.mesh_face[first : first + count].astype(np.int64)


def _thinned(vertices: Array, faces: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Vertex clustering: one vertex, the mean, per occupied cell of a grid; faces that collapse
    are dropped."""
    extent = float(np.ptp(vertices, axis=0).max())
    cells = np.floor((vertices - vertices.min(axis=0)) / min(_MESH_GRID, extent / 4)).astype(np.int64)
    _, cluster = np.unique(cells, axis=0, return_inverse=True)
    cluster = cluster.reshape(-1)
    count = np.bincount(cluster)
    means = np.stack([np.bincount(cluster, vertices[:, k]) / count for k in range(3)], axis=1)
    mapped = cluster[faces]
    whole = (mapped[:, 0] != mapped[:, 1]) & (mapped[:, 1] != mapped[:, 2]) & (mapped[:, 0] != mapped[:, 2])
    return means, np.unique(mapped[whole], axis=0)


def _add_table_materials(root: ElementTree.Element, textures: Sequence[str]) -> None:
    import robosuite

    assets = root.find("./asset")
    folder = Path(robosuite.__file__).parent / "models" / "assets" / "textures"
    assert assets is not None
    for name in textures:
        if assets.find(f"./material[@name='table_{name}']") is not None:
            continue
        file = str(folder / f"{name}.png")
        ElementTree.SubElement(assets, "texture", {"name": f"texture_{name}", "type": "cube", "file": file})
        ElementTree.SubElement(assets, "material", {"name": f"table_{name}", "texture": f"texture_{name}"})


def _add_static_camera(root: ElementTree.Element) -> None:
    position = np.array(STATIC_CAMERA["pos"])
    target = np.array(STATIC_CAMERA["target"])
    backward = (position - target) / np.linalg.norm(position - target)
    right = np.cross((0.0, 0.0, 1.0), backward)
    right /= np.linalg.norm(right)
    up = np.cross(backward, right)
    world = root.find("./worldbody")
    assert world is not None
    ElementTree.SubElement(world, "camera", {
        "name": "static", "mode": "fixed", "fovy": str(STATIC_CAMERA["fovy"]),
        "pos": " ".join(map(str, position)), "xyaxes": " ".join(map(str, (*right, *up))),
    })
