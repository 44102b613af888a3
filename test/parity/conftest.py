"""Finds the recorded cases of the reference implementation: every JSON in the four folders of ROBOVLMS_PARITY_DIR."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from parity_case import LARGEST, is_case

AREAS = ("heads", "vla", "wrapper", "utils")
FOLDER = Path(os.environ.get("ROBOVLMS_PARITY_DIR", Path(__file__).resolve().parents[3] / "shared" / "parity"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_path" not in metafunc.fixturenames:
        return
    if not FOLDER.is_dir():
        reason = f"no recorded cases: {FOLDER} does not exist (set ROBOVLMS_PARITY_DIR)"
        metafunc.parametrize("case_path", [pytest.param(None, id="missing", marks=pytest.mark.skip(reason=reason))])
        return
    found = sorted(path for area in AREAS for path in (FOLDER / area).glob("*.json") if is_case(path))
    ids = [f"{path.parent.name}/{path.stem}" for path in found]
    metafunc.parametrize("case_path", found or [None], ids=ids or ["none"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line: the largest relative deviation, by tolerance."""
    compared = sorted(tolerance for tolerance in LARGEST if tolerance > 0.0)
    found = ", ".join(f"{LARGEST[tolerance]:.1e} of {tolerance:.0e}" for tolerance in compared)
    if found:
        terminalreporter.write_line(f"parity: largest relative deviation, of allowed: {found}")
