"""Location of the package's data (`config/`, `msg/`, `launch/`) in a checkout, a colcon or a pip
install."""

import os
import sys
from pathlib import Path

from robovlms_ros.core.types import RoboVLMsError

PACKAGE = "robovlms_ros"


def share_directory() -> Path:
    """The folder that holds `config/` and `msg/`: the checkout this module runs from, else an
    installed share.

    Raises RoboVLMsError that lists the places looked at.
    """
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    places = [Path(__file__).resolve().parents[2]]
    # pip install --user or --prefix: <prefix>/lib/python3.x/site-packages/robovlms_ros/core/.
    own_prefix = map(str, Path(__file__).resolve().parents[5:6])
    places += [Path(prefix) / "share" / PACKAGE for prefix in [*prefixes, sys.prefix, *own_prefix]]
    for place in places:
        if (place / "config" / "robots").is_dir():
            return place
    raise RoboVLMsError(
        f"the data of {PACKAGE} (config/, msg/) was found in none of: {', '.join(map(str, places))}. "
        "Build the package with colcon and source install/setup.bash, or run from a checkout."
    )


def find_checkpoint(name_or_path: str | Path) -> Path:
    """A checkpoint by the name of a shipped one (`demo`), else the path as given, which need not
    exist."""
    shipped = share_directory() / "config" / "checkpoints" / name_or_path
    return shipped if shipped.is_dir() else Path(name_or_path).expanduser()


def shipped_policy(backbone: str) -> str:
    """The shipped policy that a preset of config/backbones names: of its own name, or `demo`."""
    own = share_directory() / "config" / "checkpoints" / backbone
    return backbone if own.is_dir() else "demo"


def find(name_or_path: str | Path, folder: str) -> Path:
    """A file the user named: the stem of a shipped file in `folder` (`panda` in `config/robots`),
    or a path.

    A shipped name wins over a file of that name in the working directory; `./panda` means the
    latter. Raises RoboVLMsError with the shipped names when it is neither.
    """
    shipped = share_directory() / folder
    candidate = shipped / f"{name_or_path}.yaml"
    if candidate.is_file():
        return candidate
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    names = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml"))) or "none"
    raise RoboVLMsError(f"'{name_or_path}' is neither an existing path nor one of the shipped {folder}: {names}.")
