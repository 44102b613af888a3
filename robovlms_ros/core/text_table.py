"""Tables for a terminal."""

from collections.abc import Sequence


def aligned(
    header: Sequence[str], lines: Sequence[Sequence[str]], numbers: bool = False
) -> str:
    """Columns as wide as their widest cell, a rule under the header.

    numbers: all columns but the first are aligned to the right.
    """
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    rule = ["-" * width for width in widths]

    def text(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0])]
        for cell, width in zip(line[1:], widths[1:], strict=True):
            cells.append(cell.rjust(width) if numbers else cell.ljust(width))
        return "  ".join(cells).rstrip()

    return "\n".join(text(line) for line in [header, rule, *lines])
