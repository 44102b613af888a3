"""The simulated arm at the tabletop of the tasks: `SimWorld` with other scenes, a judge and an expert of its own."""

from dataclasses import replace

import mujoco
import numpy as np
from numpy.typing import NDArray

from robovlms_ros.sim.task import FINGER_OPEN, TaskError
from robovlms_ros.sim.tasks import base, expert
from robovlms_ros.sim.tasks.domain_randomization import Painter, SceneAppearance
from robovlms_ros.sim.tasks.language import Goal, instructions, meaning
from robovlms_ros.sim.tasks.objects import PLATES, TableObject, TableTruth
from robovlms_ros.sim.tasks.scene import (
    REGION,
    Contents,
    Placement,
    Table,
    choose,
    load_model,
    place,
)
from robovlms_ros.sim.world import GRIP_SITE, SimWorld

Array = NDArray[np.float64]

ATTEMPTS = 200


class TaskWorld(SimWorld):
    """One arm at the tabletop.

    task: whose scenes to set up; `all` draws the task by the seed. looks: bounds of light, colours and cameras.
    obstacles: how many things without a name; None draws it as the task says. The other arguments are `SimWorld`'s.
    """

    def __init__(
        self,
        seed: int = 0,
        blank_cameras: bool = False,
        image_size: int = 96,
        interpolate_from_desired_state: bool = False,
        task: str = "all",
        looks: SceneAppearance | None = None,
        obstacles: int | None = None,
    ) -> None:
        self.looks, self.obstacles = looks or SceneAppearance(), obstacles
        self.set_task(task)
        super().__init__(seed, blank_cameras, image_size, interpolate_from_desired_state)

    def _load_model(self) -> mujoco.MjModel:
        return load_model()

    def _find_objects(self) -> None:
        self._table = Table(self._model)
        self._painter = Painter(self._model)
        self._contents = Contents({}, (), False)

    def reset(self, seed: int) -> None:
        """A new scene of the task. `sentence` is then the seed's own instruction; `scene_task` and `goals` say whose
        scene it is and what fits it."""
        self.seed = seed
        super().reset(seed)

    def _place_objects(self, rng: np.random.Generator) -> None:
        from robosuite.utils import RandomizationError

        name = self.task if self.task != "all" else str(rng.choice(list(base.TABLE_TASKS)))
        task = base.find_task(name)
        if self.obstacles is not None:
            task = replace(task, obstacles=(self.obstacles, self.obstacles))
        for _ in range(ATTEMPTS):
            self._contents = choose(task.shapes, task.plates, task.obstacles, rng)
            try:
                placements = place(self._contents, rng)
            except RandomizationError:
                continue
            self._table.put(self._data, placements)
            self.scene_task, self.goals = name, tuple(base.fitting(self.ground_truth()))
            if any(goal.task == name for goal in self.goals):
                break
        else:
            raise TaskError(f"task {name!r}: no scene found in {ATTEMPTS} draws; the region {REGION} is too crowded.")
        self.sentence = self.instruction(np.random.default_rng((self.seed, 3)))
        self._painter.paint(self.looks, rng)
        self._table.colour(self._contents, rng)

    def ground_truth(self) -> TableTruth:  # type: ignore[override]
        """Where everything is: for a judge or the scripted expert, never for a policy."""
        def read(name: str, slot: str) -> TableObject:
            position, yaw = self._table.pose(self._data, slot)
            return TableObject(name, position - self._base, yaw)

        plates = {name: self._table.plate(name) - self._base for name in PLATES} if self._contents.plates else {}
        opening = float(np.mean(np.abs(self._data.qpos[7:9]))) / FINGER_OPEN
        return TableTruth({name: read(name, slot) for name, slot in self._contents.things.items()}, plates, opening,
                          tuple(read("obstacle cube", slot) for slot in self._contents.obstacles),
                          self._data.site(GRIP_SITE).xpos - self._base)

    def put_thing(self, name: str, position: Array, yaw: float) -> None:
        """Put one of the scene's things at `position` (3,), m in the base frame, upright, turned by `yaw` (rad)."""
        self._table.move(self._data, self._contents.things[name], Placement(position + self._base, yaw))
        mujoco.mj_forward(self._model, self._data)

    def judge(self, instruction: str) -> base.TableJudge:
        """Who decides on an episode under this instruction. Raises TaskError for what is not in the scene."""
        self._require(meaning(instruction))
        return base.judge(instruction)

    def expert_chunk(self, instruction: str, pose: Array, opening: float) -> Array:
        goal = meaning(instruction)
        self._require(goal)
        return expert.expert_chunk(goal, self.ground_truth(), pose, opening)

    def set_task(self, task: str) -> None:
        """The task whose scenes are set up from the next reset on. Raises TaskError."""
        if task != "all":
            base.find_task(task)
        self.task = task

    def instruction(self, rng: np.random.Generator, unseen: bool | None = None) -> str:
        """One instruction of the scene's own task; unseen: of the sentences that training never uses (True), of those
        that it uses (False), or of all (None)."""
        own = [goal for goal in self.goals if goal.task == self.scene_task]
        goal = own[int(rng.integers(len(own)))]
        sentences = [s for kind in (False, True) if unseen in (None, kind) for s in instructions(goal, kind)]
        return sentences[int(rng.integers(len(sentences)))]

    def _require(self, goal: Goal) -> None:
        truth = self.ground_truth()
        present = {**truth.things, **truth.plates}
        missing = [name for name in (goal.thing, goal.place) if name and name not in present]
        if missing:
            raise TaskError(f"{' and '.join(missing)}: not in this scene, which has {', '.join(present)}.")
