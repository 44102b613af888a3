"""rosbag2's SQLite files (`.db3`), from any distribution, whole or cut off."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path


class SqliteError(Exception):
    """The file is not a rosbag2 database."""


@dataclass
class SqliteStorage:
    """One database. `open` finds its topics; `notes` says in words what was lost."""

    path: Path
    channels: dict[int, tuple[str, str]] = field(default_factory=dict)  # id -> (topic, type)
    definitions: dict[str, tuple[str, str]] = field(default_factory=dict)  # type -> (encoding, text)
    counts: dict[str, int] | None = None
    notes: list[str] = field(default_factory=list)

    def open(self) -> None:
        """Find the topics. Raises SqliteError."""
        wal = self.path.with_name(self.path.name + "-wal")
        if wal.exists() and wal.stat().st_size:
            self.notes.append(
                f"{self.path.name} was not closed: messages still in {wal.name} are not read. "
                f"`sqlite3 {self.path.name} 'pragma wal_checkpoint(truncate)'` puts them in."
            )
        with closing(self._connect()) as database:
            try:
                columns = {row[1] for row in database.execute("PRAGMA table_info(topics)")}
                if not {"id", "name", "type"} <= columns:
                    raise SqliteError("it has no table of topics")
                for key, name, kind in database.execute("SELECT id, name, type FROM topics"):
                    self.channels[key] = (name, kind)
                if list(database.execute("PRAGMA table_info(message_definitions)")):
                    query = "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
                    self.definitions = {kind: (encoding, text) for kind, encoding, text in database.execute(query)}
            except sqlite3.DatabaseError as error:
                raise SqliteError(str(error)) from error
            try:
                rows = database.execute("SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id")
                found = dict(rows.fetchall())
                self.counts = {name: found.get(key, 0) for key, (name, _) in self.channels.items()}
            except sqlite3.DatabaseError:
                self.counts = None

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(f"file:{self.path}?immutable=1", uri=True)
        # Without it SQLite refuses a file that is shorter than its header says, although most of it can be read.
        database.execute("PRAGMA writable_schema=ON")
        return database

    def times(self) -> Iterator[tuple[str, int]]:
        """(topic, time ns) in the order of recording, for finding out whether the clock jumped."""
        with closing(self._connect()) as database:
            try:
                for key, time in database.execute("SELECT topic_id, timestamp FROM messages ORDER BY id"):
                    yield self.channels[key][0], time
            except sqlite3.DatabaseError:
                return

    def messages(self, wanted: set[str] | None, by_time: bool = False) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, time ns, bytes), in the order of recording or of time."""
        keys = [key for key, (topic, _) in self.channels.items() if wanted is None or topic in wanted]
        marks = ",".join("?" * len(keys))
        order = "timestamp" if by_time else "id"
        query = f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({marks}) ORDER BY {order}"
        read = 0
        with closing(self._connect()) as database:
            try:
                for key, time, data in database.execute(query, keys):
                    read += 1
                    yield *self.channels[key], time, data
            except sqlite3.DatabaseError as error:
                self.notes.append(
                    f"{self.path.name} is damaged ({error}): the {read} messages before the damage are used."
                )
