"""Where the hand took hold of the thing, told to every frame that led there: what a real recording knows of places.

A recording without a simulator cannot say where the named thing is. It does say, once it is over, where the fingers
closed on it; that place is learned beside the action in the ground truth's stead (compare hindsight goals,
Andrychowicz et al. 2017).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.sim.tasks.language import INSTRUCTIONS, goals
from robovlms_ros.sim.training.shards import Columns

CUBE_GOALS = [goals().index(goal) for goal in INSTRUCTIONS.values()]
"""The two cubes' goals as shards number them."""

OPEN = 0.9
"""Opening of the gripper (0 closed, 1 open) from which on nothing is held."""


def followed_cubes(shard: Columns) -> NDArray[np.int64]:
    """(F,): which of the two cubes a frame's instruction named, in the order of INSTRUCTIONS."""
    return np.argmax(shard["goals"][:, :1] == np.array(CUBE_GOALS), axis=1)


def grasped_places(shard: Columns) -> NDArray[np.float32]:
    """(F, C, 3): for the thing that an episode took in the end, at each of its frames, m in the base frame: where the
    hand took hold of it, and from then on where the hand is, since the thing goes with it. For what another episode of
    the same scene took: where it did so. Not a number for the other things.

    Frames before a change of the instruction know the place, too: what was asked for there and what is known in
    hindsight are then two instructions for one image.
    """
    hands, openings, episodes = shard["poses"][:, :3, 3], shard["openings"], shard["episodes"]
    followed = followed_cubes(shard)
    places = np.full((len(episodes), len(CUBE_GOALS), 3), np.nan, np.float32)
    scenes = shard["scenes"]
    taken: dict[int, list[tuple[int, NDArray[Any]]]] = {}  # scene -> (which thing, where)
    ends = np.flatnonzero(np.append(episodes[1:] != episodes[:-1], True)) + 1
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        named = followed[end - 1]
        changed = begin + _after_last(followed[begin:end] != named)
        grasp = changed + _after_last(openings[changed:end] >= OPEN)
        if grasp < end:
            taken.setdefault(int(scenes[begin]), []).append((named, hands[grasp]))
            places[begin:grasp, named] = hands[grasp]
            places[grasp:end, named] = hands[grasp:end]
    for scene, found in taken.items():
        for named, place in found:
            unknown = (scenes == scene) & np.isnan(places[:, named, 0])
            places[unknown, named] = place
    return places


def _after_last(flags: NDArray[Any]) -> int:
    """The index after the last true one; 0 without one."""
    found = np.flatnonzero(flags)
    return int(found[-1]) + 1 if len(found) else 0
