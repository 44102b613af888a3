"""The checkout under test, and its files as git knows them."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def tracked_files(root: Path) -> list[Path]:
    """Every file that git tracks and that exists; in a tree without git, every file outside hidden folders."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        paths = [root / name for name in listing.stdout.split("\0") if name]
    else:
        built = ("build", "install", "log", "outputs", "__pycache__")
        paths = [p for p in root.rglob("*")
                 if not any(part.startswith(".") or part in built for part in p.relative_to(root).parts)]
    return [path for path in paths if path.is_file()]
