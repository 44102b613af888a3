"""Strict loading of configuration: a mapping (JSON or YAML) into a frozen dataclass, or an error a
user can act on.

`build(cls, mapping, where)` fills every field of `cls`, recursing into nested dataclasses, tuples
and mappings, checks each value against its annotation, and refuses what it does not know with the
nearest names it does. Ranges are checked by each dataclass in `__post_init__`, which raises
`ConfigError` itself (see `require`). An annotated class with a `variant(tag, where)` of its own
names the dataclass for a mapping's `type`.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from robovlms_ros.core.caps import MAX_CONFIG_BYTES
from robovlms_ros.core.file_boundary import require_file
from robovlms_ros.core.structured_text import TextError, from_json, from_yaml
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import RoboVLMsError

T = TypeVar("T")


class ConfigError(RoboVLMsError, ValueError):
    """A configuration value is missing, unknown, of the wrong type or out of range."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` for a near miss, else the allowed words, as the tail of a message."""
    words = sorted(allowed)
    near = difflib.get_close_matches(word, words, n=1)
    return f" Did you mean '{near[0]}'?" if near else f" Allowed: {', '.join(words) or 'nothing'}."


def shown(value: object) -> str:
    """A value as an error names it: cut, and without control characters."""
    return printable(repr(value))


def require(condition: bool, where: str, value: object, allowed: str) -> None:
    """Raise ConfigError `where = value: must be allowed` unless the condition holds."""
    if not condition:
        raise ConfigError(f"{where} = {shown(value)}: must be {allowed}.")


def parameter(default: Any, description: str, **facts: Any) -> Any:
    """A dataclass field with the facts that a user reads of it.

    facts: unit; low, high (both inclusive); and others for the reader of the field's metadata.
    """
    return dataclasses.field(default=default, metadata={"description": description, **facts})


def check_ranges(instance: Any, where: str) -> None:
    """Raise ConfigError unless each number of a dataclass lies within its field's low and high."""
    for field in dataclasses.fields(instance):
        if "low" in field.metadata:
            low = field.metadata["low"]
            high = field.metadata["high"]
            value = getattr(instance, field.name)
            allowed = f"from {low:g} to {high:g}"
            require(low <= value <= high, f"{where}.{field.name}", value, allowed)


def current_names(
    given: Mapping[str, Any], former: Mapping[str, str], where: str, warn: Callable[[str], None]
) -> dict[str, Any]:
    """`given` with the names of earlier releases (former name -> present name) replaced.

    where: begins the messages, such as `parameter `. warn: receives one line for each former name.
    Raises ConfigError where a value is given by both names.
    """
    values = dict(given)
    for old, new in former.items():
        if old not in values:
            continue
        if new in values:
            raise ConfigError(f"{where}{old} and {new} are the same; give {new} alone.")
        warn(f"{where}{old} is called {new} now; the former name is accepted in this release only.")
        values[new] = values.pop(old)
    return values


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises ConfigError naming the file, and the line where it
    has one."""
    path = Path(path)
    require_file(ConfigError, path, MAX_CONFIG_BYTES, "MAX_CONFIG_BYTES")
    try:
        text = path.read_text(encoding="utf-8")
        data = from_json(text) if path.suffix == ".json" else from_yaml(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Give a YAML or JSON file.") from error
    except (TextError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML or JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {type(data).__name__}, must be a mapping of names to values.")
    return data


def build(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `cls` from `data`; `where` names the place in messages, e.g.
    `panda.yaml: limits`.

    Raises ConfigError for an unknown key, a missing key without default, or a value of the wrong
    type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} = {shown(data)}: must be a mapping of names to values.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {shown(key)}.{did_you_mean(str(key)[:100], fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = convert(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: '{name}' is missing ({describe(hints[name])}); it has no default.")
    return cls(**values)


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `hint`; raises ConfigError with both when it does not fit."""
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is typing.Literal:
        if any(type(value) is type(allowed) and value == allowed for allowed in args):
            return value
        raise ConfigError(f"{where} = {shown(value)}: not allowed.{did_you_mean(str(value)[:100], map(str, args))}")
    if isinstance(hint, type) and "variant" in vars(hint):
        family: Any = hint
        return build(family.variant(_tag(value, where), where), value, where)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {str(k): convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _as_float(value, where)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ConfigError(f"{where} = {shown(value)}: must be {describe(hint)}.")


def _as_float(value: int | float, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigError(f"{where} = {shown(value)}: must be a number that fits into 64 bits.") from error


def _convert_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    members = [a for a in args if a is not type(None)]
    if len(members) == 1:
        return convert(members[0], value, where)
    if all(map(dataclasses.is_dataclass, members)):
        return build(_pick_by_type(members, value, where), value, where)
    for member in members:
        try:
            return convert(member, value, where)
        except ConfigError:
            continue
    raise ConfigError(f"{where} = {shown(value)}: must be {' or '.join(describe(a) for a in args)}.")


def _pick_by_type(members: list[Any], value: Any, where: str) -> Any:
    """The dataclass among `members` whose `type: Literal[...]` field equals `value["type"]`."""
    tags = {tag: m for m in members for tag in typing.get_args(typing.get_type_hints(m)["type"])}
    tag = _tag(value, where)
    if not isinstance(tag, str) or tag not in tags:
        raise ConfigError(f"{where}.type = {shown(tag)}: not allowed.{did_you_mean(str(tag)[:100], tags)}")
    return tags[tag]


def _tag(value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where} = {shown(value)}: must be a mapping of names to values, `type` among them."
        )
    return value.get("type")


def describe(hint: Any) -> str:
    """A type annotation in a user's words: `a number`, `one of 'base', 'tool'`, `a list of a
    text`."""
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is tuple:
        return f"a list of {describe(args[0])}"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a mapping"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))
