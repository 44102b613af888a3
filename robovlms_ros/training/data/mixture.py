"""Shares of several data sets in what is learned, whatever their sizes (`data.mixture`)."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.schema import ConfigError, require
from robovlms_ros.training.data.episodes import EpisodeSource
from robovlms_ros.training.data.windows import WindowDataset

Mixture = Mapping[str, float]
"""Pattern of the names of recordings -> share, of any sum."""


def read_mixture(value: Any, where: str) -> Mixture:
    """The `data.mixture` block; none is empty. Raises ConfigError."""
    if value is None:
        return {}
    require(isinstance(value, Mapping) and len(value) > 0, where, value,
            "a mapping from recordings (shell patterns) to shares")
    for name, share in value.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        require(number and 0 < share < float("inf"), f"{where}.{name}", share, "a number above 0")
    return {str(name): float(share) for name, share in value.items()}


def window_shares(
    data: WindowDataset,
    source: EpisodeSource,
    recordings: Mapping[Path, set[str]],
    mixture: Mixture,
) -> NDArray[np.float64]:
    """(windows,) probability that a window is drawn next: each pattern's recordings have its share
    together, their windows the same one.

    recordings: as `selection.by_recording`. Raises ConfigError for a recording that no pattern or
    several match, and for a pattern without windows.
    """
    names = list(mixture)
    owners = {origin: _owner(path, names) for path, origins in recordings.items()
              for origin in origins}
    owner = np.empty(len(data), dtype=np.int64)
    for episode, begin, count in data.spans():
        owner[begin : begin + count] = owners[source.origin(episode)]
    windows = np.bincount(owner, minlength=len(names))
    for name, count in zip(names, windows, strict=True):
        if not count:
            raise ConfigError(f"data.mixture: no recording to train on matches {name}.")
    shares = np.array(list(mixture.values()))
    return (shares / shares.sum() / windows)[owner]


def _owner(recording: Path, names: Sequence[str]) -> int:
    """The place of the only pattern that matches. Raises ConfigError."""
    matching = [
        k for k, name in enumerate(names)
        if fnmatch(str(recording), name) or fnmatch(recording.name, name)
    ]
    if len(matching) != 1:
        found = ", ".join(names[k] for k in matching) or "none"
        raise ConfigError(
            f"data.mixture: {recording} matches {found} of {', '.join(names)}: must match exactly "
            "one. Patterns are compared with the whole path and with its last part."
        )
    return matching[0]
