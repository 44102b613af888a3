"""The tasks, each a small class: the contents of its scenes, the goals that fit a scene, the judge.

`cubes` is the easiest: two cubes and two sentences. The tabletop tasks have more objects, plates
and obstacles; a scene of theirs may be asked for every goal that fits it, also those of other
tasks. The instructions are in `language`, the law of the expert in `expert`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robovlms_ros.sim.tasks import grasps
from robovlms_ros.sim.tasks.failures import FailureClassifier
from robovlms_ros.sim.tasks.language import (
    INSTRUCTIONS,
    Goal,
    TaskError,
    goals,
    instructions,
    meaning,
)
from robovlms_ros.sim.tasks.objects import LIFTED, TableTruth

EVALUATION_SEEDS = range(0, 10_000)
TRAINING_SEEDS = range(1_000_000, 2_000_000)
"""Scenes that a policy is trained in; no demo or evaluation uses one of them."""
CUBES = "cubes"
"""The task that a run has when it names none."""

STEADY_FRAMES = 4
"""Frames in a row (50 ms each) that a thing must be where it belongs, let go."""
LEFT_FRAMES = 20
"""Frames that a thing must lie still on a wrong plate: a push may cross it, and take hold again
there."""
STEEPEST_PUSH = math.radians(65)
"""Largest turn of the hand for a push."""
CORRIDOR = 0.03
"""What a push needs free on both sides of the line that it takes (m)."""


@dataclass(frozen=True)
class Task:
    """The contents of a task's scenes. shapes: per shape the least and the most; plates: chance
    that they are there; obstacles: the least and the most things without a name."""

    name: str
    shapes: dict[str, tuple[int, int]]
    plates: float
    obstacles: tuple[int, int] = (0, 1)

    def goals(self, truth: TableTruth) -> list[Goal]:
        """Every goal that a scene may be asked for."""
        return fitting(truth)

    def own(self, fitting_goals: Sequence[Goal]) -> list[Goal]:
        """Those of a scene's goals that are this task's."""
        return [goal for goal in fitting_goals if goal.task == self.name]

    def sentences(self, goal: Goal, unseen: bool | None) -> list[str]:
        """The instructions for a goal; unseen: of those that training never uses (True), uses
        (False), or all."""
        return [
            s for kind in (False, True) if unseen in (None, kind) for s in instructions(goal, kind)
        ]

    def fits(self, goal: Goal, truth: TableTruth) -> bool:
        """Whether the goal can be asked for in this scene: all there, reachable, and room for
        the fingers."""
        if goal.thing not in truth.things or (goal.place and goal.place not in {**truth.things, **truth.plates}):
            return False
        return self._has_room(goal, truth)

    def _has_room(self, goal: Goal, truth: TableTruth) -> bool:
        return grasps.has_room(truth.things[goal.thing], truth.others(goal.thing))

    def judge(self, goal: Goal) -> "TableJudge":
        """Who decides on one episode."""
        return TableJudge(goal)


class Cubes(Task):
    """Two cubes, each asked for by one sentence."""

    def goals(self, truth: TableTruth) -> list[Goal]:
        return list(INSTRUCTIONS.values())

    def own(self, fitting_goals: Sequence[Goal]) -> list[Goal]:
        return list(fitting_goals)

    def sentences(self, goal: Goal, unseen: bool | None) -> list[str]:
        return (
            []
            if unseen
            else [sentence for sentence, asked in INSTRUCTIONS.items() if asked == goal]
        )


class Put(Task):
    def _has_room(self, goal: Goal, truth: TableTruth) -> bool:
        thing, place = truth.things[goal.thing], truth.plates[goal.place][:2]
        others = truth.others(goal.thing)
        free = all(np.hypot(*(o.position[:2] - place)) > o.radius + thing.radius + 0.01 for o in others)
        away = np.hypot(*(thing.position[:2] - place)) > 0.06
        return bool(free and away and grasps.has_room(thing, others, place))


class Push(Task):
    def _has_room(self, goal: Goal, truth: TableTruth) -> bool:
        thing, place = truth.things[goal.thing], truth.plates[goal.place][:2]
        start = thing.position[:2]
        way = place - start
        length = float(np.hypot(*way))
        yaw = grasps.push_yaw(start, place)
        if length < 0.09 or abs(yaw) > STEEPEST_PUSH:
            return False
        others = truth.others(goal.thing)
        if not grasps.leaves_room(start, yaw, others):
            return False
        for other in others:
            offset = other.position[:2] - start
            along = float(np.clip(offset @ way / length, 0.0, length + 0.08))
            if np.hypot(*(offset - along * way / length)) < other.radius + CORRIDOR:
                return False
        return True


TABLE_TASKS: dict[str, Task] = {
    "lift": Task("lift", {"cube": (3, 3), "can": (0, 1), "ball": (0, 1)}, plates=0.25),
    "stack": Task("stack", {"cube": (2, 3), "can": (0, 1)}, plates=0.25),
    "put": Put("put", {"cube": (2, 3), "can": (0, 1), "ball": (0, 1)}, plates=1.0),
    "push": Push("push", {"cube": (1, 2), "can": (1, 1)}, plates=1.0),
}
TASKS_BY_NAME: dict[str, Task] = {
    CUBES: Cubes(CUBES, {"cube": (2, 2)}, plates=0.0, obstacles=(0, 0)),
    **TABLE_TASKS,
}


def find_task(name: str) -> Task:
    """The task of this name. Raises TaskError."""
    if name not in TASKS_BY_NAME:
        raise TaskError(
            f"task {name!r}: there are {', '.join(TABLE_TASKS)}, 'all' of them, and '{CUBES}'."
        )
    return TASKS_BY_NAME[name]


def fitting(truth: TableTruth, task: str | None = None) -> list[Goal]:
    """Every goal that fits the scene, or every one of one task."""
    wanted = (goal for goal in goals() if task in (None, goal.task))
    return [goal for goal in wanted if TABLE_TASKS[goal.task].fits(goal, truth)]


class TableJudge:
    """Success: the goal is reached and let go, for STEADY_FRAMES. Wrong: another thing is
    lifted, or lies where the named one belongs, or the named one lies on the other plate or on
    another thing."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self._steady = self._still = 0
        self._raised = self._wrong = False
        self._last: Any = None
        self._story = FailureClassifier(goal)

    def look(self, truth: Any) -> tuple[bool, bool]:
        goal, thing = self.goal, self.goal.thing
        self._story.look(truth)
        self._raised = self._raised or truth.things[thing].height > LIFTED / 2
        position = truth.things[thing].position
        moved = self._last is None or np.linalg.norm(position - self._last) > 0.002
        self._still, self._last = 0 if moved else self._still + 1, position
        done = self._reached(truth)
        self._steady = self._steady + 1 if done else 0
        wanted = 1 if goal.task == "lift" else STEADY_FRAMES
        wrong = self._is_wrong(truth)
        self._wrong = self._wrong or wrong
        return self._steady >= wanted, wrong

    def why(self) -> str:
        """One of `failures.REASONS`, for an episode that has not succeeded."""
        return self._story.why(self._wrong)

    @property
    def taken(self) -> str:
        """The first thing that was taken in the place of the named one; empty without."""
        return self._story.taken

    def _reached(self, truth: TableTruth) -> bool:
        goal = self.goal
        if goal.task == "lift":
            return goal.thing in truth.lifted()
        if goal.task == "stack":
            return truth.released(goal.thing) and truth.stacked(goal.thing, goal.place)
        if goal.task == "put":
            return truth.released(goal.thing) and truth.on_plate(goal.thing, goal.place)
        return not self._raised and truth.on_plate(goal.thing, goal.place)

    def _is_wrong(self, truth: TableTruth) -> bool:
        goal = self.goal
        if any(name != goal.thing for name in truth.lifted()):
            return True
        if goal.task == "stack":
            others = [name for name in truth.things if name not in (goal.thing, goal.place)]
            return truth.released(goal.thing) and any(truth.stacked(goal.thing, name) for name in others)
        if goal.task in ("put", "push"):
            beside = [plate for plate in truth.plates if plate != goal.place]
            settled = truth.released(goal.thing) and self._still >= LEFT_FRAMES
            if settled and any(truth.on_plate(goal.thing, plate) for plate in beside):
                return True
            return any(truth.on_plate(name, goal.place) for name in truth.things if name != goal.thing)
        return False


def judge(instruction: str) -> TableJudge:
    """The judge of an instruction. Raises TaskError."""
    goal = meaning(instruction)
    return TABLE_TASKS[goal.task].judge(goal)
