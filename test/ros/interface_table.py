"""The table of the node's interfaces in docs/operate.md, which a test compares with the node."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `([^`]+)` \| (action|subscription|publisher|service) \| `([^`]+)` \|", re.M)


def table(node="/vla_node", space=""):
    """(absolute name, kind) -> type of every row, for a node in a namespace."""
    text = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    rows = {}
    for name, kind, of in ROW.findall(text):
        full = name if name.startswith("/") else f"{space}/{name}".replace("/~/", f"{node}/")
        rows[full, kind] = of
    assert len(rows) > 20
    return rows
