"""rosbag2's SQLite files (`.db3`), from any distribution, whole or cut off."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from robovlms_ros.core.caps import MAX_MESSAGE_BYTES, MAX_SCHEMA_BYTES
from robovlms_ros.core.text_safety import printable
from robovlms_ros.evaluation.bags.storage import (
    BagStorage,
    StorageError,
    StoredMessage,
    written_by_topic,
)

READ = ("topics", "messages", "schema", "message_definitions")
"""Names that are read of the database."""
DAMAGED = (sqlite3.Error, OverflowError, MemoryError, UnicodeDecodeError, ValueError)
"""Exceptions of reading broken pages."""


@dataclass
class SqliteStorage(BagStorage):
    """One database. Files from before Humble name no distribution."""

    _copy: tempfile.TemporaryDirectory[str] | None = None

    def open(self) -> None:
        """Find the topics. Raises StorageError."""
        self._readable = self._shortened() or self.path
        wal = self.path.with_name(self.path.name + "-wal")
        if wal.exists() and wal.stat().st_size:
            self.notes.append(
                f"{self.path.name} was not closed: messages still in {wal.name} are not read. "
                f"`sqlite3 {self.path.name} 'pragma wal_checkpoint(truncate)'` puts them in."
            )
        with closing(self._connect()) as database:
            try:
                self._require_tables(database)
                columns = {row[1] for row in database.execute("PRAGMA table_info(topics)")}
                if not {"id", "name", "type"} <= columns:
                    raise StorageError("it has no table of topics")
                for key, name, kind in database.execute("SELECT id, name, type FROM topics"):
                    if not (isinstance(key, int) and isinstance(name, str) and isinstance(kind, str)):
                        raise StorageError(f"its table of topics holds {printable((key, name, kind))}: must be a "
                                          "number and two texts")
                    self.channels[key] = (name, kind)
                self._find_foreign(database, columns)
                if list(database.execute("PRAGMA table_info(schema)")):
                    self.distribution = str((database.execute("SELECT ros_distro FROM schema").fetchone() or ("",))[0])
                if list(database.execute("PRAGMA table_info(message_definitions)")):
                    query = "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
                    self.definitions = {kind: (encoding, text) for kind, encoding, text in database.execute(query)
                                        if all(isinstance(value, str) for value in (kind, encoding, text))}
            except DAMAGED as error:
                raise StorageError(printable(error)) from error
            try:
                rows = database.execute("SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id")
                found = dict(rows.fetchall())
                self.counts = {name: found.get(key, 0) for key, (name, _) in self.channels.items()}
            except DAMAGED:
                self.counts = None

    def _require_tables(self, database: sqlite3.Connection) -> None:
        """Raise StorageError for a view or computed column among what is read: it may compute
        without end."""
        query = "SELECT name, type, sql FROM sqlite_master"
        for name, kind, text in database.execute(query):
            if str(name).lower() not in READ:
                continue
            virtual = str(text or "").lstrip().upper().startswith("CREATE VIRTUAL")
            if kind != "table" or virtual:
                raise StorageError(f"'{name}' is a {'virtual table' if virtual else kind}: must be a table, as rosbag2 "
                                  "writes it")
            hidden = [row[1] for row in database.execute(f"PRAGMA table_xinfo({str(name).lower()})") if row[6]]
            if hidden:
                raise StorageError(f"column '{printable(hidden[0])}' of table '{name}' is computed: must be stored")

    def _find_foreign(self, database: sqlite3.Connection, columns: set[str]) -> None:
        """Move the topics that are not in ROS 2's encoding from `channels` to `foreign`."""
        if "serialization_format" not in columns:
            return
        for key, encoding in database.execute("SELECT id, serialization_format FROM topics"):
            if encoding not in ("cdr", "", None) and key in self.channels:
                self.foreign[self.channels.pop(key)[0]] = str(encoding)

    def _connect(self) -> sqlite3.Connection:
        """A read-only connection. Characters of the path that have a meaning in a URI are
        escaped."""
        database = sqlite3.connect(f"file:{quote(str(self._readable))}?immutable=1", uri=True)
        database.execute("PRAGMA trusted_schema=OFF")
        database.execute("PRAGMA cell_size_check=ON")
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_MESSAGE_BYTES + MAX_SCHEMA_BYTES)
        return database

    def _shortened(self) -> Path | None:
        """A copy of a cut-off file whose header has the number of its pages, None for a whole
        one.

        SQLite refuses a file that is shorter than its header declares, and if forced, takes what
        is missing for zeros.
        """
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            head = file.read(32)
        if len(head) < 32 or not head.startswith(b"SQLite format 3"):
            return None
        page = int.from_bytes(head[16:18], "big")
        page = 65536 if page == 1 else page
        if not page or size >= page * int.from_bytes(head[28:32], "big"):
            return None
        self.notes.append(f"{self.path.name} is cut off after {size // page} pages; what is there is used.")
        self._copy = tempfile.TemporaryDirectory(prefix="robovlms_bag_")
        target = Path(self._copy.name) / self.path.name
        shutil.copyfile(self.path, target)
        with target.open("r+b") as file:
            file.seek(28)
            file.write((size // page).to_bytes(4, "big"))
            file.truncate(size // page * page)
        return target

    def messages(self, topics: set[str] | None) -> Iterator[StoredMessage]:
        """The messages of `topics` (None: all) in the order of recording, or by time where
        `written_by_topic`."""
        return self._select(topics, "timestamp" if written_by_topic(self._times()) else "id")

    def between(self, topics: set[str], begin: int, end: int) -> Iterator[StoredMessage]:
        """The messages logged from `begin` to `end`, ns, both included."""
        return self._select(topics, "id", (begin, end))

    def _times(self) -> Iterator[tuple[str, int]]:
        """(topic, time ns) in the order of recording."""
        with closing(self._connect()) as database, suppress(*DAMAGED):
            for key, time in database.execute("SELECT topic_id, timestamp FROM messages ORDER BY id"):
                if key in self.channels and isinstance(time, int):
                    yield self.channels[key][0], time

    def _select(
        self, wanted: set[str] | None, order: str, span: tuple[int, ...] = ()
    ) -> Iterator[StoredMessage]:
        """The messages by the column `order`. span: first and last time, ns."""
        keys = [key for key, (topic, _) in self.channels.items() if wanted is None or topic in wanted]
        marks = ",".join("?" * len(keys))
        times = " AND timestamp BETWEEN ? AND ?" if span else ""
        data = "CASE WHEN length(data) <= ? THEN data END"
        query = f"SELECT topic_id, timestamp, {data} FROM messages WHERE topic_id IN ({marks}){times} ORDER BY {order}"
        read = 0
        unusable = 0
        with closing(self._connect()) as database:
            try:
                for key, time, content in database.execute(query, [MAX_MESSAGE_BYTES, *keys, *span]):
                    if key not in self.channels or not isinstance(time, int) or not isinstance(content, bytes):
                        unusable += 1
                        continue
                    read += 1
                    yield *self.channels[key], time, content
            except DAMAGED as error:
                self.notes.append(
                    f"{self.path.name} is damaged ({printable(error)}): the {read} messages before the damage are used."
                )
        if unusable:
            self.notes.append(
                f"{self.path.name}: {unusable} messages have no whole number as time, no bytes as content, or more "
                f"than {MAX_MESSAGE_BYTES} of them (MAX_MESSAGE_BYTES), and are left out."
            )
