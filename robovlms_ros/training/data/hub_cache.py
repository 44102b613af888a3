"""LeRobot data sets that were downloaded before, by their names on the hub. Nothing is
downloaded."""

import os
import re
from pathlib import Path

from robovlms_ros.training.data.episodes import DataError

NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""OWNER/NAME, as huggingface.co names data sets."""


def cached_dataset(name: str) -> Path:
    """The folder of the data set OWNER/NAME: `$HF_LEROBOT_HOME/OWNER/NAME`, where lerobot records,
    or the newest snapshot in its download cache or in the hub's.

    Raises DataError with the places that were searched.
    """
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    home = Path(os.environ.get("HF_LEROBOT_HOME") or cache / "lerobot")
    snapshots = f"datasets--{name.replace('/', '--')}/snapshots"
    hub = Path(os.environ.get("HF_HUB_CACHE") or cache / "hub")
    if _is_dataset(home / name):
        return home / name
    places = (home / "hub" / snapshots, hub / snapshots)
    found = [folder for place in places for folder in place.glob("*") if _is_dataset(folder)]
    if not found:
        searched = ", ".join(map(str, (home / name, *places)))
        raise DataError(
            f"{name}: does not exist, and is no data set that was downloaded; searched: {searched}. "
            "Give a rosbag, a LeRobot or a CALVIN folder, or download it: "
            f"`hf download --repo-type dataset {name}`."
        )
    return max(found, key=lambda folder: folder.stat().st_mtime)


def _is_dataset(folder: Path) -> bool:
    return (folder / "meta" / "info.json").is_file()
