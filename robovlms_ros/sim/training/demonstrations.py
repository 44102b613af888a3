"""Demonstrations from the simulated arm: shards of episodes, every frame labelled by the expert.

The expert's law has no memory, so a frame carries the labels of several goals, whichever one was
being followed, and episodes that a policy drove are labelled in the same way (dataset aggregation,
Ross et al. 2011).

A shard is a folder: `images.npy` (F, cameras, S, S, 3) uint8 and `frames.npz` with `poses` (F, 4,
4), `joints` (F, 7), `openings` (F,), `things` (F, T, 3) and `plates` (F, P, 3) in the order of
`objects.THINGS` and `objects.PLATES` (m in the base frame, NaN where a scene has none), `turns` (F,
T), the cubes' yaw (rad, NaN for all else), `goals` (F, K) numbers into `language.goals()`, the
followed one first, `labels` (F, K, horizon, 7) per `expert.ACTION_SPEC` and `yaws` (F, K), the
hand's (rad), `episodes` (F,), the episode's seed, and `scenes` (F,), alike in episodes that begin
alike. Frames of an episode are adjacent and 50 ms apart. The K goals belong to the episode: both
cubes, or goals of the scene's own and of other tasks, repeated where fewer fit. Cameras are those
of `world.CAMERAS`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.core.rotations import matrix_from_vector
from robovlms_ros.core.types import NANOSECONDS, ActionChunk
from robovlms_ros.sim.rollout import Agent, ClosedLoop, EpisodeSettings, Outcome, RolloutFrame
from robovlms_ros.sim.tasks.base import CUBES
from robovlms_ros.sim.tasks.domain_randomization import SceneAppearance
from robovlms_ros.sim.tasks.expert import HAND_DOWN, MAX_SPEED, STEP
from robovlms_ros.sim.tasks.language import (
    INSTRUCTIONS,
    LABELLED,
    Goal,
    goals,
    instructions,
    meaning,
)
from robovlms_ros.sim.tasks.objects import PLATES, THINGS, shape_of
from robovlms_ros.sim.training.state_sampling import put_moment
from robovlms_ros.sim.world import CAMERAS, SimWorld, expert_of

Array = NDArray[np.float64]

GOALS = goals()
# about what is executed before the next chunk; more would only lead out of reach
_DISTURBED_STEPS = 6
START_BOX = ((0.36, 0.70), (-0.22, 0.22), (-0.05, 0.17))
"""Where the hand may start when it does not start at home: x, y, z ranges in the base frame (m)."""


@dataclass(frozen=True)
class DemonstrationSettings:
    """Disturbance of an episode from the expert's own path.

    noise: largest standard deviation of the executed speed's noise, as a part of the expert's top
        speed; each episode draws its own. random_start, switch: probabilities that the hand starts
        elsewhere than at home, and that the instruction changes on the way. closed_start:
        probability that a hand that starts elsewhere is not open. slip: probability per chunk that
        the fingers do the opposite for a while. limit: s of simulated time at most.
    """

    noise: float = 0.6
    random_start: float = 0.5
    closed_start: float = 0.3
    switch: float = 0.35
    slip: float = 0.02
    limit: float = 6.0


CUBE_SETTINGS = DemonstrationSettings()
TASK_SETTINGS = DemonstrationSettings(
    noise=0.5, random_start=0.4, closed_start=0.3, switch=0.2, slip=0.006, limit=10.0
)
GLIMPSE = replace(TASK_SETTINGS, random_start=0.8, switch=0.0, limit=STEP)
"""One frame of a scene (see `state_sampling`): cheap, and scenes are what a policy lacks."""
START_TURN = 0.8
"""How far a hand that does not start at home may be turned (rad)."""
TURN_NOISE = 0.02
GLIMPSED = {"stack": 2.0}
"""How much more often than of another task a glimpse is of this one, where goals of both fit: it
misses its place most often."""
LOOSE = replace(SceneAppearance(), camera_shift=0.02, camera_turn=0.052)
LOOSE_SHARE = 0.25
"""Part of the recorded scenes whose cameras may stand as far off as an owner's do: 2 cm and 3
degrees per axis."""


class Disturbance:
    """Noise on what is executed: correlated over time (AR(1)) in speed, weaker near the goal.

    turn: standard deviation of the noise about the vertical, rad per step.
    """

    def __init__(
        self,
        sigma: float,
        slip: float,
        rng: np.random.Generator,
        turn: float = 0.0,
    ) -> None:
        self._sigma = sigma * MAX_SPEED * STEP
        self._slip = slip
        self._rng = rng
        self._turn = turn
        self._noise = rng.normal(size=3)
        self._last_ns: int | None = None

    def __call__(self, chunk: ActionChunk, frame: RolloutFrame) -> ActionChunk:
        if self._last_ns is not None:
            for _ in range(round((chunk.stamp_ns - self._last_ns) / (STEP * NANOSECONDS))):
                self._noise = self._next(self._noise)
        self._last_ns = chunk.stamp_ns
        near = float(np.clip((_distance_to_goal(chunk, frame) - 0.02) / 0.06, 0.08, 1.0))
        scale = self._sigma * near
        values = chunk.values.copy()
        noise = self._noise
        for row in values[:_DISTURBED_STEPS]:
            row[:3] += scale * noise
            if self._turn:
                row[5] += self._turn * near * noise[2]
            noise = self._next(noise)
        if self._rng.uniform() < self._slip:
            values[: self._rng.integers(4, 10), 6] = 1 - np.round(values[0, 6])
        return replace(chunk, values=values)

    def _next(self, noise: Array) -> Array:
        return 0.8 * noise + 0.6 * self._rng.normal(size=3)


class Recording:
    """Records the episodes of one world. labelled: goals of a tabletop frame. moments: a
    tabletop episode begins at a moment of any of its scene's goals. paired: of the two cubes, an
    even seed's scene is shown by the odd seed after it once more, for the other instruction, and
    no instruction changes on the way."""

    def __init__(
        self, world: SimWorld, labelled: int = LABELLED, moments: bool = False, paired: bool = False
    ) -> None:
        self._world = world
        self._labelled = labelled
        self._moments = moments
        self._paired = paired
        self._goals: list[Goal] = []

    def run(self, seed: int, loop: ClosedLoop, agent: Agent, settings: DemonstrationSettings) -> Outcome:
        """One disturbed episode, drawn from the seed alone."""
        rng = np.random.default_rng((seed, 1))
        cubes = self._world.task == CUBES
        spoken = (
            self._begin_cubes(seed, loop, settings, rng)
            if cubes
            else self._begin(seed, loop, settings, rng)
        )
        loop.disturb = Disturbance(
            rng.uniform(0, settings.noise), settings.slip, rng, 0.0 if cubes else TURN_NOISE
        )
        # A glimpse stays one frame, also where the goal is reached in it.
        linger = min(float(rng.uniform(0.2, 0.8)), settings.limit)
        loop.settings = EpisodeSettings(latency=(0.03, 0.15), limit=settings.limit, linger=linger)
        return loop.run(agent, spoken, rng)

    def _begin_cubes(
        self, seed: int, loop: ClosedLoop, settings: DemonstrationSettings, rng: np.random.Generator
    ) -> list[tuple[float, str]]:
        """Set up the scene and the arm; returns the instructions and their times (s)."""
        self._world.reset(self._scene(seed))
        self._random_start(loop, settings, rng, 0.12)
        first, second = rng.permutation(list(INSTRUCTIONS))
        spoken = [(0.0, str(first))]
        if rng.uniform() < settings.switch:
            spoken.append((float(rng.uniform(0.2, 2.2)), str(second)))
        self._goals = list(INSTRUCTIONS.values())
        return [(0.0, list(INSTRUCTIONS)[seed % 2])] if self._paired else spoken

    def _begin(
        self, seed: int, loop: ClosedLoop, settings: DemonstrationSettings, rng: np.random.Generator
    ) -> list[tuple[float, str]]:
        """The same of a tabletop scene."""
        world = self._world
        loose = np.random.default_rng((seed, 3)).uniform() < LOOSE_SHARE
        world.looks = LOOSE if loose else SceneAppearance()
        world.reset(seed)
        spoken = [(0.0, self._first_sentence(loop, settings, rng))]
        if rng.uniform() < settings.switch:
            other = world.goals[int(rng.integers(len(world.goals)))]
            spoken.insert(0, (0.0, str(rng.choice(instructions(other)))))
            spoken[1] = (float(rng.uniform(0.3, 4.0)), spoken[1][1])
        self._goals = self._draw([meaning(words) for _, words in reversed(spoken)], rng)
        return spoken

    def _first_sentence(
        self, loop: ClosedLoop, settings: DemonstrationSettings, rng: np.random.Generator
    ) -> str:
        """Put the arm where the episode begins; returns its sentence."""
        world = self._world
        sentence = ""
        if self._moments:
            tasks = sorted({goal.task for goal in world.goals})
            weights = np.array([GLIMPSED.get(task, 1.0) for task in tasks])
            task = rng.choice(tasks, p=weights / weights.sum())
            fitting = [goal for goal in world.goals if goal.task == task]
            goal = fitting[int(rng.integers(len(fitting)))]
            sentence = str(rng.choice(instructions(goal)))
            if put_moment(world, loop.kinematics, goal, rng):
                return sentence
        self._random_start(loop, settings, rng, START_TURN)
        return sentence or world.instruction(rng, unseen=False)

    def _random_start(
        self,
        loop: ClosedLoop,
        settings: DemonstrationSettings,
        rng: np.random.Generator,
        turn: float,
    ) -> None:
        if rng.uniform() < settings.random_start:
            opening = rng.uniform() if rng.uniform() < settings.closed_start else 1.0
            positions = random_start(
                rng, loop.kinematics, self._world.joint_state().positions, turn
            )
            self._world.set_arm(positions, opening)

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
        """A frame's row of every column, `images` and `episodes` among them."""
        state = frame.observation.state
        truth = frame.truth
        assert state is not None and state.eef_pose is not None and state.gripper is not None
        experts = {
            goal: expert_of(self._world.scene_task, goal, truth, state.eef_pose, state.gripper)
            for goal in dict.fromkeys(self._goals)
        }
        chunks = {goal: expert.chunk() for goal, expert in experts.items()}
        # The followed goal first: a robot without a simulator has no other label.
        now = meaning(frame.observation.instruction)
        order = sorted(self._goals, key=lambda goal: goal != now)
        nothing = np.full(3, np.nan)
        things = truth.things
        return {
            "images": np.stack([frame.observation.images[name] for name in CAMERAS]),
            "poses": state.eef_pose,
            "joints": state.positions,
            "openings": np.float32(state.gripper),
            "things": np.stack(
                [things[name].position if name in things else nothing for name in THINGS]
            ).astype(np.float32),
            "turns": np.array(
                [
                    things[name].yaw if name in things and shape_of(name) == "cube" else np.nan
                    for name in THINGS
                ],
                np.float32,
            ),
            "plates": np.stack([truth.plates.get(name, nothing) for name in PLATES]).astype(
                np.float32
            ),
            "goals": np.array([GOALS.index(goal) for goal in order], np.int16),
            "labels": np.stack([chunks[goal] for goal in order]).astype(np.float32),
            "yaws": np.array([experts[goal].yaw for goal in order], np.float32),
            "episodes": np.int64(seed),
            "scenes": np.int64(self._scene(seed)),
        }

    def _scene(self, seed: int) -> int:
        return seed - seed % 2 if self._paired else seed


def record_shard(
    folder: Path,
    seeds: Sequence[int],
    loop: ClosedLoop,
    agent: Agent,
    settings: DemonstrationSettings,
    recording: Recording,
    progress: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run one episode per seed with `agent` in `loop` and write the shard; complete or absent,
    never half.

    A shard that exists is left as it is and answers with no outcomes.
    """
    if (folder / "frames.npz").exists():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    frames: list[RolloutFrame] = []
    outcomes: list[Outcome] = []
    rows: list[dict[str, Any]] = []
    loop.on_frame = frames.append
    for seed in seeds:
        frames.clear()
        outcomes.append(recording.run(seed, loop, agent, settings))
        progress(outcomes[-1])
        rows += [recording.row(frame, seed) for frame in frames]
    loop.on_frame = loop.disturb = None
    np.save(folder / "images.npy", np.stack([row.pop("images") for row in rows]))
    (folder / "outcomes.json").write_text(json.dumps([vars(o) for o in outcomes], indent=1))
    part = folder / "frames.part.npz"
    columns: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.savez(part, **columns)
    part.rename(folder / "frames.npz")
    return outcomes


def random_start(
    rng: np.random.Generator, kinematics: Kinematics, seed: Array, turn: float
) -> Array:
    """Joint positions (7,) that put the hand somewhere in START_BOX, pointing nearly down,
    turned by at most `turn` rad about the vertical."""
    while True:
        low, high = np.array(START_BOX).T
        pose = np.eye(4)
        pose[:3, 3] = rng.uniform(low, high)
        pose[:3, :3] = matrix_from_vector(rng.uniform(-1.0, 1.0, 3) * (0.12, 0.12, turn)) @ HAND_DOWN
        result = kinematics.inverse(pose[None], seed)
        if result.reached[0]:
            return result.positions[0]


def _are_twins(goal: Goal, other: Goal) -> bool:
    """True if only the shape distinguishes their things, as in `red can` and `red cube`: what is
    most often confused."""
    return goal.thing != other.thing and goal.thing.split()[0] == other.thing.split()[0]


def _distance_to_goal(chunk: ActionChunk, frame: RolloutFrame) -> float:
    """From the hand to the thing, and once that is held, from the thing to its place (m)."""
    goal = meaning(chunk.instruction)
    truth = frame.truth
    state = frame.observation.state
    assert state is not None and state.eef_pose is not None
    thing = truth.things[goal.thing].position
    to_thing = float(np.linalg.norm(state.eef_pose[:3, 3] - thing))
    if to_thing > 0.03 or not goal.place:
        return to_thing
    place = truth.plates[goal.place] if goal.place in truth.plates else truth.things[goal.place].position
    return float(np.linalg.norm(thing[:2] - place[:2])) if truth.things[goal.thing].height > 0.02 else to_thing
