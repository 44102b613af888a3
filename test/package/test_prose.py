"""The prose and density of code and documents, counted.

- README.md and docs/results/ contain no fault of prose and no long line; the README has at most 1,100 words.
- Docstrings, comments, guides and class names have no more faults than the stored maxima. A maximum only falls.
- Every count finds its fault in a sample and passes the sample's corrected form.
- Relative links of the README and the documents lead to files.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

WH_WORD = re.compile(r"\W*(?:what|whether|how|where|which|why|who|when)\b", re.IGNORECASE)
HUMAN = re.compile(
    r"\b(?:hear(?:s|d|ing)?|listens?|says?|said|saying|speaks?|tells?|told|telling|asks?|asked|asking"
    r"|stands|stood|lets? (?:\w+ )?go|believes?d?|thinks?|wants|remembers?|promises?d?)\b", re.IGNORECASE)
LINE = 100
README_WORDS = 1100
LINK = re.compile(r"\]\(([^)#\s]+)")

WH_OPENING = "wh-word opens a docstring or heading"
SPEECH = "software with human senses, speech or mind"
PACKED = "packed assignments per 1,000 lines"
LONG = "lines over 100 characters"
REPEATED = "class names that are not unique"

MAXIMA = {
    # (area, kind): maximum                  wanted
    ("robovlms_ros", WH_OPENING): 0,
    ("robovlms_ros", SPEECH): 0,
    ("robovlms_ros", PACKED): 0.4,         # 4
    ("robovlms_ros", LONG): 1562,          # 0
    ("robovlms_ros", REPEATED): 0,
    ("test", WH_OPENING): 0,               # 0
    ("test", SPEECH): 72,                  # 0
    ("test", PACKED): 7.97,                # 5
    ("test", LONG): 1621,                  # 0
    ("guides", WH_OPENING): 0,             # 0
    ("guides", SPEECH): 0,
    ("guides", LONG): 26,                  # 0
    ("results", WH_OPENING): 0,
    ("results", SPEECH): 0,
    ("results", LONG): 0,
}


def docstrings(source: str) -> Iterator[str]:
    """Docstrings of the module, its classes and functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def comments(source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def wh_openings(source: str) -> list[str]:
    return [text.partition("\n")[0] for text in docstrings(source) if WH_WORD.match(text)]


def human_words(text: str) -> list[str]:
    return HUMAN.findall(text)


def packed_assignments(source: str) -> list[str]:
    """Assignments of a tuple display to a tuple target."""
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Tuple) and any(isinstance(target, ast.Tuple) for target in node.targets)]


def long_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > LINE]


def classes(source: str) -> list[str]:
    return [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def prose_of(document: str) -> str:
    """The document without code blocks, code spans, tables and link targets."""
    text = re.sub(r"^```.*?^```$", "", document, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return LINK.sub("](", re.sub(r"`[^`]*`", "", text))


def wh_headings(document: str) -> list[str]:
    return [line for line in document.splitlines() if line.startswith("#") and WH_WORD.match(line)]


def long_document_lines(document: str) -> list[str]:
    """Lines over the limit that can be broken: table rows are one line by Markdown's rule."""
    return [line for line in long_lines(document) if not line.startswith("|")]


def python_faults(paths: list[Path]) -> dict[str, list[str]]:
    faults: dict[str, list[str]] = {WH_OPENING: [], SPEECH: [], PACKED: [], LONG: []}
    names: Counter[str] = Counter()
    for path in paths:
        source = path.read_text(encoding="utf-8")
        prose = "\n".join([*docstrings(source), *comments(source)])
        faults[WH_OPENING] += wh_openings(source)
        faults[SPEECH] += human_words(prose)
        faults[PACKED] += packed_assignments(source)
        faults[LONG] += long_lines(source)
        names.update(classes(source))
    return {**faults, REPEATED: [name for name, count in names.items() if count > 1]}


def document_faults(paths: list[Path]) -> dict[str, list[str]]:
    faults: dict[str, list[str]] = {WH_OPENING: [], SPEECH: [], LONG: []}
    for path in paths:
        document = path.read_text(encoding="utf-8")
        faults[WH_OPENING] += wh_headings(document)
        faults[SPEECH] += human_words(prose_of(document))
        faults[LONG] += long_document_lines(document)
    return faults


@pytest.fixture(scope="module")
def counts(root: Path, tracked_files: list[Path]) -> dict[tuple[str, str], float]:
    """The count of each kind of fault in each area."""
    python = {area: [path for path in tracked_files if path.suffix == ".py" and path.is_relative_to(root / area)]
              for area in ("robovlms_ros", "test")}
    results = [root / "README.md", *(root / "docs" / "results").glob("*.md")]
    guides = list((root / "docs").glob("*.md"))
    assert all(python.values())
    assert len(results) > 1
    assert guides
    faults = {area: python_faults(paths) for area, paths in python.items()}
    faults |= {"guides": document_faults(guides), "results": document_faults(results)}
    found: dict[tuple[str, str], float] = {(area, kind): len(items) for area, kinds in faults.items()
                                           for kind, items in kinds.items()}
    for area, paths in python.items():
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        found[area, PACKED] *= 1000 / lines
    return found


@pytest.mark.parametrize("area_and_kind", MAXIMA, ids=": ".join)
def test_faults_do_not_increase(area_and_kind: tuple[str, str], counts: dict[tuple[str, str], float]) -> None:
    assert counts[area_and_kind] <= MAXIMA[area_and_kind]


def test_readme_is_a_page(root: Path) -> None:
    assert len((root / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS


def test_links_lead_to_files(root: Path) -> None:
    documents = [root / "README.md", *(root / "docs").rglob("*.md")]
    dead = [f"{document.relative_to(root)}: {link}" for document in documents
            for link in LINK.findall(document.read_text(encoding="utf-8"))
            if "://" not in link and not (document.parent / link).exists()]
    assert not dead, dead


@pytest.mark.parametrize(("count", "faulty", "corrected"), [
    (wh_openings, 'def f():\n    """What a step costs."""', 'def f():\n    """Return a step\'s duration."""'),
    (wh_openings, '"""How far."""', '"""Distance."""'),
    (human_words, "The node hears cameras and tells the arm.", "The node subscribes to images."),
    (human_words, "It lets it go and stands still.", "It opens the gripper and stops."),
    (packed_assignments, "a, b = x, y", "a, b = pair"),
    (long_lines, "x" * 101, "x" * 100),
    (wh_headings, "## What a step costs", "## Duration of a step"),
    (long_document_lines, "x" * 101, "|" + "x" * 101),
])
def test_each_count_finds_its_fault(count, faulty: str, corrected: str) -> None:
    assert count(faulty)
    assert not count(corrected)


def test_repeated_class_names_are_found_across_files(tmp_path: Path) -> None:
    first = tmp_path / "first.py"
    second = tmp_path / "second.py"
    first.write_text("class Frame: ...\nclass Row: ...\n", encoding="utf-8")
    second.write_text("class Frame: ...\n", encoding="utf-8")
    assert python_faults([first, second])[REPEATED] == ["Frame"]


def test_code_in_a_document_is_no_prose() -> None:
    assert not human_words(prose_of("```\nsays\n```\n\n    asks\n\n`tells` [x](says.md)"))
