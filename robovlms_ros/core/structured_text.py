"""YAML and JSON files into plain values: each by its own rules, bounded, with errors that name the
file.

A `.json` file is read by a JSON parser. In YAML `1e-4` and `2E5` are numbers, as in YAML 1.2 and as
a person means them; YAML 1.1 reads them as text. Aliases may not multiply a file beyond
MAX_CONFIG_VALUES.
"""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from robovlms_ros.core.caps import MAX_CONFIG_DEPTH, MAX_CONFIG_VALUES
from robovlms_ros.core.text_safety import printable

FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
    |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


class TextError(ValueError):
    """A text that is not valid YAML or JSON, or exceeds a cap; the error does not name the file."""


class _Loader(yaml.SafeLoader):
    """The safe loader with numbers as YAML 1.2 has them."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


def from_json(text: str) -> Any:
    """The plain values of a JSON text. Raises TextError."""
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise TextError(_too_deep()) from error
    except ValueError as error:
        raise TextError(printable(str(error), 300)) from error
    return values


def from_yaml(text: str) -> Any:
    """The plain values of a YAML text. Raises TextError."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, 0)
        return loader.construct_document(node)
    except RecursionError as error:
        raise TextError(_too_deep()) from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        if isinstance(error, TextError):
            raise
        raise TextError(printable(" ".join(str(error).split()), 300)) from error
    finally:
        if loader is not None:
            loader.dispose()


def _refuse_constant(name: str) -> NoReturn:
    raise TextError(f"{name} is no JSON number")


def _too_deep() -> str:
    return f"it is nested more than {MAX_CONFIG_DEPTH} levels deep (MAX_CONFIG_DEPTH)"


def _measure(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """The number of values that a node expands to, aliases included. Raises TextError beyond the
    caps."""
    if depth > MAX_CONFIG_DEPTH:
        raise TextError(_too_deep())
    if id(node) in known:
        if known[id(node)] == 0:
            raise TextError("an alias refers to a value that contains it")
        return known[id(node)]
    known[id(node)] = 0
    count = 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            count += _measure(key, known, depth + 1) + _measure(value, known, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            count += _measure(value, known, depth + 1)
    if count > MAX_CONFIG_VALUES:
        raise TextError(f"it expands to more than {MAX_CONFIG_VALUES} values (MAX_CONFIG_VALUES)")
    known[id(node)] = count
    return count


def write_json(path: Path | None, values: Any) -> None:
    """Write plain values to a file that is replaced at once; nothing where `path` is None.

    An interrupted program leaves the earlier file whole.
    """
    if path is None:
        return
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
