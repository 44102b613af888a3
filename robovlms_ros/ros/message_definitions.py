"""Definitions of message types as the installed packages have them, for the recordings of these
types."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from rosbags.typesys import get_types_from_msg
from rosbags.typesys.store import Typestore

from robovlms_ros.evaluation.bags.types import names_in


def register_installed(store: Typestore, type_name: str) -> None:
    """Register `package/msg/Name`, and the types of its fields, where the store lacks them.

    Packages outside ROS's core differ between releases of one distribution: the installed
    definition is the one that fits the bytes. Raises PackageNotFoundError and OSError.
    """
    found = {}
    waiting = [type_name]
    while waiting:
        name = waiting.pop()
        if name in store.fielddefs or name in found:
            continue
        types = get_types_from_msg(_definition(name), name)
        found.update(types)
        descriptions = [kind for _, fields in types.values() for _, kind in fields]
        waiting += [inner for description in descriptions for inner in names_in(description)]
    store.register(found)


def _definition(type_name: str) -> str:
    package, kind, name = type_name.split("/")
    share = Path(get_package_share_directory(package))
    return (share / kind / f"{name}.msg").read_text(encoding="utf-8")
