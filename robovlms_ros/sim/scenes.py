"""Scene after scene in the simulated arm, in simulated time and without ROS: what a policy comes
to.

What comes out of a scene depends on it and on the settings alone, not on the scenes before it: so
many processes give what one gives, and a run that was stopped goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robovlms_ros.core.resources import find_checkpoint
from robovlms_ros.sim.closed_loop import EpisodeResult
from robovlms_ros.sim.rollout import Agent, ClosedLoop, EpisodeSettings, ExpertSession, build_loop
from robovlms_ros.sim.tasks.base import CUBES
from robovlms_ros.sim.tasks.evaluate import AS_TRAINED, TIME_LIMIT, TaskCondition, TaskEpisode
from robovlms_ros.sim.tasks.language import INSTRUCTIONS, is_unseen, meaning, paraphrase
from robovlms_ros.sim.world import START_NS, SimWorld

EASY_TIME_LIMIT = 10.0
"""Simulated seconds per episode of the two cubes."""


@dataclass(frozen=True)
class Scene:
    """One scene to run. task: of `base`; the two cubes are asked for both. condition: a name
    among the settings'."""

    task: str
    seed: int
    condition: str = AS_TRAINED


@dataclass(frozen=True)
class BenchSettings:
    """What holds for every scene of a run. checkpoint: the policy; empty is the scripted expert.
    limit: simulated s per episode. blank: black images. every_goal: a tabletop scene is asked
    for the seed's own sentence (empty), for every goal of its task that fits it (`own`), or for
    every goal of any task (`all`)."""

    checkpoint: str = ""
    robot: str = "panda"
    limit: float = TIME_LIMIT
    blank: bool = False
    every_goal: str = ""
    conditions: Mapping[str, TaskCondition] = field(default_factory=lambda: {AS_TRAINED: TaskCondition()})


class Bench:
    """One world, one executor and one agent. agent: in the place of the checkpoint's session."""

    def __init__(self, settings: BenchSettings, agent: Agent | None = None) -> None:
        self.settings, self._agent = settings, agent
        self._loop: ClosedLoop | None = None
        if agent is None and settings.checkpoint:
            self._agent = load_agent(settings.checkpoint)

    def run(self, scene: Scene) -> list[TaskEpisode]:
        """The scene's episodes, one per instruction, each from the scene as the seed sets it up."""
        loop, condition = self._loop_of(scene), self.settings.conditions[scene.condition]
        world = loop.world
        agent = self._agent or ExpertSession(world)
        loop.settings = EpisodeSettings(latency=condition.latency, limit=self.settings.limit,
                                        dropped=condition.dropped, executed=condition.executed)
        world.set_task(scene.task)
        world.looks = condition.looks
        world.obstacles = condition.obstacles
        world.reset(scene.seed)
        return [self._episode(loop, agent, scene, words) for words in self._instructions(world, scene)]

    def close(self) -> None:
        if self._loop is not None:
            self._loop.world.close()

    def _loop_of(self, scene: Scene) -> ClosedLoop:
        if self._loop is None:
            blank = self.settings.blank or self._agent is None  # the expert looks at no image
            self._loop = build_loop(
                SimWorld(scene.seed, blank, task=scene.task), self.settings.robot
            )
        return self._loop

    def _instructions(self, world: SimWorld, scene: Scene) -> Sequence[str]:
        if scene.task == CUBES:
            return list(INSTRUCTIONS)
        if not self.settings.every_goal:
            return [world.sentence]
        return [paraphrase(goal, scene.seed) for goal in world.goals
                if self.settings.every_goal == "all" or goal.task == scene.task]

    def _episode(self, loop: ClosedLoop, agent: Agent, scene: Scene, words: str) -> TaskEpisode:
        loop.world.reset(scene.seed)
        loop.world.time_ns = START_NS  # a later start would round differently, and grasps feel the last bit
        outcome = loop.run(agent, [(0.0, words)], np.random.default_rng((scene.seed, 2)))
        result = EpisodeResult(words, "blanked" if self.settings.blank else "named", scene.seed, outcome.success,
                               outcome.wrong, outcome.time_to_success, outcome.chunks, outcome.refusals, outcome.why,
                               outcome.taken)
        task = CUBES if scene.task == CUBES else meaning(words).task
        return TaskEpisode(task, result, is_unseen(words), scene.task)


def load_agent(checkpoint: str | Path) -> Agent:
    """A session of the checkpoint."""
    from robovlms_ros.checkpoints.checkpoint import load_policy
    from robovlms_ros.inference.session import PolicySession

    return PolicySession(load_policy(find_checkpoint(checkpoint)))


def evaluate_task(
    task: str,
    agent: Agent | str | Path | None,
    seeds: Sequence[int],
    condition: TaskCondition | None = None,
    **settings: Any,
) -> list[TaskEpisode]:
    """One episode per seed, in this process. agent: a policy's session or its checkpoint; None
    is the scripted expert. task: of `base`; the two cubes have an episode per instruction.
    settings: fields of BenchSettings."""
    chosen = BenchSettings(conditions={AS_TRAINED: condition or TaskCondition()}, **settings)
    if isinstance(agent, str | Path):
        chosen, agent = replace(chosen, checkpoint=str(agent)), None
    bench = Bench(chosen, agent)
    try:
        return [episode for seed in seeds for episode in bench.run(Scene(task, seed))]
    finally:
        bench.close()
