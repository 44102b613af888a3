"""A file of a rosbag2: the part that MCAP and SQLite have in common."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from robovlms_ros.core.types import NANOSECONDS

JUMP_NS = NANOSECONDS
"""A step back of recorded time by more than this is a jump of the clock."""

StoredMessage = tuple[str, str, int, bytes]
"""(topic, type, log time ns, bytes as recorded)"""


@dataclass
class BagStorage:
    """One file. `open` finds its topics.

    channels: id -> (topic, type). definitions: type -> (encoding, text).
    foreign: topic -> an encoding that is not ROS 2's. counts: topic -> messages, None if unknown.
    notes: losses, one sentence each. distribution: the ROS that recorded it, "" if unknown.
    """

    path: Path
    channels: dict[int, tuple[str, str]] = field(default_factory=dict)
    definitions: dict[str, tuple[str, str]] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] | None = None
    notes: list[str] = field(default_factory=list)
    distribution: str = ""

    def open(self) -> None:
        """Find the topics. Raises StorageError."""
        raise NotImplementedError

    def messages(self, topics: set[str] | None) -> Iterator[StoredMessage]:
        """The messages of `topics` (None: all) in the order of recording, or by time where
        `written_by_topic`."""
        raise NotImplementedError

    def between(self, topics: set[str], begin: int, end: int) -> Iterator[StoredMessage]:
        """The messages logged from `begin` to `end`, ns, both included."""
        raise NotImplementedError


class StorageError(Exception):
    """The file is not of the storage's format."""


def written_by_topic(times: Iterable[tuple[str, int]]) -> bool:
    """True if time goes back across topics but never within one: sorting is right, no clock jumped.

    times: (topic, log time ns) in the order of recording.
    """
    latest: dict[str, int] = {}
    newest = 0
    disordered = False
    for topic, time in times:
        if time < latest.get(topic, 0) - JUMP_NS:
            return False
        disordered = disordered or time < newest - JUMP_NS
        latest[topic] = max(time, latest.get(topic, 0))
        newest = max(newest, time)
    return disordered
