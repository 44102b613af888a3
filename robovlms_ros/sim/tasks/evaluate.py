"""Closed-loop success of the tabletop tasks, in process: scene, sentence and condition follow from the seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robovlms_ros.evaluation.closed_loop import EpisodeResult, Row, Thresholds, summarise
from robovlms_ros.evaluation.statistics import wilson_interval
from robovlms_ros.resources import find_checkpoint
from robovlms_ros.sim.rollout import Agent, EpisodeSettings, ExpertSession, build_loop
from robovlms_ros.sim.task import TaskError
from robovlms_ros.sim.tasks.language import TASKS, is_unseen
from robovlms_ros.sim.tasks.looks import Looks
from robovlms_ros.sim.tasks.world import TaskWorld

TIME_LIMIT = 14.0
"""Simulated seconds per episode."""

AIMS = {
    "lift": Thresholds(success=0.97, wrong=0.01),
    "stack": Thresholds(success=0.85, wrong=0.01),
    "put": Thresholds(success=0.85, wrong=0.01),
    "push": Thresholds(success=0.85, wrong=0.01),
}
EXPERT_AIM = Thresholds(success=0.95, wrong=0.05)


@dataclass(frozen=True)
class Condition:
    """What differs from the scenes that training saw. obstacles: how many things without a name; None as trained. The
    others as in EpisodeSettings."""

    looks: Looks = field(default_factory=Looks)
    obstacles: int | None = None
    latency: tuple[float, float] = (0.04, 0.12)
    dropped: float = 0.0
    executed: int = 1


CONDITIONS: dict[str, Condition] = {
    "as trained": Condition(),
    "light +-50 %": Condition(Looks(light=0.5, exact=True)),
    "camera 2 cm, 3 degrees": Condition(Looks(camera_shift=0.02, camera_turn=np.radians(3.0), exact=True)),
    "two distractors": Condition(obstacles=2),
    "latency 0 ms": Condition(latency=(0.0, 0.0)),
    "latency 150 ms": Condition(latency=(0.15, 0.15)),
    "latency 300 ms": Condition(latency=(0.30, 0.30)),
    "30 % of frames dropped": Condition(dropped=0.3),
}
"""The rows of the robustness table."""


def find_condition(name: str) -> Condition:
    """The condition of this name. Raises TaskError."""
    if name not in CONDITIONS:
        raise TaskError(f"condition {name!r}: there are {', '.join(map(repr, CONDITIONS))}.")
    return CONDITIONS[name]


@dataclass(frozen=True)
class TaskEpisode:
    """One episode of a task. result.instruction is the sentence; unseen: training never used it."""

    task: str
    result: EpisodeResult
    unseen: bool


def evaluate_task(
    task: str,
    agent: Agent | str | Path | None,
    seeds: Sequence[int],
    condition: Condition | None = None,
    robot: str = "panda",
    limit: float = TIME_LIMIT,
    blank: bool = False,
) -> list[TaskEpisode]:
    """One episode per seed; scene and sentence come from the seed. agent: a policy's session or its checkpoint; None is
    the scripted expert."""
    condition = condition or Condition()
    world = TaskWorld(seeds[0], blank_cameras=blank or agent is None, task=task, looks=condition.looks,
                      obstacles=condition.obstacles)
    settings = EpisodeSettings(latency=condition.latency, limit=limit, dropped=condition.dropped,
                               executed=condition.executed)
    loop = build_loop(world, robot, settings)
    driver = ExpertSession(world) if agent is None else load_agent(agent)
    episodes = []
    for seed in seeds:
        world.reset(seed)
        words = world.sentence
        outcome = loop.run(driver, [(0.0, words)], np.random.default_rng((seed, 2)))
        result = EpisodeResult(words, "blanked" if blank else "named", seed, outcome.success, outcome.wrong,
                               outcome.time_to_success, outcome.chunks, outcome.refusals)
        episodes.append(TaskEpisode(task, result, is_unseen(words)))
    world.close()
    return episodes


def load_agent(agent: Agent | str | Path) -> Agent:
    """A session of the checkpoint; a session as it is."""
    if not isinstance(agent, str | Path):
        return agent
    from robovlms_ros.policy.checkpoint import load_policy

    return load_policy(find_checkpoint(agent)).new_session()


def rows(episodes: Sequence[TaskEpisode], aims: Mapping[str, Thresholds] | None = None) -> list[Row]:
    """One row per task and condition, in order of first appearance, against the task's aim."""
    aims = aims or AIMS
    tasks = [task for task in TASKS if any(e.task == task for e in episodes)]
    return [row for task in tasks for row in summarise(
        [replace(e.result, instruction=task) for e in episodes if e.task == task], aims[task])]


def paraphrases(episodes: Sequence[TaskEpisode]) -> list[dict[str, Any]]:
    """Per task, and over all, the success with sentences that training used and with those that it never did."""
    table = []
    for task in (*TASKS, "all"):
        for unseen in (False, True):
            group = [e.result for e in episodes
                     if task in (e.task, "all") and e.unseen == unseen and e.result.condition == "named"]
            if group:
                count = sum(result.success for result in group)
                table.append({"task": task, "sentences": "unseen" if unseen else "trained", "n": len(group),
                              "success": count, "ci95": list(wilson_interval(count, len(group)))})
    return table
