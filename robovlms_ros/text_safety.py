"""Text that came from a message, made fit for logs, status and error texts."""

LIMIT = 100
"""Characters of a message's field that are repeated in a text."""


def printable(value: object, limit: int = LIMIT) -> str:
    """`value` as one line of at most `limit` characters, control characters and escape sequences escaped.

    A longer text is cut, and its length follows in parentheses.
    """
    text = value if isinstance(value, str) else str(value)
    shown = "".join(_escaped(character) for character in text[: limit + 1])
    if len(text) <= limit and len(shown) <= limit:
        return shown
    return f"{shown[:limit]}... ({len(text)} characters)"


def _escaped(character: str) -> str:
    """The character, or its Python escape where a terminal would not print it. Surrogates are escaped too."""
    return character if character.isprintable() else ascii(character)[1:-1]
