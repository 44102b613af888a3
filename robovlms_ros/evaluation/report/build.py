"""Report of an evaluation: numbers for machines, three sentences for people, thresholds, a
verdict."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from robovlms_ros.core.schema import ConfigError, did_you_mean
from robovlms_ros.evaluation.metrics.baselines import BASELINES
from robovlms_ros.evaluation.metrics.paired import Interval, mean_interval, paired_interval
from robovlms_ros.evaluation.replay.results import SubjectResult, merge


@dataclass(frozen=True)
class EvaluationThresholds:
    """Bounds on a policy's numbers; None does not bound. `max_` is an upper bound, `min_` a lower
    one.

    distance: mean over steps of predicted against recorded target, m (joint spaces: rad).
        distance_end: the same at the
    chunk's last step. against_hold: distance as a share of what holding still would have. cosine:
    of the motion's direction. gripper_accuracy: fraction of steps. refused: of the chunks, the
    fraction that the gate refuses at the first replayed latency. handover: rad, largest jump of a
    client that simply switches plans. parity: largest difference from the chunks recorded live, in
    their own numbers.
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
    """One sentence for each bound that does not hold. A bounded number that could not be measured
    is a miss."""
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


STILL = 1e-5
"""Mean motion below which the recorded arm stood still: m, joints rad."""
LISTENS = 0.25
"""A policy is said to listen when another instruction changes its motion by this share at least."""


def build_report(parts: Sequence[Mapping[str, Any]], thresholds: EvaluationThresholds) -> dict[str, Any]:
    """The report of the results of `evaluate_bag` on all bags, as what JSON can hold.

    `policies` name -> numbers, tables, samples; `comparisons`; `answer`: three sentences; `missed`:
    broken thresholds; `pass`: whether all hold and something was evaluated.
    """
    names = list(dict.fromkeys(name for part in parts for name in part["results"]))
    merged: dict[str, SubjectResult] = {}
    for name in names:
        results = [SubjectResult.from_json(part["results"][name]) for part in parts if part["results"].get(name)]
        if results:
            merged[name] = merge(results)
    baselines, edges = _baselines(merged)
    policies = {name: _policy(result, baselines, edges) for name, result in merged.items()}
    missed = {name: misses(policy["numbers"], thresholds) for name, policy in policies.items()}
    unanswered = [name for name in names if name not in merged]
    if unanswered:
        missed.update({name: ["it answered nothing on any bag"] for name in unanswered})
    if not names or not merged:
        missed["all"] = ["nothing was evaluated"]
    pairs = [(merged[a], merged[b]) for a, b in combinations(merged, 2)]
    comparisons = [_compare(a, b) for a, b in pairs if comparable(a, b)]
    report: dict[str, Any] = {
        "bags": [{key: part[key] for key in ("bag", "label", "topics", "notes", "images", "lost", "episodes",
                                              "left_out", "instructions", "reference")} for part in parts],
        "policies": policies, "comparisons": comparisons, "thresholds": dataclasses.asdict(thresholds),
        "missed": {name: texts for name, texts in missed.items() if texts},
        "pass": not any(missed.values()),
    }
    report["answer"] = _answer(report)
    return report


def left_out_lines(bag: Mapping[str, Any]) -> list[str]:
    """The episodes of a bag of the report that were not evaluated: their number, and a line for
    each."""
    episodes = bag["left_out"]
    if not episodes:
        return []
    lines = [f"'{episode['name']}' ({episode['images']} images): {episode['reason']}"
             for episode in episodes]
    return [f"{len(episodes)} of its episodes left out:", *lines]


def comparable(a: SubjectResult, b: SubjectResult) -> bool:
    """True if the errors of two policies are in the same unit."""
    return a.unit == b.unit


def _baselines(merged: Mapping[str, SubjectResult]) -> tuple[dict[tuple[Any, ...], Any], dict[tuple[Any, ...], Any]]:
    """Baselines are scored once per kind of chunk; every policy of that kind refers to them."""
    sums = {_kind(result): result.baselines for result in merged.values() if result.baselines}
    edges = {_kind(result): result.baseline_edges for result in merged.values() if result.baseline_edges}
    return sums, edges


def _kind(result: SubjectResult) -> tuple[Any, ...]:
    return result.space, result.names, result.horizon, result.step


def _policy(result: SubjectResult, baselines: Mapping[Any, Any], edges: Mapping[Any, Any]) -> dict[str, Any]:
    assert result.sums is not None
    table = result.sums.table(result.names)
    trivial = {name: sums.table(result.names) for name, sums in baselines.get(_kind(result), {}).items()}
    for name, value in edges.get(_kind(result), {}).items():
        trivial[name]["edges"] = value.table()
    spent = np.array(result.spent_ms) if result.spent_ms else None
    interval = mean_interval(result.errors, _block(result))
    policy: dict[str, Any] = {
        "policy_id": result.policy_id, "space": result.space, "unit": result.unit, "names": list(result.names),
        "horizon": result.horizon, "step": result.step, "chunks": result.chunks, "scored": result.scored,
        "unscored": result.unscored, "errors": table, "edges": result.edges.table(), "baselines": trivial,
        "interval": _interval(interval), "agreement": result.agreement.table(), "margins": result.margins.table(),
        "sensitivity": _sensitivity(result), "recorded": {**result.recorded.table(), "largest": result.recorded_max},
        "latencies": [lane.table() for lane in result.latencies],
        "gate": None if result.gate is None else result.gate.table(),
        "inference_ms": None if spent is None else {
            "p50": float(np.percentile(spent, 50)), "p99": float(np.percentile(spent, 99)),
            "histogram": _histogram(spent)},
        "refused_inputs": dict(result.refused_inputs), "fans": result.fans, "track": result.track,
        "worst": result.worst,
    }
    policy["numbers"] = _numbers(policy)
    return policy


def _block(result: SubjectResult) -> int:
    return max(1, result.horizon)


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else dataclasses.asdict(interval)


def _histogram(values: Any) -> dict[str, list[float]]:
    top = float(np.percentile(values, 99.5)) * 1.1 + 1e-9
    counts, edges = np.histogram(np.minimum(values, top), bins=30, range=(0.0, top))
    return {"edges": edges.round(3).tolist(), "counts": counts.tolist()}


def _sensitivity(result: SubjectResult) -> dict[str, Any]:
    tables = {}
    for label, sums in result.sensitivity.items():
        tables[label] = sums.table()
        variant = result.variants.get(label)
        if variant is not None:
            errors = variant.table(result.names)
            tables[label]["distance"] = errors["distance"]
    return tables


def _numbers(policy: Mapping[str, Any]) -> dict[str, float | None]:
    """Numbers that thresholds bound."""
    errors = policy["errors"]
    hold = policy["baselines"].get(BASELINES[0])
    known = [value for value in errors["distance_by_step"] if value is not None]
    lanes = policy["latencies"]
    recorded = policy["recorded"]
    share = None
    if hold and (hold["distance"] or 0.0) > STILL and errors["distance"] is not None:
        share = errors["distance"] / hold["distance"]
    return {
        "distance": errors["distance"], "distance_end": known[-1] if known else None, "against_hold": share,
        "cosine": errors["cosine"], "gripper_accuracy": errors["gripper_accuracy"],
        "refused": lanes[0]["refused"] if lanes else None,
        "handover": lanes[0]["handover_max"] if lanes and lanes[0]["handover_mean"] is not None else None,
        "parity": recorded["largest"] if recorded["chunks"] else None,
    }


def _compare(a: SubjectResult, b: SubjectResult) -> dict[str, Any]:
    total, each = paired_interval(a.errors, b.errors, _block(a))
    return {"a": a.name, "b": b.name, "unit": a.unit, "difference": _interval(total),
            "episodes": {episode: _interval(interval) for episode, interval in each.items()}}


def length(value: float | None, unit: str) -> str:
    """A distance in a reader's unit: mm, or mrad."""
    if value is None:
        return "unknown"
    return f"{value * 1000:.1f} mm" if unit == "m" else f"{value * 1000:.1f} mrad"


def _answer(report: Mapping[str, Any]) -> list[str]:
    """Three sentences: accuracy, safety, and the verdict."""
    if not report["policies"]:
        notes = [note for bag in report["bags"] for note in bag["notes"]]
        return ["Nothing was evaluated: " + (notes[0] if notes else "no policy answered") + "."
                if not (notes and notes[0].endswith(".")) else notes[0],
                "Look at the notes on each bag below.", _verdict(report)]
    distances = {name: policy["errors"]["distance"] for name, policy in report["policies"].items()}
    best = min(distances, key=lambda name: float("inf") if distances[name] is None else distances[name])
    return [_nearness(best, report["policies"], report), _safety(best, report["policies"][best]), _verdict(report)]


def _nearness(name: str, policies: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    policy = policies[name]
    errors = policy["errors"]
    hold = policy["baselines"].get(BASELINES[0])
    text = f"{name} is on average {length(errors['distance'], policy['unit'])} from {report['bags'][0]['reference']}"
    share = policy["numbers"]["against_hold"]
    if share is not None:
        text += f", {share:.0%} of what holding still would be"
    elif hold and hold["distance"] is not None:
        text += ", where the recorded arm stood still"
    if len(policies) > 1:
        others = [c for c in report["comparisons"] if name in (c["a"], c["b"]) and c["difference"]]
        clear = [c for c in others if c["difference"]["low"] > 0 or c["difference"]["high"] < 0]
        rest = len(policies) - 1
        text += f"; it is nearest of {len(policies)}, clearly so (95 %) against {len(clear)} of the other {rest}"
    return text + "."


def _safety(name: str, policy: Mapping[str, Any]) -> str:
    gate = next(iter(policy["latencies"]), None)
    parts = []
    if gate and gate["refused"] is not None:
        decided = sum(gate["verdicts"].values())
        reason = next(iter(gate["reasons"]), "")
        counts = gate["verdicts"]
        when = f"with {1000 * gate['latency']:.0f} ms to infer"
        parts.append(f"{when}, the safety gate would pass {counts['pass']}, clamp {counts['clamp']} and refuse "
                     f"{counts['refuse']} of {decided} chunks" + (f" (most often: {reason})" if reason else ""))
    other = policy["sensitivity"].get("other instruction")
    if other and other["share"] is not None:
        listens = "listens to" if other["share"] > LISTENS else "hardly listens to"
        parts.append(f"{name} {listens} the instruction (another one changes its motion by {other['share']:.0%})")
    deaf = [label for label, table in policy["sensitivity"].items()
            if label.startswith("camera") and table["share"] is not None and table["share"] < LISTENS / 5]
    if deaf:
        parts.append(f"it hardly looks: {', '.join(deaf)} changes next to nothing")
    if not parts:
        return "The gate could not be run: there is no arm description, or there are no joint states."
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _verdict(report: Mapping[str, Any]) -> str:
    bounded = [name for name, value in report["thresholds"].items() if value is not None]
    if report["missed"]:
        first = next(f"{name}: {texts[0]}" for name, texts in report["missed"].items())
        count = sum(len(texts) for texts in report["missed"].values())
        return f"NOT PASSED: {first}" + (f" (and {count - 1} more)." if count > 1 else ".")
    if not bounded:
        return "No thresholds were given, so nothing was judged: look at the error by horizon and the worst moments."
    return f"PASSED: all {len(bounded)} thresholds hold."
