"""Instructions of the tabletop tasks: goals, their phrasings, and back. No
simulator is imported.

Every task has paraphrases that training uses and paraphrases that it never does; the latter are
made of words that trained sentences use, so that a policy with a small vocabulary knows their words
at all.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.sim.tasks.objects import PLATES, THINGS, shape_of


class TaskError(RoboVLMsError):
    """An instruction, a task or a scene is not one of the simulator's."""


@dataclass(frozen=True)
class Goal:
    """A goal. task: `lift`, `stack`, `put` or `push`. place: a thing or a plate; empty
    for `lift`."""

    task: str
    thing: str
    place: str = ""


@dataclass(frozen=True)
class Phrases:
    """Phrasings of one task, `{thing}` and `{place}` in them."""

    trained: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return self.trained + self.unseen


PHRASES = {
    "lift": Phrases(
        ("lift the {thing}", "pick up the {thing}", "take the {thing} and lift it", "raise the {thing} up",
         "lift the {thing} up", "lift up the {thing}", "take the {thing} and raise it",
         "pick up the {thing} and lift it"),
        ("pick the {thing} up", "raise the {thing}"),
    ),
    "stack": Phrases(
        ("stack the {thing} on the {place}", "put the {thing} on top of the {place}",
         "place the {thing} on the {place}", "pick up the {thing} and stack it on the {place}",
         "place the {thing} on top of the {place}", "stack the {thing} onto the {place}",
         "take the {thing} and stack it on top of the {place}", "take the {thing} and put it on top of the {place}"),
        ("stack the {thing} on top of the {place}", "pick up the {thing} and place it on top of the {place}"),
    ),
    "put": Phrases(
        ("put the {thing} on the {place}", "place the {thing} on the {place}",
         "pick up the {thing} and put it on the {place}", "lift the {thing} onto the {place}",
         "put the {thing} onto the {place}", "take the {thing} and place it on the {place}",
         "lift the {thing} and put it on the {place}", "pick the {thing} up and put it on the {place}"),
        ("pick up the {thing} and place it on the {place}", "take the {thing} and put it on the {place}"),
    ),
    "push": Phrases(
        ("push the {thing} to the {place}", "slide the {thing} onto the {place}",
         "push the {thing} over to the {place}", "slide the {thing} over to the {place}",
         "push the {thing} over onto the {place}", "slide the {thing} over onto the {place}",
         "take the {thing} and push it to the {place}", "take the {thing} and slide it onto the {place}"),
        ("push the {thing} onto the {place}", "slide the {thing} to the {place}"),
    ),
}
TASKS = tuple(PHRASES)
INSTRUCTIONS = {f"lift the {name}": Goal("lift", name) for name in ("red cube", "green cube")}
"""The two sentences of the scenes with two cubes."""
LABELLED = 6
"""Goals of its scene that a recorded frame is labelled under."""


def goals() -> tuple[Goal, ...]:
    """Every goal, whatever the scene."""
    cubes = [name for name in THINGS if shape_of(name) == "cube"]
    steady = [name for name in THINGS if shape_of(name) != "ball"]
    return (
        *(Goal("lift", thing) for thing in THINGS),
        *(Goal("stack", thing, place) for thing, place in product(steady, cubes) if thing != place),
        *(Goal("put", thing, place) for thing, place in product(THINGS, PLATES)),
        *(Goal("push", thing, place) for thing, place in product(steady, PLATES)),
    )


def phrased(goal: Goal, phrase: str) -> str:
    """The instruction, by one of the task's phrases."""
    return phrase.format(thing=goal.thing, place=goal.place)


def instructions(goal: Goal, unseen: bool = False) -> tuple[str, ...]:
    """Every phrasing of it that training uses, or every one that it does not."""
    phrases = PHRASES[goal.task]
    return tuple(phrased(goal, phrase) for phrase in (phrases.unseen if unseen else
    phrases.trained))


def paraphrase(goal: Goal, seed: int) -> str:
    """One of all its phrasings, drawn by the scene's seed, for each goal anew."""
    sentences = [sentence for kind in (False, True) for sentence in instructions(goal, kind)]
    return sentences[int(np.random.default_rng((seed, 4, goals().index(goal))).integers(len(sentences)))]


@lru_cache(maxsize=1)
def _meanings() -> dict[str, Goal]:
    return {phrased(goal, phrase): goal for goal in goals() for phrase in PHRASES[goal.task].all}


def meaning(instruction: str) -> Goal:
    """Goal of an instruction. Raises TaskError for a sentence that no task has."""
    found = _meanings().get(instruction)
    if found is None:
        known = ", ".join(repr(phrases.trained[0]) for phrases in PHRASES.values())
        raise TaskError(
            f"instruction {instruction!r}: no tabletop task is asked for in these words. Say it like {known}, of "
            f"{', '.join(THINGS)} and {', '.join(PLATES)}."
        )
    return found


def is_unseen(instruction: str) -> bool:
    """True if training never uses this sentence."""
    return instruction in instructions(meaning(instruction), unseen=True)


def vocabulary() -> tuple[str, ...]:
    """Every word of the trained sentences, in a fixed order."""
    sentences = [sentence for goal in goals() for sentence in instructions(goal)]
    return tuple(dict.fromkeys(word for sentence in sentences for word in sentence.split()))
