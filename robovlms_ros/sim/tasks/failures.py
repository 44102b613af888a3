"""Why an episode failed, in a word or two, from ground truth alone: it says what is worth recording next."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.sim.tasks.language import Goal
from robovlms_ros.sim.tasks.objects import LIFTED, TableTruth

Array = NDArray[np.float64]

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

REACHED, REACHED_HEIGHT = 0.03, 0.025
"""How near the hand must come beside a thing, and in height (m)."""
RAISED = 0.008
"""A thing in the hand that is this far above its place is taken (m)."""
SHOVED = 0.03
"""A thing that moves this far without being taken is knocked over (m); one that is pushed has been moved by it."""
NEAR_PLACE = 0.08
"""Let go within this distance of its place a thing has missed it, and is not just dropped (m)."""


@dataclass
class _Track:
    """What has become of one thing. start: where it lay; before: where it was last, not counted while in the hand."""

    start: Array
    before: Array
    shoved: float = 0.0
    taken: bool = False
    held: bool = False


class FailureClassifier:
    """Follows one episode under one goal, frame by frame; `why` then names its failure.

    The truth must carry the hand's place: without it nothing counts as reached or taken.
    taken: the first thing that was taken in the place of the named one, or came to lie where that belongs; or empty.
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
        named, self._last = self.goal.thing, truth
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
            track.before, track.held, track.taken = thing.position, held, track.taken or held

    def why(self, wrong: bool) -> str:
        """One of REASONS, for an episode that has not succeeded. wrong: what the judge says."""
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
    """How far the thing is from the goal's place, beside (m)."""
    if not goal.place:
        return float("inf")
    place = truth.plates[goal.place] if goal.place in truth.plates else truth.things[goal.place].position
    return float(np.hypot(*(truth.things[goal.thing].position - place)[:2]))


def _lies_in_place(truth: TableTruth, name: str, goal: Goal) -> bool:
    return goal.place in truth.plates and truth.on_plate(name, goal.place)


def _fallen(truth: TableTruth, name: str) -> bool:
    return truth.things[name].height < -SHOVED
