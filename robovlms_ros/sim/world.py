"""The simulated arm: a Panda, its scene, two cameras, two trajectory controllers, stepped at 500
Hz.

One software renderer serves all cameras, without multisampling, shadows or collision geometry.
"""

from dataclasses import replace

import mujoco
import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.trajectory_controller_model import TrajectoryController
from robovlms_ros.core.types import NANOSECONDS, Array, RobotState, RoboVLMsError
from robovlms_ros.sim import scene
from robovlms_ros.sim.tasks import base
from robovlms_ros.sim.tasks.base import CUBES
from robovlms_ros.sim.tasks.domain_randomization import Painter, SceneAppearance
from robovlms_ros.sim.tasks.expert import CAREFUL, SIMPLE, ExpertPolicy
from robovlms_ros.sim.tasks.language import Goal, TaskError, meaning
from robovlms_ros.sim.tasks.objects import FINGER_OPEN, TableObject, TableTruth
from robovlms_ros.sim.tasks.scene import (
    ATTEMPTS,
    REGION,
    TABLETOP,
    TWO_CUBES,
    Contents,
    Placement,
    Table,
    TableLayout,
    load_model,
    place_cubes,
    place_objects,
)

_SWITCHED_OFF = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_SKYBOX)
_VISUAL_GROUP = 1


class CameraRenderer:
    """Renders named cameras of one model at `size` x `size` pixels (about 5 ms an image at 96 under
    osmesa)."""

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


ARM_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
FINGER_JOINT = "panda_finger_joint1"
GRIP_SITE = "gripper0_grip_site"
HOME = (0.0, 0.1316, 0.0, -2.5358, 0.0, 2.6673, 0.7859)
"""Arm at the start of an episode (rad): the hand points straight down, 24 cm above the table."""
HOME_NOISE = 0.02
"""Largest deviation of a joint from HOME at a reset (rad)."""

CAMERAS = {"static": "static", "wrist": scene.WRIST_CAMERA}

TICK_NS = round(scene.TIMESTEP * NANOSECONDS)
START_NS = NANOSECONDS
_STIFFNESS = 50.0**2
_DAMPING = 2 * 50.0
_TORQUE_LIMIT = np.array((80.0, 80.0, 80.0, 80.0, 80.0, 12.0, 12.0))
_ARM = slice(0, 7)


class WorldError(RoboVLMsError):
    """The simulated world does not have what is requested."""


class SimWorld:
    """One arm at one table; the file's docstring describes the simulation.

    seed: of the first scene, as in `reset`.
    blank_cameras: every image is black.
    image_size: pixels, width and height.
    task: whose scenes to set up; `all` draws one of the tabletop tasks by the seed.
    looks: bounds of light, colours and cameras. obstacles: how many objects without a name; None
    draws it by the task's rule. Both are of the tabletop tasks.
    """

    joints = ARM_JOINTS
    finger_joint = FINGER_JOINT

    def __init__(
        self,
        seed: int = 0,
        blank_cameras: bool = False,
        image_size: int = 96,
        task: str = CUBES,
        looks: SceneAppearance | None = None,
        obstacles: int | None = None,
    ) -> None:
        self.blank_cameras = blank_cameras
        self.image_size = image_size
        self.looks = looks or SceneAppearance()
        self.obstacles = obstacles
        self.arm_controller = TrajectoryController(ARM_JOINTS)
        self.gripper_controller = TrajectoryController((FINGER_JOINT,))
        self.time_ns = START_NS
        self._renderer: CameraRenderer | None = None
        self._layout: TableLayout | None = None
        self.set_task(task)
        self.reset(seed)

    def set_task(self, task: str) -> None:
        """The task whose scenes are set up from the next reset on. Raises TaskError.

        Between the cubes and the tabletop tasks another model is built; the scene is then empty
        until the reset.
        """
        if task != "all":
            base.find_task(task)
        self.task = task
        layout = TWO_CUBES if task == CUBES else TABLETOP
        if layout is self._layout:
            return
        self.close()
        self._layout = layout
        self._model = load_model(layout)
        self._data = mujoco.MjData(self._model)
        self._base = self._model.body("robot0_base").pos.copy()
        self._table = Table(self._model, layout)
        self._painter = Painter(self._model) if layout.textures else None
        self._contents = Contents({})
        self._inertia_times = np.zeros(self._model.nv)
        self._wanted = np.zeros(self._model.nv)

    def reset(self, seed: int) -> None:
        """A new scene: objects and arm placed by the seed, controllers emptied. Time goes on.

        `sentence` is then the seed's own instruction; `scene_task` is the scene's task and `goals`
        are the goals that fit it.
        """
        self.seed = seed
        rng = np.random.default_rng(seed)
        mujoco.mj_resetData(self._model, self._data)
        qpos = self._data.qpos
        qpos[_ARM] = np.array(HOME) + rng.uniform(-HOME_NOISE, HOME_NOISE, 7)
        qpos[7:9] = FINGER_OPEN, -FINGER_OPEN
        self._place_objects(rng)
        mujoco.mj_forward(self._model, self._data)
        self.arm_controller.reset()
        self.gripper_controller.reset()

    def _place_objects(self, rng: np.random.Generator) -> None:
        name = self.task if self.task != "all" else str(rng.choice(list(base.TABLE_TASKS)))
        task = base.find_task(name)
        if self.obstacles is not None:
            task = replace(task, obstacles=(self.obstacles, self.obstacles))
        for _ in range(ATTEMPTS):
            cubes = self._layout is TWO_CUBES
            found = (
                place_cubes(rng)
                if cubes
                else place_objects(task.shapes, task.plates, task.obstacles, rng)
            )
            if found is None:
                continue
            self._contents = found[0]
            self._table.put(self._data, found[1])
            self.scene_task = name
            self.goals = tuple(task.goals(self.ground_truth()))
            if task.own(self.goals):
                break
        else:
            raise TaskError(f"task {name!r}: no scene found in {ATTEMPTS} draws; the region {REGION} is too crowded.")
        self.sentence = self.instruction(np.random.default_rng((self.seed, 3)))
        if self._painter is not None:
            self._painter.paint(self.looks, rng)
            self._table.colour(self._contents, rng)

    def instruction(self, rng: np.random.Generator, unseen: bool | None = None) -> str:
        """One instruction of the scene's own task; unseen: of the sentences that training never
        uses (True), of those that it uses (False), or of all (None)."""
        task = base.find_task(self.scene_task)
        own = task.own(self.goals)
        sentences = task.sentences(own[int(rng.integers(len(own)))], unseen)
        return sentences[int(rng.integers(len(sentences)))]

    def set_arm(self, positions: Array, opening: float = 1.0) -> None:
        """Put the resting arm at joint positions (7,) and its fingers at an opening (0 to 1), at
        once: for demonstrations that start elsewhere."""
        self._data.qpos[_ARM] = positions
        self._data.qpos[7:9] = opening * FINGER_OPEN, -opening * FINGER_OPEN
        self._data.qvel[:9] = 0.0
        self.arm_controller.reset()
        self.gripper_controller.reset()
        mujoco.mj_forward(self._model, self._data)

    def step(self) -> None:
        """One tick of 2 ms: both controllers, the torques, the physics."""
        data = self._data
        position, velocity = self.arm_controller.update(self.time_ns, TICK_NS, data.qpos[_ARM], data.qvel[_ARM])
        self._wanted[_ARM] = _STIFFNESS * (position - data.qpos[_ARM]) + _DAMPING * (velocity - data.qvel[_ARM])
        mujoco.mj_mulM(self._model, data, self._inertia_times, self._wanted)
        torque = self._inertia_times[_ARM] + data.qfrc_bias[_ARM] - data.qfrc_passive[_ARM]
        data.ctrl[_ARM] = np.clip(torque, -_TORQUE_LIMIT, _TORQUE_LIMIT)
        finger, _ = self.gripper_controller.update(self.time_ns, TICK_NS, data.qpos[7:8], data.qvel[7:8])
        data.ctrl[7], data.ctrl[8] = finger[0], -finger[0]
        mujoco.mj_step(self._model, data)
        self.time_ns += TICK_NS

    def joint_state(self) -> RobotState:
        """Arm joints (7,) in the order of `joints`, rad and rad/s, and the gripper's opening, as
        measured now."""
        opening = float(np.mean(np.abs(self._data.qpos[7:9]))) / FINGER_OPEN
        return RobotState(
            self.time_ns, self._data.qpos[_ARM].copy(), self._data.qvel[_ARM].copy(),
            gripper=float(np.clip(opening, 0.0, 1.0)),
        )

    def render(self, camera: str) -> NDArray[np.uint8]:
        """The image (image_size, image_size, 3) uint8 RGB of `static` or `wrist` now. Raises
        WorldError for others."""
        if camera not in CAMERAS:
            raise WorldError(f"camera {camera!r}: the simulated arm has {', '.join(CAMERAS)}.")
        if self.blank_cameras:
            return np.zeros((self.image_size, self.image_size, 3), np.uint8)
        if self._renderer is None:
            self._renderer = CameraRenderer(self._model, self.image_size)
        return self._renderer.render(self._data, CAMERAS[camera])

    def judge(self, instruction: str) -> base.TableJudge:
        """The judge of an episode under this instruction. Raises TaskError for objects that are
        not in the scene."""
        self._require(meaning(instruction))
        return base.judge(instruction)

    def expert(self, goal: Goal, pose: Array, opening: float) -> ExpertPolicy:
        """The scripted expert of a goal, from a hand's pose (4, 4) and opening, with the world as
        it is now.

        Raises TaskError for objects that are not in the scene.
        """
        self._require(goal)
        return expert_of(self.scene_task, goal, self.ground_truth(), pose, opening)

    def ground_truth(self) -> TableTruth:
        """The objects' places: for a judge or the scripted expert, never for a policy."""
        def read(name: str, slot: str) -> TableObject:
            position, yaw = self._table.pose(self._data, slot)
            return TableObject(name, position - self._base, yaw)

        assert self._layout is not None
        names = self._layout.plates if self._contents.plates else ()
        plates = {name: self._table.plate(name) - self._base for name in names}
        opening = float(np.mean(np.abs(self._data.qpos[7:9]))) / FINGER_OPEN
        return TableTruth({name: read(name, slot) for name, slot in self._contents.things.items()}, plates, opening,
                          tuple(read("obstacle cube", slot) for slot in self._contents.obstacles),
                          self._data.site(GRIP_SITE).xpos - self._base)

    def _require(self, goal: Goal) -> None:
        truth = self.ground_truth()
        present = {**truth.things, **truth.plates}
        missing = [name for name in (goal.thing, goal.place) if name and name not in present]
        if missing:
            raise TaskError(f"{' and '.join(missing)}: not in this scene, which has {', '.join(present)}.")

    def tool_pose(self) -> Array:
        """(4, 4) base_T_eef of the grip site as MuJoCo has it: for tests of the robot's own
        description."""
        site = self._data.site(GRIP_SITE)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = site.xmat.reshape(3, 3), site.xpos - self._base
        return pose

    def put_thing(self, name: str, position: Array, yaw: float = 0.0) -> None:
        """Put one of the scene's things at `position` (3,), m in the base frame, upright, turned
        by `yaw` (rad)."""
        self._table.move(self._data, self._contents.things[name], Placement(position + self._base, yaw))
        mujoco.mj_forward(self._model, self._data)

    def close(self) -> None:
        """Free the renderer's memory; the world can go on being used."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def expert_of(
    task: str, goal: Goal, truth: TableTruth, pose: Array, opening: float
) -> ExpertPolicy:
    """The scripted expert in the style of a scene's task."""
    return ExpertPolicy(goal, truth, pose, opening, SIMPLE if task == CUBES else CAREFUL)
