"""Conditions, aims and results of the tabletop tasks, and instruction following in one scene."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from robovlms_ros.core.statistics import wilson_interval
from robovlms_ros.core.text_table import aligned
from robovlms_ros.sim.closed_loop import ClosedLoopRow, ClosedLoopThresholds, EpisodeResult, summarise
from robovlms_ros.sim.tasks.domain_randomization import SceneAppearance
from robovlms_ros.sim.tasks.language import TASKS, TaskError, meaning
from robovlms_ros.sim.tasks.objects import shape_of

TIME_LIMIT = 14.0
"""Simulated seconds per episode of a tabletop task."""

AIMS = {
    "cubes": ClosedLoopThresholds(),
    "lift": ClosedLoopThresholds(success=0.97, wrong=0.01),
    "stack": ClosedLoopThresholds(success=0.85, wrong=0.01),
    "put": ClosedLoopThresholds(success=0.85, wrong=0.01),
    "push": ClosedLoopThresholds(success=0.85, wrong=0.01),
}
EXPERT_AIM = ClosedLoopThresholds(success=0.95, wrong=0.05)


@dataclass(frozen=True)
class TaskCondition:
    """Differences from the scenes of training. obstacles: how many things without a name;
    None as trained. The others as in EpisodeSettings."""

    looks: SceneAppearance = field(default_factory=SceneAppearance)
    obstacles: int | None = None
    latency: tuple[float, float] = (0.04, 0.12)
    dropped: float = 0.0
    executed: int = 1


AS_TRAINED = "as trained"
CONDITIONS: dict[str, TaskCondition] = {
    AS_TRAINED: TaskCondition(),
    "light +-50 %": TaskCondition(SceneAppearance(light=0.5, exact=True)),
    "camera 2 cm, 3 degrees": TaskCondition(
        SceneAppearance(camera_shift=0.02, camera_turn=np.radians(3.0), exact=True)
    ),
    "two distractors": TaskCondition(obstacles=2),
    "latency 0 ms": TaskCondition(latency=(0.0, 0.0)),
    "latency 150 ms": TaskCondition(latency=(0.15, 0.15)),
    "latency 300 ms": TaskCondition(latency=(0.30, 0.30)),
    "30 % of frames dropped": TaskCondition(dropped=0.3),
    "4 steps executed": TaskCondition(executed=4),
    "8 steps executed": TaskCondition(executed=8),
}
"""The rows of the robustness table. As trained, a chunk is replaced as soon as the next one is
there."""


def find_condition(name: str) -> TaskCondition:
    """The condition of this name. Raises TaskError."""
    if name not in CONDITIONS:
        raise TaskError(f"condition {name!r}: there are {', '.join(map(repr, CONDITIONS))}.")
    return CONDITIONS[name]


@dataclass(frozen=True)
class TaskEpisode:
    """One episode of a task. result.instruction is the sentence; unseen: training never used it.
    scene: the task whose scene it is; with `seed` it names the scene."""

    task: str
    result: EpisodeResult
    unseen: bool
    scene: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON form, the inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TaskEpisode":
        return cls(data["task"], EpisodeResult(**data["result"]), data["unseen"], data["scene"])


def rows(
    episodes: Sequence[TaskEpisode], aims: Mapping[str, ClosedLoopThresholds] | None = None
) -> list[ClosedLoopRow]:
    """One row per task and condition, in order of first appearance, against the task's aim."""
    aims = aims or AIMS
    tasks = [task for task in AIMS if any(e.task == task for e in episodes)]
    return [row for task in tasks for row in summarise(
        named_by_task([e for e in episodes if e.task == task]), aims[task])]


def named_by_task(episodes: Sequence[TaskEpisode]) -> list[EpisodeResult]:
    """The results with the task in the place of the sentence: what `closed_loop.failures` is to
    count by."""
    return [replace(e.result, instruction=e.task) for e in episodes]


def taken_instead(episodes: Sequence[TaskEpisode]) -> dict[str, dict[str, int]]:
    """Differences between the taken and the named object, of the episodes that failed by it:
    difference -> task -> count, the most frequent first. Those of a log that does not contain what
    was taken are `not kept`; blanked ones do not count."""
    counts: dict[str, Counter[str]] = {}
    for episode in episodes:
        result = episode.result
        if result.why == "wrong object" and result.condition != "blanked":
            counts.setdefault(_difference(result), Counter())[episode.task] += 1
    return {name: dict(counts[name]) for name in sorted(counts, key=lambda name: (-counts[name].total(), name))}


def _difference(result: EpisodeResult) -> str:
    if not result.taken:
        return "not kept"
    goal = meaning(result.instruction)
    if result.taken == goal.place:
        return "the thing to stack on"
    same_shape = shape_of(result.taken) == shape_of(goal.thing)
    same_colour = result.taken.split()[0] == goal.thing.split()[0]
    return "another colour" if same_shape else "another shape" if same_colour else "another colour and shape"


def paraphrases(episodes: Sequence[TaskEpisode]) -> list[dict[str, Any]]:
    """Per task, and over all, the success with sentences that training used and with those that it
    never did."""
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


@dataclass(frozen=True)
class InstructionFollowing:
    """The scenes of one task with two instructions or more; fractions have 95 % Wilson
    intervals.

    obeyed: scenes in which every instruction was followed; refused: in which none was; mixed: the
    others, in which the outcome depends on the words. mixed_by_chance: how many would be mixed if
    each instruction failed as often as its
    task does, whatever the scene: fewer are mixed where scenes are hard as such, more where
        instructions compete.
    """

    scene: str
    scenes: int
    instructions: int
    obeyed: int
    refused: int
    mixed: int
    obeyed_ci95: tuple[float, float]
    mixed_ci95: tuple[float, float]
    mixed_by_chance: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def obedience(episodes: Sequence[TaskEpisode]) -> list[InstructionFollowing]:
    """One row per task whose scenes were run, and one over all of them."""
    rates = {}
    for task in TASKS:
        group = [e.result.success for e in episodes if e.task == task]
        rates[task] = sum(group) / max(len(group), 1)
    found: dict[tuple[str, int], list[TaskEpisode]] = {}
    for episode in episodes:
        found.setdefault((episode.scene, episode.result.seed), []).append(episode)
    scenes = {key: group for key, group in found.items() if len(group) > 1}
    names = [task for task in TASKS if any(scene == task for scene, _ in scenes)]
    rows = [_row(name, [group for (scene, _), group in scenes.items() if scene == name], rates) for name in names]
    return rows if len(rows) < 2 else [*rows, _row("all", list(scenes.values()), rates)]


def _row(name: str, scenes: list[list[TaskEpisode]], rates: dict[str, float]) -> InstructionFollowing:
    n = len(scenes)
    obeyed = sum(all(e.result.success for e in scene) for scene in scenes)
    refused = sum(not any(e.result.success for e in scene) for scene in scenes)
    mixed = n - obeyed - refused
    chance = 0.0
    for scene in scenes:
        every = none = 1.0
        for episode in scene:
            every = every * rates[episode.task]
            none = none * (1 - rates[episode.task])
        chance += 1 - every - none
    return InstructionFollowing(name, n, sum(map(len, scenes)), obeyed, refused, mixed, wilson_interval(obeyed, n),
                     wilson_interval(mixed, n), chance)


def obedience_table(rows: Sequence[InstructionFollowing]) -> str:
    """The rows for a terminal."""
    header = ["scenes of", "instructions", "obeyed", "95 %", "none followed", "depends on the words", "by chance"]
    return aligned(header, [[
        row.scene, f"{row.instructions} in {row.scenes}", f"{row.obeyed}/{row.scenes}",
        f"{row.obeyed_ci95[0]:.0%} to {row.obeyed_ci95[1]:.0%}", f"{row.refused}/{row.scenes}",
        f"{row.mixed}/{row.scenes} ({row.mixed_ci95[0]:.0%} to {row.mixed_ci95[1]:.0%})", f"{row.mixed_by_chance:.1f}",
    ] for row in rows])
