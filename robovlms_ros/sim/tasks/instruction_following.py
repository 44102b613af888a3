"""One scene, every instruction that fits it: does the arm follow the words, or the scene?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from robovlms_ros.core.statistics import wilson_interval
from robovlms_ros.core.text_table import aligned
from robovlms_ros.sim.tasks.evaluate import TaskEpisode
from robovlms_ros.sim.tasks.language import TASKS


@dataclass(frozen=True)
class InstructionFollowing:
    """The scenes of one task that were asked for two things or more; fractions have 95 % Wilson intervals.

    obeyed: scenes in which every instruction was followed; refused: in which none was; mixed: the others, in which the
    outcome depends on the words. mixed_by_chance: how many would be mixed if each instruction failed as often as its
    task does, whatever the scene: fewer are mixed where scenes are hard as such, more where instructions compete.
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
    mixed, chance = n - obeyed - refused, 0.0
    for scene in scenes:
        every = none = 1.0
        for episode in scene:
            every, none = every * rates[episode.task], none * (1 - rates[episode.task])
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
