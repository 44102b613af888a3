"""Message types of rosbag2 without ROS: standard ones, this package's own (`msg/`), and a bag's
own."""

from collections.abc import Iterable
from typing import Any

from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from robovlms_ros.core.resources import PACKAGE, share_directory


def difference(kind: str, found: Typestore, known: Typestore) -> str | None:
    """The first field of the known type that the found one lacks or types otherwise; None where it
    has all of them.

    Fields that only the found type has do no harm: messages are decoded by it.
    """
    checked: set[str] = set()
    waiting = [kind]
    while waiting:
        name = waiting.pop()
        if name in checked:
            continue
        checked.add(name)
        have = {field: description for field, description in _fields(found, name)}
        for field, description in _fields(known, name):
            if field not in have:
                return f"{name} has no field '{field}'"
            if _plain(have[field]) != _plain(description):
                return f"field '{field}' of {name} is of another type"
            waiting += names_in(description)
    return None


def lacking(kinds: Iterable[str], found: Typestore, known: Typestore) -> dict[str, Any]:
    """The known definitions that the kinds need and the found ones lack, those of their fields'
    types included."""
    needed: dict[str, Any] = {}
    checked: set[str] = set()
    waiting = [*kinds, *found.fielddefs]
    while waiting:
        name = waiting.pop()
        if name in checked:
            continue
        checked.add(name)
        if name not in found.fielddefs and name in known.fielddefs:
            needed[name] = known.fielddefs[name]
        fields = _fields(found, name) or _fields(known, name)
        waiting += [inner for _, description in fields for inner in names_in(description)]
    return needed


def _fields(store: Typestore, name: str) -> list[tuple[str, Any]]:
    return list(store.fielddefs[name][1]) if name in store.fielddefs else []


def _plain(description: Any) -> Any:
    """A field's type without the bounds of its texts and sequences, which do not change how it is
    read."""
    node, value = description
    if node == Nodetype.BASE:
        return (int(node), value[0])
    if node == Nodetype.NAME:
        return (int(node), value)
    inner, length = value
    return (int(node), _plain(inner), length if node == Nodetype.ARRAY else 0)


def names_in(description: Any) -> list[str]:
    """The message types in a field's type."""
    node, value = description
    if node == Nodetype.NAME:
        return [value]
    return [] if node == Nodetype.BASE else names_in(value[0])


def typestore(distribution: Stores = Stores.ROS2_JAZZY) -> Typestore:
    """The message types of a ROS distribution with ActionChunk and PolicyStatus registered."""
    store = get_typestore(distribution)
    for path in sorted((share_directory() / "msg").glob("*.msg")):
        store.register(get_types_from_msg(path.read_text(encoding="utf-8"), f"{PACKAGE}/msg/{path.stem}"))
    return store
