"""Recordings as a person makes them, by the scripted expert's hand: plain bags of the two cubes.

What is recorded is what a real robot's bag holds: images, joint states, the commands as they were
sent and the instruction. The operator is not the expert: its speed wavers, so that it overshoots
and corrects; it hesitates; its fingers close or open at the wrong time, so that it grasps again;
and half of its episodes begin elsewhere than at home. All of that is in the commands, which are the
labels. Everything is drawn from the scene's seed and the instruction's number.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.types import ActionChunk
from robovlms_ros.sim.bags import record_episodes
from robovlms_ros.sim.relieved_policy import RelievedPolicy
from robovlms_ros.sim.rollout import (
    EXPERT,
    Agent,
    EpisodeSettings,
    ExpertSession,
    Outcome,
    RolloutFrame,
    build_loop,
)
from robovlms_ros.sim.scenes import load_agent
from robovlms_ros.sim.tasks.language import INSTRUCTIONS
from robovlms_ros.sim.training.demonstrations import Disturbance, random_start
from robovlms_ros.sim.world import SimWorld

WAVER = 0.5
"""Largest standard deviation of the speed's error, as a part of the expert's top speed; an episode
draws its own."""
SLIP = 0.006
"""Probability per chunk that the fingers do the opposite for a while."""
HESITATION = 0.015
"""Probability per chunk that the hand stands still for 0.2 to 0.6 s."""
ELSEWHERE = 0.5
"""Probability that an episode begins elsewhere than at home."""


class Operator(Disturbance):
    """Chunks of the expert as a person would have commanded them; a policy's as they are."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng.uniform(0, WAVER), SLIP, rng)
        self._until_ns = 0

    def __call__(self, chunk: ActionChunk, frame: RolloutFrame) -> ActionChunk:
        if chunk.policy_id != EXPERT:
            return chunk
        chunk = super().__call__(chunk, frame)
        if chunk.stamp_ns >= self._until_ns and self._rng.uniform() < HESITATION:
            self._until_ns = chunk.stamp_ns + int(self._rng.uniform(0.2e9, 0.6e9))
        if chunk.stamp_ns < self._until_ns:
            values = chunk.values.copy()
            values[:, :6] = 0.0
            values[:, 6] = values[0, 6]
            chunk = replace(chunk, values=values)
        return chunk


def record_recordings(
    folder: Path,
    seeds: Sequence[int],
    paired: bool,
    robot: str = "panda",
    workers: int = 1,
    checkpoint: Path | None = None,
) -> list[Outcome]:
    """`record_scenes` in several processes; the outcomes of what was missing."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [seeds[i::workers] for i in range(min(workers, len(seeds)))]
    part = partial(
        record_scenes, folder, paired=paired, robot=robot, checkpoint=checkpoint
    )
    if len(parts) == 1:
        return part(parts[0])
    with ProcessPoolExecutor(len(parts), multiprocessing.get_context("spawn")) as pool:
        return [outcome for found in pool.map(part, parts) for outcome in found]


def record_scene(
    path: Path,
    world: SimWorld,
    seed: int,
    instructions: Sequence[str],
    robot: str = "panda",
    policy: Agent | None = None,
) -> list[Outcome]:
    """Record one scene of the two cubes as one bag, an episode for each of the instructions.

    policy: drives first, the operator takes over.
    """
    settings = EpisodeSettings(latency=(0.03, 0.15), limit=12.0, linger=0.4)
    loop = build_loop(world, robot, settings)
    order = list(INSTRUCTIONS)

    def begin(seed: int, words: str) -> None:
        rng = np.random.default_rng((seed, 5, order.index(words)))
        loop.disturb = Operator(rng)
        if rng.uniform() < ELSEWHERE:
            positions = random_start(rng, loop.kinematics, world.joint_state().positions, 0.12)
            world.set_arm(positions, 1.0)

    episodes = [(seed, words) for words in instructions]
    agent: Agent = ExpertSession(world)
    if policy is not None:
        agent = RelievedPolicy(policy, agent)
    return record_episodes(path, loop, agent, load_robot(robot), episodes, begin)


def record_scenes(
    folder: Path,
    seeds: Sequence[int],
    paired: bool,
    robot: str = "panda",
    checkpoint: Path | None = None,
) -> list[Outcome]:
    """Record scenes as `FOLDER/scene_SEED`, those that are missing; a bag is there whole or not.

    paired: each scene for each of the two sentences; otherwise an even seed's scene for the first,
    an odd one's for the second. checkpoint: of a policy that drives first (`RelievedPolicy`).
    """
    words = list(INSTRUCTIONS)
    policy = None if checkpoint is None else load_agent(checkpoint)
    world = SimWorld(seeds[0])
    outcomes = []
    try:
        for seed in seeds:
            bag = folder / f"scene_{seed}"
            part = folder / ".part" / bag.name
            if bag.exists():
                continue
            part.parent.mkdir(parents=True, exist_ok=True)
            chosen = words if paired else [words[seed % 2]]
            outcomes += record_scene(part, world, seed, chosen, robot, policy)
            part.rename(bag)
    finally:
        world.close()
    return outcomes
