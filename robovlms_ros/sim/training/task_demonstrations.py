"""Demonstrations of the tabletop tasks: the expert drives under noise, every frame is labelled under several goals.

A shard is as in `demonstrations`, with `things` (F, T, 3) and `plates` (F, P, 3) in the order of `things.THINGS` and
`things.PLATES` (m in the base frame, NaN where a scene has none) in the place of `cubes`, `turns` (F, T), how cubes lie
about the vertical (rad, NaN for all else), `goals` (F, K) numbers into `language.goals()`, the followed one first,
`labels` (F, K, horizon, 7) and `yaws` (F, K), how the hand is to be turned (rad). The K goals belong to the episode, of
its own and of other tasks; where fewer fit, they repeat.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.types import ActionChunk
from robovlms_ros.sim.expert import STEP
from robovlms_ros.sim.rollout import Agent, ClosedLoop, EpisodeSettings, Outcome, RolloutFrame
from robovlms_ros.sim.tasks.domain_randomization import SceneAppearance
from robovlms_ros.sim.tasks.expert import ExpertPolicy
from robovlms_ros.sim.tasks.language import LABELLED, Goal, goals, instructions, meaning
from robovlms_ros.sim.tasks.objects import PLATES, THINGS, TableTruth, shape_of
from robovlms_ros.sim.tasks.world import TaskWorld
from robovlms_ros.sim.training.demonstrations import (
    DemonstrationSettings,
    Disturbance,
    random_start,
)
from robovlms_ros.sim.training.state_sampling import put_moment
from robovlms_ros.sim.world import CAMERAS

Array = NDArray[np.float64]

GOALS = goals()
START_TURN = 0.8
"""How far a hand that does not start at home may be turned (rad)."""
TURN_NOISE = 0.02
SETTINGS = DemonstrationSettings(noise=0.5, random_start=0.4, closed_start=0.3, switch=0.2, slip=0.006, limit=10.0)
GLIMPSE = replace(SETTINGS, random_start=0.8, switch=0.0, limit=STEP)
"""One frame of a scene (see `moments`): cheap, and what a policy lacks is scenes."""

GLIMPSED = {"stack": 2.0}
"""How much more often than of another task a glimpse is of this one, where goals of both fit: it misses its place most
often."""
LOOSE = replace(SceneAppearance(), camera_shift=0.02, camera_turn=0.052)
LOOSE_SHARE = 0.25
"""Part of the recorded scenes whose cameras may stand as far off as an owner's do: 2 cm and 3 degrees per axis."""


class TaskRecording:
    """Records one TaskWorld's episodes; see `demonstrations.Recording`. moments: each begins in a moment of any of its
    scene's goals."""

    def __init__(self, world: TaskWorld, labelled: int = LABELLED, moments: bool = False) -> None:
        self._world, self._labelled, self._moments = world, labelled, moments
        self._goals: list[Goal] = []

    def run(self, seed: int, loop: ClosedLoop, agent: Agent, settings: DemonstrationSettings) -> Outcome:
        """One disturbed episode, drawn from the seed alone."""
        rng = np.random.default_rng((seed, 1))
        world = self._world
        loose = np.random.default_rng((seed, 3)).uniform() < LOOSE_SHARE
        world.looks = LOOSE if loose else SceneAppearance()
        world.reset(seed)
        spoken = [(0.0, self._begin(loop, settings, rng))]
        if rng.uniform() < settings.switch:
            other = world.goals[int(rng.integers(len(world.goals)))]
            spoken.insert(0, (0.0, str(rng.choice(instructions(other)))))
            spoken[1] = (float(rng.uniform(0.3, 4.0)), spoken[1][1])
        self._goals = self._draw([meaning(words) for _, words in reversed(spoken)], rng)
        loop.disturb = Disturbance(rng.uniform(0, settings.noise), settings.slip, rng, _distance_to_goal, TURN_NOISE)
        # A glimpse stays one frame, also where the goal is reached in it.
        linger = min(float(rng.uniform(0.2, 0.8)), settings.limit)
        loop.settings = EpisodeSettings(latency=(0.03, 0.15), limit=settings.limit, linger=linger)
        return loop.run(agent, spoken, rng)

    def _begin(self, loop: ClosedLoop, settings: DemonstrationSettings, rng: np.random.Generator) -> str:
        """Put the arm where the episode begins; returns its sentence."""
        world, sentence = self._world, ""
        if self._moments:
            tasks = sorted({goal.task for goal in world.goals})
            weights = np.array([GLIMPSED.get(task, 1.0) for task in tasks])
            task = rng.choice(tasks, p=weights / weights.sum())
            fitting = [goal for goal in world.goals if goal.task == task]
            goal = fitting[int(rng.integers(len(fitting)))]
            sentence = str(rng.choice(instructions(goal)))
            if put_moment(world, loop.kinematics, goal, rng):
                return sentence
        if rng.uniform() < settings.random_start:
            opening = rng.uniform() if rng.uniform() < settings.closed_start else 1.0
            world.set_arm(random_start(rng, loop.kinematics, world.joint_state().positions, START_TURN), opening)
        return sentence or world.instruction(rng, unseen=False)

    def _draw(self, followed: list[Goal], rng: np.random.Generator) -> list[Goal]:
        chosen = list(dict.fromkeys(followed))
        others = [goal for goal in self._world.goals if goal not in chosen]
        own = [goal for goal in others if goal.task == chosen[0].task]
        rng.shuffle(others)
        rng.shuffle(own)
        own.sort(key=lambda goal: not _are_twins(goal, chosen[0]))
        half = (self._labelled - len(chosen)) // 2
        chosen = list(dict.fromkeys([*chosen, *own[:half], *others]))[: self._labelled]
        return (chosen * self._labelled)[: self._labelled]

    def row(self, frame: RolloutFrame, seed: int) -> dict[str, Any]:
        state, truth = frame.observation.state, frame.truth
        assert state is not None and state.eef_pose is not None and state.gripper is not None
        assert isinstance(truth, TableTruth)
        pose, opening = state.eef_pose, state.gripper
        laws = {goal: ExpertPolicy(goal, truth, pose, opening) for goal in dict.fromkeys(self._goals)}
        chunks = {goal: law.chunk() for goal, law in laws.items()}
        # The followed goal first: a robot without a simulator has no other label.
        now = meaning(frame.observation.instruction)
        order = sorted(self._goals, key=lambda goal: goal != now)
        nothing = np.full(3, np.nan)
        return {
            "images": np.stack([frame.observation.images[name] for name in CAMERAS]),
            "poses": pose,
            "joints": state.positions,
            "openings": np.float32(opening),
            "things": np.stack([
                truth.things[name].position if name in truth.things else nothing for name in THINGS
            ]).astype(np.float32),
            "turns": np.array([
                truth.things[name].yaw if name in truth.things and shape_of(name) == "cube" else np.nan
                for name in THINGS
            ], np.float32),
            "plates": np.stack([truth.plates.get(name, nothing) for name in PLATES]).astype(np.float32),
            "goals": np.array([GOALS.index(goal) for goal in order], np.int16),
            "labels": np.stack([chunks[goal] for goal in order]).astype(np.float32),
            "yaws": np.array([laws[goal].yaw for goal in order], np.float32),
            "episodes": np.int64(seed),
        }


def _are_twins(goal: Goal, other: Goal) -> bool:
    """Whether only the shape tells their things apart, as in `red can` and `red cube`: what is most often confused."""
    return goal.thing != other.thing and goal.thing.split()[0] == other.thing.split()[0]


def _distance_to_goal(chunk: ActionChunk, frame: RolloutFrame) -> float:
    """From the hand to the thing, and once that is held, from the thing to its place (m)."""
    goal, truth, state = meaning(chunk.instruction), frame.truth, frame.observation.state
    assert state is not None and state.eef_pose is not None and isinstance(truth, TableTruth)
    thing = truth.things[goal.thing].position
    to_thing = float(np.linalg.norm(state.eef_pose[:3, 3] - thing))
    if to_thing > 0.03 or not goal.place:
        return to_thing
    place = truth.plates[goal.place] if goal.place in truth.plates else truth.things[goal.place].position
    return float(np.linalg.norm(thing[:2] - place[:2])) if truth.things[goal.thing].height > 0.02 else to_thing
