"""The documentation as a site.

- rosdoc2.yaml names the folder of the pages; package.xml exports it.
- Sphinx builds every page without a warning: each is in the contents, each link leads to a page.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def test_rosdoc2_configuration(root: Path) -> None:
    kind, configuration = yaml.safe_load_all((root / "rosdoc2.yaml").read_text(encoding="utf-8"))
    assert kind == {"type": "rosdoc2 config", "version": 1}
    (builder,) = configuration["builders"]
    assert (root / builder["sphinx"]["sphinx_sourcedir"] / "conf.py").is_file()
    assert "<rosdoc2>rosdoc2.yaml</rosdoc2>" in (root / "package.xml").read_text(encoding="utf-8")


def test_site_builds_without_a_warning(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="sphinx is not installed")
    pytest.importorskip("myst_parser", reason="myst-parser is not installed")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html",
               "-d", str(tmp_path / "doctrees"), str(root / "docs"), str(site)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for page in (root / "docs").rglob("*.md"):
        assert (site / page.relative_to(root / "docs")).with_suffix(".html").is_file(), page
