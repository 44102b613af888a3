"""One case: every way built, warmed up, timed in turn, its operations counted and its answers
compared."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from robovlms_ros.bench.policy.cases import Case, SyntheticFrames
from robovlms_ros.bench.policy.models import build, size_of
from robovlms_ros.bench.policy.results import PolicyRow
from robovlms_ros.bench.policy.timing import Alternating, Ceilings, StageClock, count, roofline, synchronize
from robovlms_ros.bench.policy.variants import (
    WARM_UP,
    Answers,
    InferenceVariant,
    countable,
    is_own,
    make_way,
    recorded,
)
from robovlms_ros.models.vla_policy import VLAPolicy

MOST_STEPS = 40  # of one way in one round


@dataclass(frozen=True)
class Effort:
    """rounds: interleaved ones. seconds: of one way, all rounds together; at least a step a round,
    at most MOST_STEPS.
    warm_up: steps that do not count, of the package's own paths (others need one)."""

    rounds: int = 7
    seconds: float = 0.0
    warm_up: int = WARM_UP


def measure(case: Case, device: torch.device, ceilings: Ceilings, paths: tuple[str, ...], effort: Effort,
            robots: int = 1) -> list[PolicyRow]:
    """A row per path, in their order. Ratios are to the first path, differences from `plain` (else
    from the first).

    robots: so many sessions stepped together, with the paths `fast` and `plain`; times are of one
        step of all.
    """
    policy = build(case, device)
    frames = SyntheticFrames(policy.config.cameras)
    answers: dict[str, Answers] = {name: {} for name in paths}
    ways: dict[str, InferenceVariant] = {}
    peaks: dict[str, int | None] = {}
    alternating = Alternating({}, device)
    for name in paths:
        weights = _allocated(device, policy)
        before = _allocated(device, None)
        ways[name] = make_way(name, policy, frames, robots)
        if before is not None:
            # a copy of the weights in another precision is made by now
            torch.cuda.reset_peak_memory_stats(device)
        alternating.ways[name] = recorded(ways[name], answers[name])
        alternating.next[name], alternating.times[name] = 0, []
        alternating.warm_up(name, effort.warm_up if is_own(name) else 1)
        own = weights if ways[name].policy is policy else 0
        peaks[name] = None if before is None else torch.cuda.max_memory_allocated(device) - before + (own or 0)
    _rounds(alternating, effort)
    reference = answers["plain" if "plain" in paths else paths[0]]
    rows = []
    for name in paths:
        steps = np.concatenate([np.array(times) for times in alternating.times[name]])
        index = alternating.next[name]
        shares = StageClock(device).shares_of(partial(ways[name].step, index))
        counted = countable(ways[name], name, policy, frames, robots)
        operations = count(_prepared(counted, ways[name], index + 1, effort.warm_up))
        p50 = float(np.median(steps))
        rows.append(PolicyRow(
            case=case, path=name, p50=p50, p99=float(np.percentile(steps, 99)), steps=len(steps),
            images_per_second=robots * case.cameras / p50, peak_bytes=peaks[name], shares=shares,
            flops=sum(op.flops for op in operations), bytes=sum(op.bytes for op in operations),
            roofline=roofline(operations, ceilings), ratio=_ratio(alternating, name, paths[0]),
            difference=_difference(answers[name], reference), parameters=size_of(policy), sessions=robots,
            description=ways[name].description,
        ))
    return rows


def _rounds(alternating: Alternating, effort: Effort) -> None:
    """All rounds; how many steps each way makes follows from how long its warm steps take."""
    counts = dict.fromkeys(alternating.ways, 1)
    if effort.seconds:
        alternating.round(1)
        budget = effort.seconds / effort.rounds
        counts = {name: int(min(max(budget / t[0][0], 1), MOST_STEPS)) for name, t in alternating.times.items()}
        for times in alternating.times.values():
            times.clear()
    for number in range(effort.rounds):
        alternating.round_of(counts, number)


def _prepared(counted: InferenceVariant, way: InferenceVariant, index: int, warm_up: int) -> Callable[[], object]:
    """The step to count: the next one of a way that ran, or of its twin once it is warm."""
    if counted is way:
        return lambda: way.step(index)
    for i in range(warm_up):
        counted.step(i)
    return lambda: counted.step(warm_up)


def _ratio(alternating: Alternating, name: str, first: str) -> float:
    """Median over the rounds of this way's mean step over the first way's in the same round."""
    pairs = zip(alternating.times[name], alternating.times[first], strict=True)
    return float(np.median([np.mean(mine) / np.mean(other) for mine, other in pairs]))


def _difference(mine: Answers, reference: Answers) -> float:
    common = mine.keys() & reference.keys()
    return max(float(np.abs(mine[i] - reference[i]).max()) for i in common)


def _allocated(device: torch.device, policy: VLAPolicy | None) -> int | None:
    """Bytes of a policy's parameters and buffers, or all bytes that are in use on a GPU (the peak
    starts anew)."""
    if device.type != "cuda":
        return None
    if policy is not None:
        return sum(t.numel() * t.element_size() for t in [*policy.parameters(), *policy.buffers()])
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)

