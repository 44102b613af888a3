"""What an ablation takes: how much of each variant is left to do, and how long that took where it was done before."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

FILE = "cost.json"


@dataclass(frozen=True)
class Work:
    """demonstrations: to record, episodes of the expert. steps: of training. episodes: to measure."""

    demonstrations: int = 0
    steps: int = 0
    episodes: int = 0


def add_time(folder: Path, done: Work, seconds: Mapping[str, float]) -> None:
    """Add what was done, and the seconds that each part of it took, to the variant's file."""
    path = folder / FILE
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, count in asdict(done).items():
        old = kept.get(name, {"count": 0, "seconds": 0.0})
        kept[name] = {"count": old["count"] + count, "seconds": old["seconds"] + seconds.get(name, 0.0)}
    write_json(path, kept)


def write_json(path: Path, data: Any) -> None:
    """Write the file and its folder; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def rates(folders: Iterable[Path]) -> dict[str, float]:
    """Seconds per demonstration, step and episode over all variants; what was never done is missing."""
    sums = {field.name: [0, 0.0] for field in fields(Work)}
    for folder in folders:
        path = folder / FILE
        for name, entry in (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}).items():
            sums[name][0] += entry["count"]
            sums[name][1] += entry["seconds"]
    return {name: seconds / count for name, (count, seconds) in sums.items() if count}


def seconds_of(work: Work, rate: Mapping[str, float]) -> float | None:
    """How long `work` takes at these rates; None where one of them is not known."""
    left = {name: count for name, count in asdict(work).items() if count}
    if any(name not in rate for name in left):
        return None
    return sum(count * rate[name] for name, count in left.items())


def table(works: Mapping[str, Work], rate: Mapping[str, float]) -> str:
    """What is left, a line per variant; the time where the rates are known."""
    width = max(len("left of variant"), *map(len, works))
    lines = [f"{'left of variant':<{width}}  demonstrations    steps  episodes  about"]
    for name, work in works.items():
        seconds = seconds_of(work, rate)
        about = "not known: none was timed here" if seconds is None else f"{seconds / 60:.0f} min"
        lines.append(f"{name:<{width}}  {work.demonstrations:14d}  {work.steps:7d}  {work.episodes:8d}  {about}")
    return "\n".join(lines)
