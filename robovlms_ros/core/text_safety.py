"""Text that came from a message, made fit for logs, status and error texts."""

import re
import threading
from collections import OrderedDict

LIMIT = 100
"""Characters of a message's field that are repeated in a text."""


def printable(value: object, limit: int = LIMIT) -> str:
    """`value` as one line of at most `limit` characters, control characters and escape sequences
    escaped.

    A longer text is cut, and its length follows in parentheses.
    """
    text = value if isinstance(value, str) else str(value)
    shown = "".join(_escaped(character) for character in text[: limit + 1])
    if len(text) <= limit and len(shown) <= limit:
        return shown
    return f"{shown[:limit]}... ({len(text)} characters)"


def _escaped(character: str) -> str:
    """The character, or its Python escape where a terminal would not print it. Surrogates are
    escaped too."""
    return character if character.isprintable() else ascii(character)[1:-1]


def without_numbers(text: str) -> str:
    """The text with its digits and points removed: equal for the same complaint about another
    value."""
    return re.sub(r"[0-9.]+", "", text)


REPEAT_PERIOD = 10.0
REPEATS_KEPT = 64


class RepeatFilter:
    """Passes each text once per REPEAT_PERIOD seconds, numbers aside, so that repeated problems
    cost no log volume.

    Thread-safe. The last REPEATS_KEPT texts are kept. The caller's clock may jump back: the next
    text then passes.
    """

    def __init__(self) -> None:
        self._passed: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def passes(self, text: str, now: float) -> bool:
        """True where the text was not passed within the last REPEAT_PERIOD seconds. now:
        s."""
        key = without_numbers(text)
        with self._lock:
            last = self._passed.get(key)
            if last is not None and 0 <= now - last < REPEAT_PERIOD:
                return False
            self._passed[key] = now
            self._passed.move_to_end(key)
            while len(self._passed) > REPEATS_KEPT:
                self._passed.popitem(last=False)
            return True
