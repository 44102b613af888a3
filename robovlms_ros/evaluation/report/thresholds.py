"""What a checkpoint must reach, and whether it does: the exit code of an evaluation."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robovlms_ros.core.schema import ConfigError, did_you_mean


@dataclass(frozen=True)
class EvaluationThresholds:
    """Bounds on a policy's numbers; None does not bound. `max_` is an upper bound, `min_` a lower one.

    distance: mean over steps of predicted against recorded target, m (joint spaces: rad). distance_end: the same at the
    chunk's last step. against_hold: distance as a share of what holding still would have. cosine: of the motion's
    direction. gripper_accuracy: fraction of steps. refused: of the chunks, the fraction that the gate refuses at the
    first replayed latency. handover: rad, largest jump of a client that simply switches plans. parity: largest
    difference from the chunks recorded live, in their own numbers.
    """

    max_distance: float | None = None
    max_distance_end: float | None = None
    max_against_hold: float | None = None
    min_cosine: float | None = None
    min_gripper_accuracy: float | None = None
    max_refused: float | None = None
    max_handover: float | None = None
    max_parity: float | None = None


def with_overrides(thresholds: EvaluationThresholds, texts: list[str]) -> EvaluationThresholds:
    """`thresholds` with `NAME=VALUE` of the command line. Raises ConfigError."""
    names = [field.name for field in dataclasses.fields(EvaluationThresholds)]
    values: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in names:
            raise ConfigError(f"--threshold {text}: unknown name '{name}'.{did_you_mean(name, names)}")
        try:
            values[name] = float(value)
        except ValueError as error:
            raise ConfigError(f"--threshold {text}: '{value}' must be a number.") from error
    return dataclasses.replace(thresholds, **values)


def misses(numbers: Mapping[str, Any], thresholds: EvaluationThresholds) -> list[str]:
    """One sentence for each bound that does not hold. A bounded number that could not be measured is a miss."""
    found = []
    for field in dataclasses.fields(thresholds):
        bound = getattr(thresholds, field.name)
        if bound is None:
            continue
        kind, name = field.name.split("_", 1)
        value = numbers.get(name)
        if value is None:
            found.append(f"{name} could not be measured ({field.name} = {bound:g})")
        elif (value > bound) if kind == "max" else (value < bound):
            found.append(f"{name} = {value:.4g}, must be {'at most' if kind == 'max' else 'at least'} {bound:g}")
    return found
