"""One case: every way built, warmed up, timed in turn, its operations counted and its answers
compared."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from robovlms_ros.bench.policy.cases import Case, SyntheticFrames, verification_frames
from robovlms_ros.bench.policy.models import build, size_of
from robovlms_ros.bench.policy.results import PolicyRow
from robovlms_ros.bench.policy.timing import (
    Alternating,
    Ceilings,
    StageClock,
    busy_share,
    count,
    roofline,
    synchronize,
)
from robovlms_ros.bench.policy.variants import (
    WARM_UP,
    Answers,
    InferenceVariant,
    countable,
    is_own,
    make_way,
    options_of,
    recorded,
)
from robovlms_ros.inference.optimized.quantization import largest_inputs
from robovlms_ros.inference.optimized.shared_stages import release_stages
from robovlms_ros.inference.optimized.verification import Verifier, frames_to_verify
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.vla_policy import VLAPolicy

MOST_STEPS = 40  # of one way in one round
OUTPUT_GAIN = 8.0
CALIBRATION_FRAMES = 5


@dataclass(frozen=True)
class Effort:
    """rounds: interleaved ones. seconds: of one way, all rounds together; at least a step a round,
    at most MOST_STEPS.
    warm_up: steps that do not count, of the package's own paths (others need one). consecutive:
    steps of each of the package's own paths one after the other, of which p50 and p99 are taken,
    for at most `consecutive_seconds`; 0 takes them from the rounds, where each first step follows
    another path. verify: the verification judges each fast path."""

    rounds: int = 7
    seconds: float = 0.0
    warm_up: int = WARM_UP
    consecutive: int = 0
    consecutive_seconds: float = 12.0
    verify: bool = False


def measure(
    case: Case,
    device: torch.device,
    ceilings: Ceilings,
    paths: tuple[str, ...],
    effort: Effort,
    robots: int = 1,
    failed: Callable[[str, Exception], None] | None = None,
    kept: Callable[[list[PolicyRow]], None] | None = None,
) -> list[PolicyRow]:
    """A row per path, in their order. Ratios are to the first path, differences from `plain` (else
    from the first).

    robots: so many sessions stepped together, with the paths `fast` and `plain`; times are of one
        step of all.
    failed: is given a path that raised, and its error; the other paths go on. Without it the error
        is raised. kept: is given the rows as soon as their times are there, before operations are
        counted and answers verified.
    """
    policy = build(case, device)
    frames = SyntheticFrames(policy.config.cameras)
    if any("fp8" in name for name in paths):
        policy.fp8_scales = _calibrated(policy, frames)
    answers: dict[str, Answers] = {name: {} for name in paths}
    ways: dict[str, InferenceVariant] = {}
    peaks: dict[str, int | None] = {}
    alternating = Alternating({}, device)
    tries = _Tries(failed, alternating, ways)
    for name in paths:
        with tries.of(name):
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
            peaks[name] = (
                None
                if before is None
                else torch.cuda.max_memory_allocated(device) - before + (own or 0)
            )
    _rounds(alternating, effort, tries)
    reference = answers["plain" if "plain" in ways else next(iter(ways), paths[0])]
    rows: dict[str, PolicyRow] = {}
    first = next(iter(ways), "")
    for name, way in list(ways.items()):
        with tries.of(name):
            steps = np.concatenate([np.array(times) for times in alternating.times[name]])
            if effort.consecutive and is_own(name):
                steps = np.array(
                    alternating.run(name, effort.consecutive, effort.consecutive_seconds)
                )
            p50 = float(np.median(steps))
            rows[name] = PolicyRow(
                case=case,
                path=name,
                p50=p50,
                p99=float(np.percentile(steps, 99)),
                steps=len(steps),
                images_per_second=robots * case.cameras / p50,
                peak_bytes=peaks[name],
                shares={},
                flops=0,
                bytes=0,
                roofline=0.0,
                ratio=_ratio(alternating, name, first),
                difference=_difference(answers[name], reference),
                parameters=size_of(policy),
                sessions=robots,
                description=way.description,
            )
    if kept is not None:
        kept(list(rows.values()))
    for name, row in rows.items():
        with tries.of(name, drop=False):
            way = ways[name]
            index = alternating.next[name]
            shares = StageClock(device).shares_of(partial(way.step, index))
            counted = countable(way, name, policy, frames, robots)
            operations = count(_prepared(counted, way, index + 1, effort.warm_up))
            rows[name] = row = replace(
                row,
                shares=shares,
                flops=sum(op.flops for op in operations),
                bytes=sum(op.bytes for op in operations),
                roofline=roofline(operations, ceilings),
                busy=busy_share(partial(way.step, index + 2), row.p50, device)
                if is_own(name)
                else None,
            )
    if effort.verify:
        _verify(rows, policy, device, tries)
    return list(rows.values())


def _calibrated(policy: VLAPolicy, frames: SyntheticFrames) -> dict[str, float]:
    session = PolicySession(policy)
    with largest_inputs(policy.vlm.text_tower) as found:
        for index in range(CALIBRATION_FRAMES):
            session.predict_action_chunk(frames[index])
    return found


class _Tries:
    """Runs pieces of a measurement by path: an error takes its path out, not the others."""

    def __init__(
        self,
        failed: Callable[[str, Exception], None] | None,
        alternating: Alternating,
        ways: dict[str, InferenceVariant],
    ):
        self._failed = failed
        self._alternating = alternating
        self._ways = ways

    @contextmanager
    def of(self, name: str, drop: bool = True) -> Iterator[None]:
        """The block is path `name`'s. drop: its later pieces are left out after an error."""
        try:
            yield
        # Of a driver, a compiler, another library's new version: whatever it is, the other paths'
        # times are worth keeping.
        except Exception as error:
            if self._failed is None:
                raise
            self._failed(name, error)
            if drop:
                self._ways.pop(name, None)
                self._alternating.ways.pop(name, None)


def _verify(
    rows: dict[str, PolicyRow], policy: VLAPolicy, device: torch.device, tries: "_Tries"
) -> None:
    """The verification's verdict on every fast path, with an output gain: random heads answer near
    zero, trained ones do not."""
    own = [(name, options_of(name, device.type)) for name in rows if is_own(name)]
    judged = {name: options for name, options in own if options is not None}
    if not judged:
        return
    with tries.of(next(iter(judged)), drop=False):
        with torch.no_grad():
            for mlp in (policy.head.actions, policy.head.gripper):
                mlp.mlp[-1].weight.mul_(OUTPUT_GAIN)
        release_stages(policy)
        count = frames_to_verify(policy.config.model.history_length, device.type)
        verifier = Verifier(policy, verification_frames(policy, count))
        for name, options in judged.items():
            verdict = verifier.verify(options)
            release_stages(policy)
            text = f"{'accepted' if verdict.accepted else 'REFUSED'}: {verdict.reason}"
            rows[name] = replace(rows[name], verdict=text)


def _rounds(alternating: Alternating, effort: Effort, tries: _Tries) -> None:
    """All rounds; how many steps each way makes follows from how long its warm steps take."""
    counts = dict.fromkeys(alternating.ways, 1)
    if effort.seconds:
        alternating.round_of(counts, attempt=tries.of)
        budget = effort.seconds / effort.rounds
        counts = {
            name: int(min(max(budget / alternating.times[name][0][0], 1), MOST_STEPS))
            for name in alternating.ways
        }
        for times in alternating.times.values():
            times.clear()
    for number in range(effort.rounds):
        alternating.round_of(counts, number, tries.of)


def _prepared(
    counted: InferenceVariant, way: InferenceVariant, index: int, warm_up: int
) -> Callable[[], object]:
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
