"""config/vla.yaml and docs/parameters.md, written from the declaration of the node's parameters.

    python -m robovlms_ros.ros.parameter_files
"""

import math
import textwrap

from robovlms_ros.core import resources
from robovlms_ros.ros.parameters import CAMERAS, FORMER, PARAMETERS, Value, expand


def to_yaml() -> str:
    """The text of config/vla.yaml: every default, under a comment with meaning and range."""
    lines = [
        "# Parameters of vla_node at their defaults; `/**` makes the file fit any node name and "
        "namespace.",
        "# Written by `python -m robovlms_ros.ros.parameter_files`; give an edited copy as params_file.",
        "/**:",
        "  ros__parameters:",
    ]
    for entry in expand(CAMERAS):
        allowed = entry.allowed()
        text = entry.text() + (f" Allowed: {allowed}." if allowed else "")
        lines += textwrap.wrap(text, 110, initial_indent="    # ", subsequent_indent="    # ")
        lines.append(f"    {entry.name}: {_literal(entry.default)}")
    return "\n".join(lines) + "\n"


def to_markdown() -> str:
    """The text of docs/parameters.md: a table of all parameters, and the meaning of each."""
    lines = [
        "# Parameters of `vla_node`",
        "",
        "Written by `python -m robovlms_ros.ros.parameter_files` from the declaration in",
        "`robovlms_ros/ros/parameters.py`. Set them in a copy of `config/vla.yaml`",
        "(`params_file:=`). A parameter is set while the node is unconfigured, unless the last column",
        "names another time.",
        "",
        "| parameter | default | unit | range | set |",
        "|---|---|---|---|---|",
    ]
    for entry in PARAMETERS:
        when = "at start" if entry.fixed else "at any time" if entry.live else ""
        when = "while inactive" if entry.inactive else when
        numbers = entry.allowed().removeprefix("from ") if math.isfinite(entry.low) else ""
        cells = (f"`{entry.name}`", f"`{_literal(entry.default)}`", entry.unit, numbers, when)
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for entry in PARAMETERS:
        text = f"- `{entry.name}`: {entry.description}"
        if entry.choices:
            text += f" Allowed: {', '.join(entry.choices)}."
        lines += textwrap.wrap(text, 98, subsequent_indent="  ", break_on_hyphens=False)
    former = ", ".join(f"`{old}` (now `{new}`)" for old, new in FORMER.items())
    lines += ["", *textwrap.wrap(f"Former names, accepted with a warning in this release: {former}.")]
    return "\n".join(lines) + "\n"


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(value) + "]"
    if value in ("", "off"):
        return f'"{value}"'  # YAML reads a bare off as false
    return str(value)


if __name__ == "__main__":
    share = resources.share_directory()
    (share / "config" / "vla.yaml").write_text(to_yaml(), encoding="utf-8")
    (share / "docs" / "parameters.md").write_text(to_markdown(), encoding="utf-8")
