"""Recordings on disk as one episode source: the format of each folder is detected, its reader opens
it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.schema import ConfigError, did_you_mean
from robovlms_ros.training.data.episodes import DataError, EpisodeSource, Joined, require_action
from robovlms_ros.training.data.processes import in_processes
from robovlms_ros.training.data.resampling import at_policy_rate
from robovlms_ros.training.data.selection import read_selections
from robovlms_ros.training.data.sources.bag import BagSource
from robovlms_ros.training.data.sources.calvin import CalvinSource
from robovlms_ros.training.data.sources.lerobot import LeRobotSource

KEYS = ("bag", "lerobot", "calvin", "exclude", "accept", "jobs")


def open_sources(
    paths: Sequence[str | Path], config: PolicyConfig, mapping: Mapping[str, Any] | None = None,
    log: Callable[[str], None] | None = None,
) -> EpisodeSource:
    """The episodes of rosbags, LeRobot folders, CALVIN folders and selections, which may be mixed.

    mapping: the `data` block of a training YAML: what is where in the recordings, a block for each
        format (`bag`,
    `lerobot`, `calvin`), `exclude`, names of episodes to leave out, `accept`, kinds of flaws to let
    through, and `jobs`, processes that read recordings (default 1). log: is called with how the
    data was understood. Raises DataError, ConfigError and BagError, each with the place and a
    remedy.
    """
    require_action(config)
    mapping = dict(mapping or {})
    for key in mapping:
        if key not in KEYS:
            raise ConfigError(f"data: unknown key '{key}'.{did_you_mean(str(key), KEYS)}")
    if not paths:
        raise DataError("no data was given. Name rosbags, LeRobot folders or CALVIN folders.")
    chosen = read_selections(paths)
    kinds = {path: detect_format(path) for path in chosen}
    tasks = [(kind, path, config, dict(mapping.get(kind) or {})) for path, kind in kinds.items()]
    opened = in_processes(_open, tasks, mapping.get("jobs", 1))
    sources = []
    for (kind, path, *_), source in zip(tasks, opened, strict=True):
        sources.append(source)
        if log is not None:
            log(f"{path}: {kind}, {len(source)} episodes")
            for note in source.notes:
                log(f"  {note}")
    left_out = sorted(name for names in chosen.values() for name in names)
    exclude = (*(mapping.get("exclude") or ()), *left_out)
    joined = Joined(sources, exclude, tuple(mapping.get("accept") or ()))
    if log is not None:
        for note in joined.notes[sum(len(source.notes) for source in sources):]:
            log(note)
    return joined


def _open(kind: str, path: Path, config: PolicyConfig, mapping: Mapping[str, Any]) -> EpisodeSource:
    if kind == "bag":
        return BagSource.open(path, config, mapping)
    reader = LeRobotSource if kind == "lerobot" else CalvinSource
    return at_policy_rate(reader(path, config, mapping), config, str(path))


def detect_format(path: Path) -> str:
    """`lerobot`, `calvin` or `bag`, by what lies in the folder. Raises DataError."""
    if not path.exists():
        raise DataError(f"{path}: does not exist. Give a rosbag, a LeRobot or a CALVIN folder.")
    if (path / "meta" / "info.json").is_file():
        return "lerobot"
    if (path / "ep_start_end_ids.npy").is_file() or any(path.glob("lang_*/auto_lang_ann.npy")):
        return "calvin"
    names = [path.name] if path.is_file() else sorted(item.name for item in path.iterdir())
    if "metadata.yaml" in names or any(name.removesuffix(".zstd").endswith((".mcap", ".db3")) for name in names):
        return "bag"
    have = ", ".join(names[:8]) or "nothing"
    raise DataError(
        f"{path}: neither a rosbag (metadata.yaml, *.mcap, *.db3) nor a LeRobot folder "
        f"(meta/info.json) nor a CALVIN folder (ep_start_end_ids.npy); it holds {have}."
    )
