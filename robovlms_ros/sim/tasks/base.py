"""The tasks, each a small class: the contents of its scenes, the goals that fit a scene, the judge.

`cubes` is the easiest: two cubes and two sentences. The tabletop tasks have more objects, plates
and obstacles; a scene of theirs may be given every goal that fits it, also those of other tasks.
The instructions are in `language`, the expert's policy in `expert`. The reason of a failed episode
is classified from ground truth alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robovlms_ros.core.types import Array
from robovlms_ros.sim.tasks import grasps
from robovlms_ros.sim.tasks.language import (
    INSTRUCTIONS,
    Goal,
    TaskError,
    goals,
    instructions,
    meaning,
)
from robovlms_ros.sim.tasks.objects import LIFTED, TableTruth

REASONS = {
    "wrong object": "another thing was taken, or brought to where the named one belongs",
    "wrong place": "the named thing was left on another place than the named one",
    "carried": "what was to be pushed was raised",
    "knocked over": "the thing, or what it was to stand on, was shoved by 3 cm or fell from the table",
    "never reached": "the hand did not come to the thing",
    "never grasped": "the hand came to the thing and did not take it, or did not push it",
    "dropped": "the thing was let go far from its place, or a lifted one on the way",
    "missed the place": "the thing was let go or pushed near its place, and does not rest where it belongs",
    "too slow": "the thing was still held, or still pushed, when the time was over",
}
"""What a failure may be called, and what it means. The first one that applies, in this order."""

REACHED = 0.03
REACHED_HEIGHT = 0.025
"""How near the hand must come beside a thing, and in height (m)."""
RAISED = 0.008
"""A thing in the hand that is this far above its place is taken (m)."""
SHOVED = 0.03
"""A thing that moves this far without being taken is knocked over (m); one that is pushed has been
moved by it."""
NEAR_PLACE = 0.08
"""Let go within this distance of its place a thing has missed it, and is not just dropped (m)."""


@dataclass
class _Track:
    """History of one object. start: where it lay; before: where it was last, not counted
    while in the hand."""

    start: Array
    before: Array
    shoved: float = 0.0
    taken: bool = False
    held: bool = False


class FailureClassifier:
    """Follows one episode under one goal, frame by frame; `why` then names its failure.

    The truth must carry the hand's place: without it nothing counts as reached or taken.
    taken: the first thing that was taken in the place of the named one, or came to lie where that
        belongs; or empty.
    """

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self._tracks: dict[str, _Track] = {}
        self._reached = self._raised = False
        self.taken = ""
        self._away = float("inf")
        self._last: TableTruth | None = None

    def look(self, truth: TableTruth) -> None:
        """The next frame."""
        named = self.goal.thing
        self._last = truth
        for name, thing in truth.things.items():
            track = self._tracks.setdefault(name, _Track(thing.position, thing.position))
            near = _at_hand(truth, name)
            held = near and thing.height > RAISED and not truth.released(name)
            if name == named:
                self._reached = self._reached or near
                self._raised = self._raised or thing.height > LIFTED / 2
                if track.held and not held:
                    self._away = _distance(truth, self.goal)
            elif held or thing.height > LIFTED or _lies_in_place(truth, name, self.goal):
                self.taken = self.taken or name
            if not held and not track.held:
                track.shoved += float(np.hypot(*(thing.position - track.before)[:2]))
            track.before = thing.position
            track.held = held
            track.taken = track.taken or held

    def why(self, wrong: bool) -> str:
        """One of REASONS, for an episode that has not succeeded. wrong: the judge's answer."""
        if self.taken:
            return "wrong object"
        if wrong:
            return "wrong place"
        if self._last is None:
            return "never reached"
        mine = self._tracks[self.goal.thing]
        why = self._why_not_pushed if self.goal.task == "push" else self._why_not_placed
        return why(mine, self._last)

    def _why_not_pushed(self, mine: _Track, last: TableTruth) -> str:
        if self._raised:
            return "carried"
        if _fallen(last, self.goal.thing):
            return "knocked over"
        if not self._reached:
            return "never reached"
        if float(np.hypot(*(mine.before - mine.start)[:2])) < SHOVED:
            return "never grasped"
        return "too slow" if _at_hand(last, self.goal.thing) else "missed the place"

    def _why_not_placed(self, mine: _Track, last: TableTruth) -> str:
        goal = self.goal
        if _fallen(last, goal.thing) or (not mine.taken and mine.shoved > SHOVED):
            return "knocked over"
        below = self._tracks.get(goal.place)
        if below is not None and (_fallen(last, goal.place) or below.shoved > SHOVED):
            return "knocked over"
        if not mine.taken:
            return "never grasped" if self._reached else "never reached"
        if mine.held:
            return "too slow"
        return "missed the place" if goal.place and self._away < NEAR_PLACE else "dropped"


def _at_hand(truth: TableTruth, name: str) -> bool:
    if truth.hand is None:
        return False
    offset = truth.hand - truth.things[name].position
    return bool(np.hypot(offset[0], offset[1]) < REACHED and abs(offset[2]) < REACHED_HEIGHT)


def _distance(truth: TableTruth, goal: Goal) -> float:
    """Horizontal distance of the object from the goal's place (m)."""
    if not goal.place:
        return float("inf")
    place = truth.plates[goal.place] if goal.place in truth.plates else truth.things[goal.place].position
    return float(np.hypot(*(truth.things[goal.thing].position - place)[:2]))


def _lies_in_place(truth: TableTruth, name: str, goal: Goal) -> bool:
    return goal.place in truth.plates and truth.on_plate(name, goal.place)


def _fallen(truth: TableTruth, name: str) -> bool:
    return truth.things[name].height < -SHOVED


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
        """Every goal that is possible in a scene."""
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
        """True if the goal is possible in this scene: all there, reachable, and room for
        the fingers."""
        if goal.thing not in truth.things or (goal.place and goal.place not in {**truth.things, **truth.plates}):
            return False
        return self._has_room(goal, truth)

    def _has_room(self, goal: Goal, truth: TableTruth) -> bool:
        return grasps.has_room(truth.things[goal.thing], truth.others(goal.thing))


class Cubes(Task):
    """Two cubes, each named by one sentence."""

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
        thing = truth.things[goal.thing]
        place = truth.plates[goal.place][:2]
        others = truth.others(goal.thing)
        free = all(np.hypot(*(o.position[:2] - place)) > o.radius + thing.radius + 0.01 for o in others)
        away = np.hypot(*(thing.position[:2] - place)) > 0.06
        return bool(free and away and grasps.has_room(thing, others, place))


class Push(Task):
    def _has_room(self, goal: Goal, truth: TableTruth) -> bool:
        thing = truth.things[goal.thing]
        place = truth.plates[goal.place][:2]
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


def fitting(truth: TableTruth) -> list[Goal]:
    """Every goal that fits the scene."""
    return [goal for goal in goals() if TABLE_TASKS[goal.task].fits(goal, truth)]


class TableJudge:
    """Success: the goal is reached and released, for STEADY_FRAMES. Wrong: another thing is
    lifted, or lies where the named one belongs, or the named one lies on the other plate or on
    another thing."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self._steady = self._still = 0
        self._raised = self._wrong = False
        self._last: Any = None
        self._story = FailureClassifier(goal)

    def look(self, truth: Any) -> tuple[bool, bool]:
        goal = self.goal
        thing = self.goal.thing
        self._story.look(truth)
        self._raised = self._raised or truth.things[thing].height > LIFTED / 2
        position = truth.things[thing].position
        moved = self._last is None or np.linalg.norm(position - self._last) > 0.002
        self._still = 0 if moved else self._still + 1
        self._last = position
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
    return TableJudge(meaning(instruction))
