"""Closed-loop results: episodes in, one table, one JSON, one verdict out.

An episode is one instruction in one scene. A row gathers the episodes of one instruction under one
condition: `named` (the scene's own instruction), `swapped` (the same scenes, the other instruction:
an arm that follows the scene and not the words fails here) and `blanked` (both cameras black: an
arm that does not look must not succeed).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from robovlms_ros.core.statistics import percentile, wilson_interval
from robovlms_ros.core.text_table import aligned

Condition = Literal["named", "swapped", "blanked"]

STRICT_FROM = 20
"""Rows with fewer episodes miss a threshold only when their 95 % interval excludes it."""


@dataclass(frozen=True)
class EpisodeResult:
    """Result of one episode. time_to_success: simulated s from the instruction, None without
    success. why: what the judge calls the failure, in a word or two; empty with success. taken:
    what was taken in the named thing's place."""

    instruction: str
    condition: Condition
    seed: int
    success: bool
    wrong: bool
    time_to_success: float | None
    chunks: int
    refusals: int = 0
    why: str = ""
    taken: str = ""


@dataclass(frozen=True)
class ClosedLoopThresholds:
    """Aims of a run; fractions. `blanked_success` is an upper bound."""

    success: float = 0.90
    wrong: float = 0.05
    blanked_success: float = 0.20


@dataclass(frozen=True)
class ClosedLoopRow:
    """The episodes of one instruction under one condition: counts, and fractions with 95 % Wilson
    intervals."""

    instruction: str
    condition: Condition
    n: int
    success: int
    wrong: int
    ci95: tuple[float, float]
    wrong_ci95: tuple[float, float]
    time_to_success_p50: float | None
    chunks: int
    refusals: int
    missed: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The row as the JSON report has it: `success` and `wrong` are counts out of `n`."""
        return {
            "instruction": self.instruction, "condition": self.condition, "n": self.n, "success": self.success,
            "wrong": self.wrong, "ci95": list(self.ci95), "wrong_ci95": list(self.wrong_ci95),
            "time_to_success_p50": self.time_to_success_p50, "chunks": self.chunks, "refusals": self.refusals,
            "missed": list(self.missed),
        }


def summarise(
    episodes: Sequence[EpisodeResult], thresholds: ClosedLoopThresholds = ClosedLoopThresholds()
) -> list[ClosedLoopRow]:
    """One row per instruction and condition, in order of first appearance."""
    groups: dict[tuple[Condition, str], list[EpisodeResult]] = {}
    for episode in episodes:
        groups.setdefault((episode.condition, episode.instruction), []).append(episode)
    return [_row(instruction, condition, group, thresholds) for (condition, instruction), group in groups.items()]


def _row(
    instruction: str, condition: Condition, group: list[EpisodeResult], thresholds: ClosedLoopThresholds
) -> ClosedLoopRow:
    n = len(group)
    success = sum(e.success for e in group)
    wrong = sum(e.wrong for e in group)
    times = [e.time_to_success for e in group if e.time_to_success is not None]
    ci95 = wilson_interval(success, n)
    wrong_ci95 = wilson_interval(wrong, n)
    missed = []
    if condition == "blanked":
        if _above(success, n, ci95, thresholds.blanked_success):
            missed.append(f"success above {thresholds.blanked_success:.0%} without cameras")
    else:
        if _below(success, n, ci95, thresholds.success):
            missed.append(f"success below {thresholds.success:.0%}")
        if _above(wrong, n, wrong_ci95, thresholds.wrong):
            missed.append(f"wrong object above {thresholds.wrong:.0%}")
    return ClosedLoopRow(instruction, condition, n, success, wrong, ci95, wrong_ci95, percentile(times, 50),
               sum(e.chunks for e in group), sum(e.refusals for e in group), tuple(missed))


def _below(count: int, n: int, ci95: tuple[float, float], threshold: float) -> bool:
    return count / n < threshold if n >= STRICT_FROM else ci95[1] < threshold


def _above(count: int, n: int, ci95: tuple[float, float], threshold: float) -> bool:
    return count / n > threshold if n >= STRICT_FROM else ci95[0] > threshold


def report(rows: Sequence[ClosedLoopRow], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON report: rows, whatever the caller measured besides, and whether every threshold
    holds."""
    return {"rows": [row.as_json() for row in rows], **extra, "pass": not any(row.missed for row in rows)}


def failures(episodes: Sequence[EpisodeResult]) -> dict[str, dict[str, int]]:
    """Reasons of failed episodes: reason -> instruction -> count, the most frequent reason first.
    Blanked
    ones do not count: they are to fail."""
    counts: dict[str, Counter[str]] = {}
    for episode in episodes:
        if not episode.success and episode.condition != "blanked":
            counts.setdefault(episode.why, Counter())[episode.instruction] += 1
    return {why: dict(counts[why]) for why in sorted(counts, key=lambda why: (-counts[why].total(), why))}


def failure_table(counts: Mapping[str, Mapping[str, int]], title: str = "failed") -> str:
    """`failures` for a terminal: a line per reason, a column per instruction; empty without
    failures."""
    if not counts:
        return ""
    columns = list(dict.fromkeys(name for row in counts.values() for name in row))
    lines = [[why, *(str(row.get(name, "-")) for name in columns), str(sum(row.values()))]
             for why, row in counts.items()]
    return aligned([title, *columns, "all"], lines)


def table(rows: Sequence[ClosedLoopRow]) -> str:
    """The rows for a terminal, one line each, with 95 % intervals."""
    header = ["instruction", "condition", "success", "95 %", "wrong", "time to success", "chunks", "refused"]
    return aligned(header, [[
        row.instruction, row.condition, f"{row.success}/{row.n}", f"{row.ci95[0]:.0%} to {row.ci95[1]:.0%}",
        f"{row.wrong}/{row.n}", "-" if row.time_to_success_p50 is None else f"{row.time_to_success_p50:.1f} s",
        str(row.chunks), str(row.refusals),
    ] for row in rows])
