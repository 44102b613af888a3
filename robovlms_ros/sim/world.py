"""The simulated arm: a Panda, two cubes, two cameras, two trajectory controllers, stepped at 500 Hz.

What happens in here is a function of the seed and of the messages: the same ones at the same ticks give the same bits.
Time starts at `START_NS` (a stamp of 0 would mean "now" to a trajectory controller) and goes on through a reset.
The arm follows its controller by computed torque, limited to the motors' torques; the fingers by their position servo.
"""

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.trajectory_controller_model import TrajectoryController
from robovlms_ros.core.types import NANOSECONDS, RobotState, RoboVLMsError
from robovlms_ros.sim import scene
from robovlms_ros.sim.cameras import CameraRenderer
from robovlms_ros.sim.expert import expert_chunk
from robovlms_ros.sim.task import CUBES, FINGER_OPEN, LIFTED, Judge, LiftJudge, named_cube

Array = NDArray[np.float64]

ARM_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
FINGER_JOINT = "panda_finger_joint1"
GRIP_SITE = "gripper0_grip_site"
HOME = (0.0, 0.1316, 0.0, -2.5358, 0.0, 2.6673, 0.7859)
"""Arm at the start of an episode (rad): the hand points straight down, 24 cm above the table."""
HOME_NOISE = 0.02
"""Largest deviation of a joint from HOME at a reset (rad)."""

CAMERAS = {"static": "static", "wrist": scene.WRIST_CAMERA}

CUBE_REGION = ((-0.10, 0.10), (-0.16, 0.16))
"""Where cubes are placed: x and y ranges about the table's middle (m)."""
CUBE_DISTANCE = 0.10
"""Smallest distance between the centres of two placed cubes (m)."""

TICK_NS = round(scene.TIMESTEP * NANOSECONDS)
START_NS = NANOSECONDS
_STIFFNESS, _DAMPING = 50.0**2, 2 * 50.0
_TORQUE_LIMIT = np.array((80.0, 80.0, 80.0, 80.0, 80.0, 12.0, 12.0))
_ARM = slice(0, 7)


class WorldError(RoboVLMsError):
    """The simulated world is asked for something that it does not have."""


@dataclass(frozen=True)
class GroundTruth:
    """What only a judge or the scripted expert may see.

    cubes: name -> (3,) position of the centre in the robot's base frame (m).
    heights: name -> m above the cube's place on the table.
    """

    cubes: dict[str, Array]
    heights: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """As the simulated arm publishes it."""
        return {"heights": {f"{name} cube": height for name, height in self.heights.items()},
                "cubes": {f"{name} cube": place.tolist() for name, place in self.cubes.items()}}

    def lifted(self) -> tuple[str, ...]:
        """Names of the cubes that are lifted."""
        return tuple(name for name, height in self.heights.items() if height > LIFTED)


class SimWorld:
    """One arm at one table; the file's docstring says what is simulated.

    seed: of the first scene, as in `reset`.
    blank_cameras: every image is black.
    image_size: pixels, width and height.
    interpolate_from_desired_state: the arm controller's option; off is the controller's own default.
    """

    joints = ARM_JOINTS
    finger_joint = FINGER_JOINT

    def __init__(
        self,
        seed: int = 0,
        blank_cameras: bool = False,
        image_size: int = 96,
        interpolate_from_desired_state: bool = False,
    ) -> None:
        self.blank_cameras = blank_cameras
        self.image_size = image_size
        self.arm_controller = TrajectoryController(ARM_JOINTS, interpolate_from_desired_state)
        self.gripper_controller = TrajectoryController((FINGER_JOINT,))
        self.time_ns = START_NS
        self._model = self._load_model()
        self._data = mujoco.MjData(self._model)
        self._renderer: CameraRenderer | None = None
        self._base = self._model.body("robot0_base").pos.copy()
        self._find_objects()
        self._inertia_times = np.zeros(self._model.nv)
        self._wanted = np.zeros(self._model.nv)
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """A new scene: cubes placed and the arm put near HOME by the seed, controllers emptied. Time goes on."""
        rng = np.random.default_rng(seed)
        mujoco.mj_resetData(self._model, self._data)
        qpos = self._data.qpos
        qpos[_ARM] = np.array(HOME) + rng.uniform(-HOME_NOISE, HOME_NOISE, 7)
        qpos[7:9] = FINGER_OPEN, -FINGER_OPEN
        self._place_objects(rng)
        mujoco.mj_forward(self._model, self._data)
        self.arm_controller.reset()
        self.gripper_controller.reset()

    def _load_model(self) -> mujoco.MjModel:
        return scene.load_model()

    def _find_objects(self) -> None:
        self._cube_addresses = {name: int(self._model.joint(f"{name}_cube_joint0").qposadr[0]) for name in CUBES}
        self._rest = scene.TABLE_HEIGHT + scene.CUBE_SIZE / 2

    def _place_objects(self, rng: np.random.Generator) -> None:
        for address, pose in zip(self._cube_addresses.values(), place_cubes(rng), strict=True):
            self._data.qpos[address : address + 7] = pose

    def set_arm(self, positions: Array, opening: float = 1.0) -> None:
        """Put the resting arm at joint positions (7,) and its fingers at an opening (0 to 1), at once: for
        demonstrations that start elsewhere."""
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
        """Arm joints (7,) in the order of `joints`, rad and rad/s, and the gripper's opening, as measured now."""
        opening = float(np.mean(np.abs(self._data.qpos[7:9]))) / FINGER_OPEN
        return RobotState(
            self.time_ns, self._data.qpos[_ARM].copy(), self._data.qvel[_ARM].copy(),
            gripper=float(np.clip(opening, 0.0, 1.0)),
        )

    def render(self, camera: str) -> NDArray[np.uint8]:
        """The image (image_size, image_size, 3) uint8 RGB of `static` or `wrist` now. Raises WorldError for others."""
        if camera not in CAMERAS:
            raise WorldError(f"camera {camera!r}: the simulated arm has {', '.join(CAMERAS)}.")
        if self.blank_cameras:
            return np.zeros((self.image_size, self.image_size, 3), np.uint8)
        if self._renderer is None:
            self._renderer = CameraRenderer(self._model, self.image_size)
        return self._renderer.render(self._data, CAMERAS[camera])

    def judge(self, instruction: str) -> Judge:
        """Who decides on an episode under this instruction. Raises TaskError for words that the scene does not know."""
        return LiftJudge(instruction)

    def expert_chunk(self, instruction: str, pose: Array, opening: float) -> Array:
        """The scripted expert's steps (HORIZON, 7) from a hand's pose (4, 4) and opening, with the world as it is now.

        Raises TaskError for words that the scene does not know.
        """
        return expert_chunk(pose, opening, self.ground_truth().cubes[named_cube(instruction)])

    def ground_truth(self) -> GroundTruth:
        """Where the cubes are: for a judge or the scripted expert, never for a policy."""
        places = {name: self._data.qpos[a : a + 3].copy() for name, a in self._cube_addresses.items()}
        heights = {name: float(place[2] - self._rest) for name, place in places.items()}
        return GroundTruth({name: place - self._base for name, place in places.items()}, heights)

    def tool_pose(self) -> Array:
        """(4, 4) base_T_eef of the grip site as MuJoCo has it: for tests of the robot's own description."""
        site, pose = self._data.site(GRIP_SITE), np.eye(4)
        pose[:3, :3], pose[:3, 3] = site.xmat.reshape(3, 3), site.xpos - self._base
        return pose

    def put_cube(self, name: str, position: Array) -> None:
        """Put a cube's centre at `position` (3,), m in the base frame, at rest."""
        address = self._cube_addresses[name]
        self._data.qpos[address : address + 3] = position + self._base
        mujoco.mj_forward(self._model, self._data)

    def close(self) -> None:
        """Free the renderer's memory; the world can go on being used."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def place_cubes(rng: np.random.Generator) -> list[Array]:
    """One pose (7,) in the world frame (m, quaternion w x y z) per cube, at least CUBE_DISTANCE apart, turned at
    random about the vertical."""
    low, high = np.array(CUBE_REGION).T
    while True:
        places = rng.uniform(low, high, (len(CUBES), 2))
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(places) for b in places[:i]]
        if min(gaps) >= CUBE_DISTANCE:
            break
    turns = rng.uniform(-np.pi / 4, np.pi / 4, len(CUBES))
    height = scene.TABLE_HEIGHT + scene.CUBE_SIZE / 2
    return [
        np.array((x, y, height, np.cos(turn / 2), 0.0, 0.0, np.sin(turn / 2)))
        for (x, y), turn in zip(places, turns, strict=True)
    ]
