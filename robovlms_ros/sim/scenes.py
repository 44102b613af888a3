"""Scene after scene in the simulated arm, in simulated time and without ROS.

Scenes run in this process or in several of one torch thread each, with equal results. Finished
scenes are logged, one line each, so that an interrupted run resumes.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from robovlms_ros.core.resources import find_checkpoint
from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.sim.closed_loop import EpisodeResult
from robovlms_ros.sim.rollout import Agent, ClosedLoop, EpisodeSettings, ExpertSession, build_loop
from robovlms_ros.sim.tasks.base import CUBES
from robovlms_ros.sim.tasks.evaluate import AS_TRAINED, TIME_LIMIT, TaskCondition, TaskEpisode
from robovlms_ros.sim.tasks.language import INSTRUCTIONS, is_unseen, meaning, paraphrase
from robovlms_ros.sim.world import START_NS, SimWorld, WorldError

EASY_TIME_LIMIT = 10.0
"""Simulated seconds per episode of the two cubes."""


@dataclass(frozen=True)
class Scene:
    """One scene to run. task: of `base`; the two cubes have an instruction each. condition: a name
    among the settings'."""

    task: str
    seed: int
    condition: str = AS_TRAINED


@dataclass(frozen=True)
class BenchSettings:
    """Settings of every scene of a run. checkpoint: the policy; empty is the scripted expert.
    limit: simulated s per episode. blank: black images. every_goal: a tabletop scene is run
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
        self.settings = settings
        self._agent = agent
        self._loop: ClosedLoop | None = None
        if agent is None and settings.checkpoint:
            self._agent = load_agent(settings.checkpoint)

    def run(self, scene: Scene) -> list[TaskEpisode]:
        """The scene's episodes, one per instruction, each from the scene as the seed sets it up."""
        loop = self._loop_of(scene)
        condition = self.settings.conditions[scene.condition]
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
        # a later start would round differently, and grasps feel the last bit
        loop.world.time_ns = START_NS
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
    **settings: Any,
) -> list[TaskEpisode]:
    """One episode per seed, in this process. agent: a policy's session or its checkpoint; None
    is the scripted expert. task: of `base`; the two cubes have an episode per instruction.
    settings: fields of BenchSettings."""
    chosen = BenchSettings(**settings)
    if isinstance(agent, str | Path):
        chosen = replace(chosen, checkpoint=str(agent))
        agent = None
    bench = Bench(chosen, agent)
    try:
        return [episode for seed in seeds for episode in bench.run(Scene(task, seed))]
    finally:
        bench.close()


Done = tuple[Scene, list[TaskEpisode]]

_bench: Bench | None = None
"""The one of a worker process."""


def run_scenes(settings: BenchSettings, scenes: Sequence[Scene], jobs: int) -> Generator[Done, None, None]:
    """Each scene with its episodes, as it is done: with one job in this process and in order, else
    in any order.

    Close the generator to stop early; the scenes under way are then lost. Raises WorldError when a
    process is killed.
    """
    if min(jobs, len(scenes)) <= 1:
        yield from _in_this_process(settings, scenes)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(scenes)), context, _start)
    pending: dict[Future[list[TaskEpisode]], Scene] = {}
    waiting = iter(scenes)
    try:
        # No more than run at once: what has been handed over cannot be taken back when the user
        # stops.
        while True:
            for scene in islice(waiting, jobs - len(pending)):
                pending[pool.submit(_run, settings, scene)] = scene
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool as error:
        raise WorldError(
            f"one of {jobs} processes was killed, perhaps for want of memory: use fewer --jobs."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_this_process(settings: BenchSettings, scenes: Sequence[Scene]) -> Generator[Done, None, None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order are other sums
    bench = Bench(settings)
    try:
        for scene in scenes:
            yield scene, bench.run(scene)
    finally:
        bench.close()
        torch.set_num_threads(threads)


def _start() -> None:
    """In a new process: one torch thread, a quiet end with Ctrl-C, and with the parent, however
    that ends."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow the parent", daemon=True).start()


def _run(settings: BenchSettings, scene: Scene) -> list[TaskEpisode]:
    global _bench
    if _bench is None:
        _bench = Bench(settings)
    return _bench.run(scene)


FORMAT = 1
_WEIGHED = (".json", ".yaml", ".yml", ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".model")
"""Endings of the files that make a checkpoint what it is."""


class LogError(RoboVLMsError):
    """A log of episodes belongs to another run, or is not one."""


class EpisodeLog:
    """Append-only. identity: what must be the same, name -> value; `done` is what the file already
    holds.

    Raises LogError for a log of another run.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.done: dict[Scene, list[TaskEpisode]] = {}
        identity = json.loads(json.dumps(identity))  # as a file gives it back: lists, not tuples
        begun = path.exists() and self._read(identity)
        self._file: IO[str] = path.open("a", encoding="utf-8")
        if not begun:
            self._write({"rollout": FORMAT, **identity})

    def add(self, scene: Scene, episodes: list[TaskEpisode]) -> None:
        """Keep a scene that is done; from now on a kill does not lose it."""
        self.done[scene] = episodes
        self._write({"task": scene.task, "seed": scene.seed, "condition": scene.condition,
                     "episodes": [episode.as_json() for episode in episodes]})

    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _read(self, identity: dict[str, Any]) -> bool:
        """True if there is a whole first line; a last line that a kill has cut off is taken
        away."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
            if rows:
                self._require_same(rows[0], identity)
            elif data and not data.startswith(b"{"):
                raise ValueError("it has no first line")
            for row in rows[1:]:
                episodes = [TaskEpisode.from_json(episode) for episode in row["episodes"]]
                self.done[Scene(row["task"], row["seed"], row["condition"])] = episodes
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LogError(
                f"{self.path}: not a log of episodes ({error}). Move it away, or name another --json."
            ) from error
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return bool(rows)

    def _require_same(self, head: dict[str, Any], identity: dict[str, Any]) -> None:
        if head.get("rollout") != FORMAT:
            raise ValueError(f"its first line has no 'rollout': {FORMAT}")
        for name, value in identity.items():
            if head.get(name) != value:
                raise LogError(
                    f"{self.path}: its episodes were run with {name} = {head.get(name)!r}, this command has {value!r}. "
                    "Name another --json, or delete the file to begin anew."
                )


def log_beside(report: Path) -> Path:
    """File of a JSON report's episodes."""
    return report.with_name(f"{report.stem}.episodes.jsonl")


def identity_of(settings: BenchSettings, latency: tuple[float, float] | None) -> dict[str, Any]:
    """Inputs of an episode besides its scene. latency: the one of every condition's
    place."""
    return {
        "checkpoint_sha256": checkpoint_digest(settings.checkpoint), "robot": settings.robot, "latency": latency,
        "time_limit": settings.limit, "blank": settings.blank, "every_goal": settings.every_goal,
    }


def checkpoint_digest(checkpoint: str) -> str:
    """A short digest of configuration, words and weights; empty for the expert. Raises LogError for
    what is not there."""
    if not checkpoint:
        return ""
    place = find_checkpoint(checkpoint)
    files = [place] if place.is_file() else sorted(p for p in place.glob("*") if p.suffix in _WEIGHED)
    if not files:
        raise LogError(f"{place}: no such checkpoint. Give a folder or file with one, or the name of a shipped one.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
