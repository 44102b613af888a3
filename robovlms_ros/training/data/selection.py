"""Selections: YAML files that name recordings and the episodes of them to leave out.

`robovlms data` writes them and `--data` takes them in the place of recordings. Recordings are
neither copied nor changed.

    recordings:
    - path: ../day1            # relative to the file
      exclude: [episode 3]     # names as --inspect prints them, without the path
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from robovlms_ros.core.schema import ConfigError, build, read_mapping
from robovlms_ros.training.data.episodes import DataError, EpisodeSource
from robovlms_ros.training.data.hub_cache import NAME, cached_dataset

SUFFIXES = (".yaml", ".yml")

Chosen = dict[Path, set[str]]
"""Recording -> full names of its episodes that are left out."""


@dataclass(frozen=True)
class SelectedRecording:
    """One entry of a selection."""

    path: str
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """The content of the file."""

    recordings: tuple[SelectedRecording, ...]


def read_selections(paths: Iterable[str | Path]) -> Chosen:
    """Recordings, and those of selections among `paths`, in order.

    A path that does not exist may be a downloaded data set's OWNER/NAME. A recording that is named
    twice loses the episodes that all of its entries leave out. Raises ConfigError, DataError.
    """
    chosen: Chosen = {}
    for path in map(Path, paths):
        if not path.exists() and NAME.fullmatch(str(path)):
            path = cached_dataset(str(path))
        entries = {path: set[str]()}
        if path.suffix in SUFFIXES and path.is_file():
            selection = build(Selection, read_mapping(path), str(path))
            entries = {Path(os.path.normpath(path.parent / one.path)): set(one.exclude)
                       for one in selection.recordings}
            entries = {one: {f"{one}, {name}" for name in names} for one, names in entries.items()}
        for one, names in entries.items():
            chosen[one] = chosen[one] & names if one in chosen else names
    return chosen


def require_new(file: Path) -> None:
    """Raise ConfigError unless a selection can be written to `file`."""
    if file.suffix not in SUFFIXES:
        raise ConfigError(f"{file}: a selection's name must end in {' or '.join(SUFFIXES)}.")
    if file.exists():
        raise ConfigError(f"{file}: exists already, nothing is written over it. Name a new file.")


def write_selection(file: Path, chosen: Mapping[Path, Iterable[str]]) -> None:
    """Write a new selection. Raises DataError for no recording."""
    if not chosen:
        raise DataError(f"{file}: no episode was selected, nothing is written. "
                        "`robovlms data stats` shows the marks.")
    recordings = []
    for path, names in chosen.items():
        short = sorted(name.removeprefix(f"{path}, ") for name in names)
        entry = {"path": os.path.relpath(path, file.parent)}
        recordings.append(entry | ({"exclude": short} if short else {}))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("x", encoding="utf-8") as stream:
        yaml.safe_dump({"recordings": recordings}, stream, sort_keys=False)


def select(chosen: Chosen, source: EpisodeSource, keep: Callable[[int], bool]) -> Chosen:
    """The recordings with an episode that `keep` takes by its number in `source`; the others of
    their episodes are left out, besides those that `chosen` leaves out."""
    kept = {source.origin(i) for i in range(len(source)) if keep(i)}
    found: Chosen = {}
    for path, names in by_recording(chosen, source).items():
        if names & kept:
            found[path] = chosen[path] | (names - kept)
    return found


def by_recording(chosen: Mapping[Path, set[str]], source: EpisodeSource) -> dict[Path, set[str]]:
    """Recording -> names of the episodes in `source`."""
    names: dict[Path, set[str]] = {path: set() for path in chosen}
    for i in range(len(source)):
        origin = source.origin(i)
        within = [path for path in chosen if origin.startswith(f"{path}, ")]
        names[max(within, key=lambda path: len(str(path)))].add(origin)
    return names
