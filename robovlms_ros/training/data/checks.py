"""Faults of a data set for training, and its composition: one pass over its numbers."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from robovlms_ros.config.action import ActionConfig
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.training.data.episodes import (
    Array,
    DataError,
    EpisodeArrays,
    EpisodeSource,
    Flaw,
    require_action,
)
from robovlms_ros.training.data.joint_ranges import JointRange, joint_ranges, range_flaws
from robovlms_ros.training.data.sources.lerobot_data import BOTH_READINGS, is_percent_or_degrees
from robovlms_ros.training.data.statistics import Running

STILL = {"m": 1e-3, "rad": 2e-3}
"""An arm that moves less than this in a whole episode does not move."""
FAST = {"m": 3.0, "rad": 12.0}
"""m/s and rad/s that no arm reaches: at such speeds the numbers are not metres and radians."""
FAR = {"m": 10.0, "rad": 4 * np.pi}
"""Positions and angles that no arm takes."""
LIKELY = {"m": "millimetres? Then scale by 0.001", "rad": "degrees? Then scale by 0.017453. Percent of a range? Then "
          "scale and offset of each joint"}
HISTOGRAM_ROWS = 200_000
SHOWN_EACH = 5


@dataclass
class Summary:
    """Composition of a data set. rows: (N, D) a sample of the actions, SI; lengths: steps of each
    episode.

    gripper_moves: episodes in which it opens or closes. rate_hz: measured, the median over all
        steps. ranges: of joint targets against the robot's limits, where both are known.
    """

    names: tuple[str, ...]
    episodes: int = 0
    steps: int = 0
    rate_hz: float = 0.0
    lengths: list[int] = field(default_factory=list)
    instructions: Counter[str] = field(default_factory=Counter)
    gripper_moves: int = 0
    rows: Array = field(default_factory=lambda: np.empty((0, 0)))
    low: Array | None = None
    high: Array | None = None
    mean: Array | None = None
    std: Array | None = None
    ranges: tuple[JointRange, ...] = ()


def check_data(
    source: EpisodeSource,
    config: PolicyConfig,
    accept: Sequence[str] = (),
    robot: RobotSpec | None = None,
) -> tuple[tuple[Flaw, ...], Summary]:
    """The flaws of the recordings and of their numbers, those that forbid training first, and the
    summary.

    accept: kinds of flaws that do not forbid training, besides those that the source accepts.
    robot: its limits are compared with joint targets; None compares nothing. Reads no image; never
        raises for what is wrong with the data.
    """
    require_action(config)
    assert config.action is not None
    action = config.action
    horizon = config.model.action_chunk_size
    flaws = list(source.flaws)
    summary = Summary(action.names)
    running = Running()
    intervals = []
    sample = []
    for i in range(len(source)):
        try:
            arrays = source.arrays(i)
        except DataError as error:
            flaws.append(Flaw("unreadable", source.origin(i), str(error), "repair or exclude it", refuse=True))
            continue
        found = list(_episode_flaws(arrays, action, horizon))
        flaws += found
        _count(summary, arrays)
        intervals.append(np.diff(arrays.stamps_ns))
        if np.isfinite(arrays.actions).all():
            running.add(arrays.actions)
            sample.append(arrays.actions.astype(np.float32))
    moved = np.concatenate(intervals) if intervals else np.empty(0)
    summary.rate_hz = float(NANOSECONDS / np.median(moved)) if len(moved) and np.median(moved) > 0 else 0.0
    if running.low is not None:
        rows = np.concatenate(sample)
        summary.rows = rows[:: max(len(rows) // HISTOGRAM_ROWS, 1)].astype(np.float64)
        summary.low = running.low
        summary.high = running.high
        summary.mean = running.mean
        summary.std = running.std
    flaws += _set_flaws(summary)
    if robot is not None:
        summary.ranges = joint_ranges(action, summary.low, summary.high, robot)
        flaws += range_flaws(summary.ranges, robot.name)
    flaws += _word_flaws(summary, config.vlm.vocabulary)
    return in_order(flaws, (*source.accept, *accept)), summary


def in_order(flaws: Iterable[Flaw], accept: Sequence[str]) -> tuple[Flaw, ...]:
    """Flaws that forbid training first; accepted kinds do not."""
    judged = (dataclasses.replace(flaw, refuse=flaw.refuse and flaw.kind not in accept) for flaw in flaws)
    return tuple(sorted(judged, key=lambda flaw: not flaw.refuse))


def require_trainable(flaws: Sequence[Flaw]) -> None:
    """Raise DataError with the flaws that forbid training, at most five of each kind."""
    refused = [flaw for flaw in flaws if flaw.refuse]
    if not refused:
        return
    lines = []
    seen = Counter[str]()
    for flaw in refused:
        seen[flaw.kind] += 1
        if seen[flaw.kind] <= SHOWN_EACH:
            lines.append(f"- {flaw.where}: {flaw.text}. Remedy: {flaw.remedy}.")
    lines += [f"- and {count - SHOWN_EACH} more of kind '{kind}'" for kind, count in seen.items() if count > SHOWN_EACH]
    kinds = ", ".join(seen)
    lines += [f"Leave episodes out with `data: {{exclude: [NAME]}}`; what is as it should be is let through with "
              f"`data: {{accept: [{kinds}]}}`."]
    raise DataError(f"the data would train badly ({len(refused)} reasons):\n" + "\n".join(lines))


def _count(summary: Summary, arrays: EpisodeArrays) -> None:
    summary.episodes += 1
    summary.steps += len(arrays)
    summary.lengths.append(len(arrays))
    summary.instructions[arrays.instruction] += 1
    opened = arrays.actions[:, -1] > 0.5
    summary.gripper_moves += bool(opened.any() and not opened.all())


def _episode_flaws(arrays: EpisodeArrays, action: ActionConfig, horizon: int) -> Iterator[Flaw]:
    where = arrays.source
    step = action.step_duration
    if len(arrays) < horizon:
        yield Flaw("short", where, f"{len(arrays)} steps, a chunk is {horizon}", "exclude it, or predict fewer steps",
                   refuse=True)
    if not arrays.instruction.strip():
        yield Flaw("instruction", where, "it has no instruction", "say what was done, or exclude it", refuse=True)
    yield from _clock_flaws(arrays, step)
    values = arrays.actions if arrays.chunks is None or arrays.known is None else \
        np.where(arrays.known[..., None], arrays.chunks, 0.0)
    faults = np.argwhere(~np.isfinite(values.reshape(len(arrays), -1, values.shape[-1])))
    if len(faults):
        t, _, d = faults[0]
        yield Flaw("nan", where, f"{len(faults)} actions are not finite, the first is '{action.names[d]}' at step {t} "
                   f"({t * step:.2f} s)", "repair what recorded them, or exclude it", refuse=True)
        return
    yield from _motion_flaws(arrays, action)


def _clock_flaws(arrays: EpisodeArrays, step: float) -> Iterator[Flaw]:
    intervals = np.diff(arrays.stamps_ns) / NANOSECONDS
    if (intervals < 0).any() or (len(intervals) and np.mean(intervals == 0) > 0.5):
        # some frames may be held where the user raised the tolerance
        t = int(np.argmax(intervals <= 0))
        yield Flaw("clock", arrays.source, f"the clock goes from {intervals[:t].sum():.2f} s to "
                   f"{intervals[:t + 1].sum():.2f} s at step {t + 1}", "record with one clock, or exclude it",
                   refuse=True)
    elif len(intervals) and intervals.max() > 2.5 * step:
        t = int(np.argmax(intervals))
        yield Flaw("gap", arrays.source, f"{intervals[t]:.2f} s without a frame after step {t}, where a step is "
                   f"{step:g} s", "split it there, or exclude it", refuse=True)


def _motion_flaws(arrays: EpisodeArrays, action: ActionConfig) -> Iterator[Flaw]:
    """Standing still, and numbers that cannot be metres and radians."""
    delta = action.space.endswith("_delta")
    step = action.step_duration
    still = True
    for columns, unit, what in _groups(action):
        values = arrays.actions[:, columns]
        motion = values if delta else np.diff(values, axis=0)
        if what == "rotation" and not delta:
            motion = motion[:0]  # three angles of a pose jump where they wrap
        places = np.cumsum(values, axis=0) if delta else values
        reach = float(np.ptp(np.concatenate([0 * places[:1], places]) if delta else places, axis=0).max())
        still = still and reach < STILL[unit]
        speed = float(np.quantile(np.abs(motion).max(axis=1), 0.95)) / step if len(motion) else 0.0
        far = 0.0 if delta else float(np.abs(values).max())
        if speed > FAST[unit] or far > FAR[unit]:
            seen = f"moves at {speed:.3g} {unit}/s" if speed > FAST[unit] else f"is at {far:.3g} {unit}"
            likely = f"recorded as {BOTH_READINGS}" if unit == "rad" and is_percent_or_degrees(arrays.robot_type) \
                else LIKELY[unit]
            yield Flaw("units", arrays.source, f"the {what} {seen}, as no arm does: {likely}",
                       "say what the numbers are (docs/training_data.md), or repair the recording", refuse=True)
    if still:
        yield Flaw("static", arrays.source, "the arm does not move in it", "exclude it, or check which commands were "
                   "recorded", refuse=True)


def _groups(action: ActionConfig) -> list[tuple[list[int], str, str]]:
    """(columns, unit, name) of what is measured alike."""
    if action.space.startswith("eef"):
        return [([0, 1, 2], "m", "translation"), ([3, 4, 5], "rad", "rotation")]
    return [(list(range(len(action.names) - 1)), "rad", "arm's joints")]


def _word_flaws(summary: Summary, vocabulary: Sequence[str]) -> Iterator[Flaw]:
    """A note about words of the instructions that a word-level tokenizer lacks: training refuses
    them where the prompt does not add them."""
    words = dict.fromkeys(word for text in summary.instructions for word in text.replace("?", " ").split())
    missing = [word for word in words if word not in vocabulary]
    if vocabulary and missing:
        names = printable(", ".join(repr(word) for word in missing))
        yield Flaw("words", "all episodes", f"vlm.vocabulary lacks {names}", "list every word of the instructions "
                   "there, upper and lower case as recorded")


def _set_flaws(summary: Summary) -> Iterator[Flaw]:
    if not summary.episodes:
        return
    still = summary.episodes - summary.gripper_moves
    if not summary.gripper_moves:
        seen = ""
        if summary.low is not None and summary.high is not None:
            seen = (f": its opening goes from {summary.low[-1]:.2f} to {summary.high[-1]:.2f} of its stroke, and it is "
                    "open above 0.5")
        yield Flaw("gripper", "all episodes", f"the gripper never opens or closes{seen}", "check the gripper's topic "
                   "or column and its open and closed positions", refuse=True)
    elif still:
        yield Flaw("gripper still", f"{still} of {summary.episodes} episodes", "the gripper never opens or closes "
                   "there", "is that the task?")
    if summary.low is not None and summary.high is not None:
        for name, low, high in zip(summary.names[:-1], summary.low, summary.high, strict=False):
            if high - low < 1e-9:
                yield Flaw("constant", "all episodes", f"'{name}' is {low:.4g} throughout: the policy learns to leave "
                           "it", "is that the task?")
