"""A post beside the simulated arm, and the contacts of both: the judge of collision checks."""

import copy
from collections import Counter
from dataclasses import replace

import mujoco
import numpy as np

from robovlms_ros.control.collision_config import WorldBody
from robovlms_ros.control.executor import Decision
from robovlms_ros.control.robot import RobotSpec, load_robot
from robovlms_ros.control.trajectory import Array
from robovlms_ros.core.types import ActionChunk
from robovlms_ros.sim.rollout import EpisodeSettings, ExpertSession, build_loop
from robovlms_ros.sim.tasks.base import TABLE_TASKS
from robovlms_ros.sim.tasks.evaluate import TIME_LIMIT
from robovlms_ros.sim.world import START_NS, SimWorld

POST_RADIUS = 0.03
POST_HEIGHT = 0.5
POST = (0.5, 0.22)
"""x and y of the post on the table, m in the base frame."""
OUT_OF_REACH = (5.0, 5.0, 1.0)
FREE_POSITIONS = slice(9, None)
FREE_VELOCITIES = slice(9, None)
"""Of post and cube, behind the arm's joints and the fingers'."""
FINGERS = ("panda_leftfinger", "panda_rightfinger")
COLLISION_TEXT = "would come within"


class PostWorld(SimWorld):
    """The simulated arm with a post in the place of the red cube, and the green one out of
    reach."""

    def set_task(self, task: str) -> None:
        """As SimWorld.set_task; the red cube's solid becomes the post."""
        super().set_task(task)
        self._model = model = copy.deepcopy(self._model)
        post = model.geom("red_cube_g0").id
        model.geom_type[post] = mujoco.mjtGeom.mjGEOM_CYLINDER
        model.geom_size[post] = (POST_RADIUS, 0.5 * POST_HEIGHT, 0.0)
        model.geom_rbound[post] = np.hypot(POST_RADIUS, 0.5 * POST_HEIGHT)
        model.geom_aabb[post] = (0.0, 0.0, 0.0, POST_RADIUS, POST_RADIUS, 0.5 * POST_HEIGHT)
        self._data = mujoco.MjData(model)

    def _place_objects(self, rng: np.random.Generator) -> None:
        table = self._model.geom("table_collision")
        top = float(self._model.body("table").pos[2] + table.size[2])
        height = top + 0.5 * POST_HEIGHT + 0.001
        unturned = (1.0, 0.0, 0.0, 0.0)
        post = (*(self._base[:2] + POST), height, *unturned)
        self._places = np.array([*post, *OUT_OF_REACH, *unturned])
        self._data.qpos[FREE_POSITIONS] = self._places

    def step(self) -> None:
        """One tick; post and cube stay where they are."""
        super().step()
        self._data.qpos[FREE_POSITIONS] = self._places
        self._data.qvel[FREE_VELOCITIES] = 0.0

    def contacts(self) -> set[tuple[str, str]]:
        """Pairs of bodies in contact of which the arm is one; the fingers' own does not count."""
        model = self._model
        found = set()
        for contact in self._data.contact:
            if contact.dist > 0.0:
                continue
            geoms = (contact.geom1, contact.geom2)
            names = sorted(model.body(model.geom_bodyid[geom]).name for geom in geoms)
            if not any(name.startswith(("robot0_", "gripper0_")) for name in names):
                continue
            if all("finger" in name for name in names):
                continue
            found.add((names[0], names[1]))
        return found

    def contacts_at(self, positions: Array) -> set[tuple[str, str]]:
        """`contacts` at arm positions (7,), by kinematics alone."""
        self._data.qpos[:7] = positions
        mujoco.mj_forward(self._model, self._data)
        return self.contacts()

    def kind_of(self, contacts: set[tuple[str, str]]) -> str:
        """The body in contact: table, post, itself, or empty for another one."""
        names = {name for pair in contacts for name in pair}
        if "red_cube_main" in names:
            return "post"
        if "table" in names:
            return "table"
        arm = all(name.startswith(("robot0_", "gripper0_")) for name in names)
        return "itself" if arm and names else ""

    def robot(self, fingers_may_touch: bool) -> RobotSpec:
        """The Panda in the simulator with the post; every contact is forbidden, or but the
        fingers'."""
        robot = load_robot("panda")
        touch = FINGERS if fingers_may_touch else ()
        world = tuple(replace(body, may_touch=touch) for body in robot.world)
        table = next(body for body in world if body.name == "table")
        top = table.position[2] + 0.5 * table.size[2]
        post = WorldBody(
            "post", "cylinder", (POST_RADIUS, POST_HEIGHT), (*POST, top + 0.5 * POST_HEIGHT)
        )
        limits = replace(robot.limits, workspace=None)
        gate = replace(robot.gate, speed_scaling_ramp=0.0)
        return replace(robot, world=(*world, post), limits=limits, gate=gate)


def count_expert(seeds: int) -> tuple[Counter[str], int, int]:
    """Verdicts on the expert's chunks, episodes that succeeded, and episodes.

    `collision` counts the chunks that the check cut or refused; their contacts are none.
    """
    counts: Counter[str] = Counter()

    def count(chunk: ActionChunk, decision: Decision) -> None:
        counts[decision.verdict.kind] += 1
        if COLLISION_TEXT in decision.verdict.reason:
            counts["collision"] += 1

    succeeded = 0
    episodes = 0
    for task in TABLE_TASKS:
        # The expert looks at no image.
        world = SimWorld(0, blank_cameras=True, task=task)
        loop = build_loop(world, settings=EpisodeSettings(limit=TIME_LIMIT))
        loop.on_decision = count
        for seed in range(seeds):
            world.reset(seed)
            world.time_ns = START_NS
            rng = np.random.default_rng((seed, 2))
            outcome = loop.run(ExpertSession(world), [(0.0, world.sentence)], rng)
            episodes += 1
            succeeded += outcome.success
        world.close()
    return counts, succeeded, episodes
