"""Storage and comparison of golden answers.

An area's answers are nested dictionaries. Arrays go to `answers/<area>.npz`, everything else to
`answers/<area>.json`, each under its path, such as `eef_delta/positions`. A path that ends in
`sha256` is the digest of values that are not stored in full; only the exact comparison reads it.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ANSWERS = Path(__file__).parent / "answers"
TOLERANCE = 1e-6
"""Allowed difference of a number v without another rule: TOLERANCE * max(1, |v|)."""
DIGEST = "sha256"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
SHOWN = 10
"""Differences that a failure lists."""


def digest(*arrays: NDArray[Any]) -> str:
    """The digest of arrays: dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def flatten(answers: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every value that is not a dictionary."""
    for name, value in answers.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def save(area: str, answers: Mapping[str, Any]) -> int:
    """Write an area's answers; returns the bytes written."""
    ANSWERS.mkdir(exist_ok=True)
    flat = dict(flatten(answers))
    arrays = {path: value for path, value in flat.items() if isinstance(value, np.ndarray)}
    others = {path: value for path, value in flat.items() if path not in arrays}
    files = [ANSWERS / f"{area}.json", ANSWERS / f"{area}.npz"]
    text = json.dumps(others, indent=0, ensure_ascii=False)
    files[0].write_text(f"{text}\n", encoding="utf-8")
    files[1].unlink(missing_ok=True)
    if arrays:
        np.savez_compressed(files[1], **arrays)  # type: ignore[arg-type]
    return sum(path.stat().st_size for path in files if path.exists())


def load(area: str) -> dict[str, Any]:
    """The stored answers of an area by their paths."""
    answers: dict[str, Any] = json.loads((ANSWERS / f"{area}.json").read_text(encoding="utf-8"))
    stored = ANSWERS / f"{area}.npz"
    if stored.exists():
        with np.load(stored, allow_pickle=False) as data:
            answers.update({path: data[path] for path in data.files})
    return answers


def differences(
    expected: Mapping[str, Any],
    found: Mapping[str, Any],
    exact: bool,
    loose: Mapping[str, float] | None = None,
) -> list[str]:
    """The differences between flat answers, one line each.

    exact: numbers agree to the bit, and digests are compared. Otherwise numbers agree within
    TOLERANCE, those inside texts also within one unit of their last digit. loose: pattern of paths
    -> tolerance in place of TOLERANCE.
    """
    lines = [f"{path}: no longer answered" for path in expected if path not in found]
    lines += [f"{path}: not recorded" for path in found if path not in expected]
    for path in expected:
        if path not in found or (path.endswith(DIGEST) and not exact):
            continue
        tolerance = 0.0 if exact else tolerance_of(path, loose or {})
        lines += list(_compare(path, expected[path], _plain(found[path]), tolerance))
    return lines


def tolerance_of(path: str, loose: Mapping[str, float]) -> float:
    """The tolerance of the numbers at a path."""
    return next((value for pattern, value in loose.items() if re.search(pattern, path)), TOLERANCE)


def _plain(value: Any) -> Any:
    """The value as JSON returns it; arrays stay."""
    return value if isinstance(value, np.ndarray) else json.loads(json.dumps(value))


def _compare(path: str, expected: Any, found: Any, tolerance: float) -> Iterable[str]:
    if isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        yield from _compare_arrays(path, expected, found, tolerance)
    elif isinstance(expected, dict) and isinstance(found, dict):
        if list(expected) != list(found):
            yield f"{path}: keys {list(expected)}, now {list(found)}"
        for name in expected.keys() & found.keys():
            yield from _compare(f"{path}/{name}", expected[name], found[name], tolerance)
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield f"{path}: {len(expected)} entries, now {len(found)}"
        for i, (one, other) in enumerate(zip(expected, found, strict=False)):
            yield from _compare(f"{path}[{i}]", one, other, tolerance)
    elif not same_value(expected, found, tolerance):
        yield f"{path}: {expected!r}, now {found!r}"


def _compare_arrays(
    path: str, expected: NDArray[Any], found: NDArray[Any], tolerance: float
) -> Iterable[str]:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        yield f"{path}: {expected.dtype} {expected.shape}, now {found.dtype} {found.shape}"
        return
    if np.array_equal(expected, found, equal_nan=expected.dtype.kind == "f"):
        return
    if expected.dtype.kind != "f":
        yield f"{path}: {np.count_nonzero(expected != found)} of {expected.size} values differ"
        return
    apart = np.abs(found - expected)
    wrong = (apart > tolerance * np.maximum(1.0, np.abs(expected))) | (
        np.isnan(found) != np.isnan(expected)
    )
    if wrong.any():
        worst = np.unravel_index(
            int(np.argmax(np.where(wrong, np.nan_to_num(apart, nan=np.inf), -1.0))), wrong.shape
        )
        place = [int(i) for i in worst]
        yield (
            f"{path}: {np.count_nonzero(wrong)} of {wrong.size} values differ, most at {place}: "
            f"{expected[worst]!r}, now {found[worst]!r}"
        )


def same_value(expected: Any, found: Any, tolerance: float) -> bool:
    """Compare two JSON values: numbers and texts within the tolerance, all else exactly."""
    numbers = (int, float)
    if isinstance(expected, str) and isinstance(found, str):
        return expected == found or (tolerance > 0 and _same_text(expected, found, tolerance))
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if not isinstance(expected, numbers) or not isinstance(found, numbers):
        return bool(expected == found)
    if isinstance(expected, int) and isinstance(found, int):
        return expected == found
    if math.isnan(expected) or math.isnan(found):
        return math.isnan(expected) and math.isnan(found)
    return abs(expected - found) <= tolerance * max(1.0, abs(expected))


def _same_text(expected: str, found: str, tolerance: float) -> bool:
    """Compare texts: words exactly, numbers within the tolerance or one unit of the last digit."""
    if NUMBER.split(expected) != NUMBER.split(found):
        return False
    for one, other in zip(NUMBER.findall(expected), NUMBER.findall(found), strict=True):
        allowed = max(1.001 * _unit(one), tolerance * max(1.0, abs(float(one))))
        if one != other and abs(float(one) - float(other)) > allowed:
            return False
    return True


def _unit(number: str) -> float:
    """One unit of the last digit of a decimal number."""
    mantissa, _, exponent = number.partition("e")
    digits = len(mantissa.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - digits) if digits or exponent else 0.0
