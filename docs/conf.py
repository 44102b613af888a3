"""Sphinx configuration of the documentation: python3 -m sphinx -b html docs docs_site."""

import re
from pathlib import Path

from pygments.lexers.special import TextLexer

_MANIFEST = Path(__file__).resolve().parents[1] / "package.xml"

project = "robovlms_ros"
author = "robovlms_ros maintainers"
release = re.search(r"<version>([\d.]+)</version>", _MANIFEST.read_text(encoding="utf-8"))[1]
version = release

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
myst_heading_anchors = 4
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Vision-language-action policies on real arms",
    "page_width": "1100px",
}


def setup(app):
    """Show the Mermaid diagram as text; a repository's site draws it."""
    app.add_lexer("mermaid", TextLexer)
