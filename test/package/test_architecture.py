"""docs/architecture.md against the sources.

- Every function in the drawing of one image's way exists where the drawing places it.
- Every value handed over in the drawing is a class of the package or a ROS message.
- Every path in the page's tables exists.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "robovlms_ros"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DRAWING = re.search(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)[1]
PLACES = re.findall(r'\["(\S+\.py): (\S+)"\]', DRAWING)
VALUES = sorted(set(re.findall(r"-- (\w+) -->", DRAWING)))
MESSAGES = {"JointTrajectory"}


def definitions(path: Path) -> set[str]:
    """Functions, classes and methods of a file, methods as `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
            methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
            names.update(f"{node.name}.{name}" for name in methods)
    return names


@pytest.mark.parametrize(("place", "function"), PLACES)
def test_function_of_the_drawing_exists(place: str, function: str) -> None:
    assert function in definitions(PACKAGE / place)


def test_values_of_the_drawing_are_classes() -> None:
    classes = {name for path in PACKAGE.rglob("*.py") for name in definitions(path)}
    missing = [value for value in VALUES if value not in classes | MESSAGES]
    assert len(VALUES) > 8
    assert not missing, missing


def test_drawing_keeps_its_size() -> None:
    """At most 25 files and 14 values, as the page promises."""
    assert len({place for place, _ in PLACES}) <= 25
    assert len(VALUES) <= 14


def test_paths_of_the_page_exist() -> None:
    text = PAGE.replace(DRAWING, "")
    paths = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", text)
    missing = [path for path in paths if not (PACKAGE / path).exists() and not (ROOT / path).exists()]
    assert len(paths) > 15
    assert not missing, missing
