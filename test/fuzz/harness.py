"""Seeded mutations of files, and the judgement of what a reader makes of them.

A reader may succeed, or raise an error of this package. Anything else, a case of more than SECONDS or a process of more
than GIBIBYTES is a failure. ROBOVLMS_FUZZ_MUTATIONS sets the number of mutations a format.
"""

import os
import resource
import signal
from collections import Counter
from contextlib import contextmanager

import numpy as np

from robovlms_ros.core.types import RoboVLMsError

SECONDS = 20
GIBIBYTES = 2.0
MUTATIONS = int(os.environ.get("ROBOVLMS_FUZZ_MUTATIONS", "200"))
TOKENS = (
    b"null", b"{}", b"[]", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"../../etc/passwd", b"/dev/zero",
    b"\x00\x00\x00\x00", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"&a [*a, *a]", b"!!python/object:os.system {}",
    b"\xef\xbb\xbf", b"true", b"''", b"[[[[[[[[[[", b"}", b'"', b"\n", b"%s%n", b"\xc3\x28", b"0x7fffffff",
)  # fmt: skip


class Hang(BaseException):
    """A case that took too long."""


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to four changes: flips, cuts, repeats, tokens, swapped parts, other digits."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(changed) + 1))
        length = int(rng.integers(1, 40))
        kind = rng.integers(7)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] = int(rng.integers(256))
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length] * int(rng.integers(1, 4))
        elif kind == 3:
            changed[at:at] = TOKENS[rng.integers(len(TOKENS))]
        elif kind == 4:
            changed[at : at + length] = TOKENS[rng.integers(len(TOKENS))]
        elif kind == 5:
            del changed[at:]
        else:
            digits = [i for i, byte in enumerate(changed) if 48 <= byte <= 57]
            if digits:
                changed[digits[rng.integers(len(digits))]] = int(rng.integers(48, 58))
    return bytes(changed)


@contextmanager
def time_limit(seconds):
    def ring(*_):
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(read, path, original: bytes, seed: int, count: int = MUTATIONS) -> Counter:
    """Counts of read and refused cases. Fails with the first other exception, hang or blow-up, by its number."""
    outcomes = Counter()
    for number in range(count):
        path.write_bytes(mutated(original, np.random.default_rng([seed, number])))
        try:
            with time_limit(SECONDS):
                read()
            outcomes["read"] += 1
        except RoboVLMsError as error:
            assert str(error), f"mutation {number}: an error without a text"
            assert len(str(error)) < 20_000, f"mutation {number}: an error of {len(str(error))} characters"
            outcomes["refused"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(f"mutation {number} of seed {seed}: {type(error).__name__}: {error}") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak < GIBIBYTES + 4, f"{peak:.1f} GiB were used"
    return outcomes
