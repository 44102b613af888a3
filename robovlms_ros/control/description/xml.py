"""XML of robot descriptions, read as leniently as by ROS and MuJoCo, and within the caps.

Both use tinyxml2. It accepts prefixes without a declaration, blank lines, a byte order mark or
comments before the XML header, `--` inside comments, a bare `&`, any encoding, and text after the
root element; expat alone refuses each of these.
"""

import re
import stat
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from robovlms_ros.core.caps import (
    MAX_DESCRIPTION_BYTES,
    MAX_DESCRIPTION_DEPTH,
    MAX_DESCRIPTION_ELEMENTS,
    MAX_DESCRIPTION_INCLUDES,
)

SHOWN_LENGTH = 100
HEADER = re.compile(r"\s*<\?xml[^>]*\?>")
NOT_AN_ENTITY = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#\d{1,7}|#x[0-9a-fA-F]{1,6});)")


class DescriptionFault(ValueError):
    """The fault of a description, without the description's name; `load_tree` adds it."""


def quoted(text: object) -> str:
    """A value of a description as a message shows it: escaped and cut."""
    words = str(text)
    return repr(words if len(words) <= SHOWN_LENGTH else words[:SHOWN_LENGTH] + "...")


class DescriptionReader:
    """Reads one description and its includes; the caps hold for all of them together."""

    def __init__(self) -> None:
        self._bytes = 0
        self._elements = 0
        self._files: set[Path] = set()

    def file(self, path: Path) -> Element:
        """The root element of a file. Raises DescriptionFault or OSError."""
        if len(self._files) > MAX_DESCRIPTION_INCLUDES:
            raise DescriptionFault(f"it includes more than {MAX_DESCRIPTION_INCLUDES} files")
        try:
            resolved = path.resolve()
            mode = path.stat().st_mode
        except ValueError as error:
            raise DescriptionFault(f"{quoted(path)} is no path: {error}") from error
        if resolved in self._files:
            raise DescriptionFault(
                f"it includes {quoted(path)} twice; MuJoCo allows one include of a file"
            )
        self._files.add(resolved)
        # A pipe or a device has no end.
        if not stat.S_ISREG(mode):
            raise DescriptionFault(f"{quoted(path)} is not a regular file")
        with path.open("rb") as stream:
            content = stream.read(MAX_DESCRIPTION_BYTES + 1)
        try:
            return self.text(content.decode("utf-8"))
        except UnicodeDecodeError:
            return self.text(content.decode("latin-1"))

    def text(self, text: str) -> Element:
        """The root element of a text. Raises DescriptionFault."""
        self._bytes += len(text)
        if self._bytes > MAX_DESCRIPTION_BYTES:
            raise DescriptionFault(f"it is larger than {MAX_DESCRIPTION_BYTES} bytes")
        text = _without_comments(text.removeprefix("\ufeff"))
        header = HEADER.match(text)
        if header:
            text = "\n" * header.group().count("\n") + text[header.end() :]
        return self._parse(NOT_AN_ENTITY.sub("&amp;", text))

    def _parse(self, text: str) -> Element:
        builder = TreeBuilder()
        depth = 0
        first = self._elements

        def start(name: str, attributes: dict[str, str]) -> None:
            nonlocal depth
            depth += 1
            self._elements += 1
            if depth > MAX_DESCRIPTION_DEPTH:
                raise DescriptionFault(f"elements lie more than {MAX_DESCRIPTION_DEPTH} deep")
            if self._elements > MAX_DESCRIPTION_ELEMENTS:
                raise DescriptionFault(f"it has more than {MAX_DESCRIPTION_ELEMENTS} elements")
            builder.start(name, attributes)

        def end(name: str) -> None:
            nonlocal depth
            depth -= 1
            builder.end(name)

        def refuse_entity(name: str, *_: object) -> None:
            raise DescriptionFault(
                f"it declares the XML entity {quoted(name)}; write its text instead"
            )

        # Without a namespace separator expat takes a prefix as a part of the name.
        parser = expat.ParserCreate("utf-8")
        parser.StartElementHandler = start
        parser.EndElementHandler = end
        parser.EntityDeclHandler = refuse_entity
        try:
            parser.Parse(text.encode("utf-8", "replace"), True)
        except expat.ExpatError as error:
            # tinyxml2 reads no further than the end of the root element.
            if self._elements == first or depth:
                raise DescriptionFault(f"{error}. Give a URDF or MJCF") from error
        return builder.close()


def _without_comments(text: str) -> str:
    """The text with each comment replaced by its line breaks: messages name lines."""
    parts = []
    position = 0
    while True:
        begin = text.find("<!--", position)
        end = text.find("-->", begin + 4) if begin >= 0 else -1
        if end < 0:
            parts.append(text[position:])
            return "".join(parts)
        parts.append(text[position:begin])
        parts.append("\n" * text.count("\n", begin, end))
        position = end + 3
