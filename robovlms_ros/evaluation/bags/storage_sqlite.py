"""rosbag2's SQLite files (`.db3`), from any distribution, whole or cut off."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path


class SqliteError(Exception):
    """The file is not a rosbag2 database."""


@dataclass
class SqliteStorage:
    """One database. `open` finds its topics; `notes` says in words what was lost.

    distribution: the ROS that recorded it, "" where the file does not say (before Humble).
    """

    path: Path
    channels: dict[int, tuple[str, str]] = field(default_factory=dict)  # id -> (topic, type)
    definitions: dict[str, tuple[str, str]] = field(default_factory=dict)  # type -> (encoding, text)
    counts: dict[str, int] | None = None
    notes: list[str] = field(default_factory=list)
    distribution: str = ""
    _copy: tempfile.TemporaryDirectory[str] | None = None

    def open(self) -> None:
        """Find the topics. Raises SqliteError."""
        self._readable = self._shortened() or self.path
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
                if list(database.execute("PRAGMA table_info(schema)")):
                    self.distribution = str((database.execute("SELECT ros_distro FROM schema").fetchone() or ("",))[0])
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
        return sqlite3.connect(f"file:{self._readable}?immutable=1", uri=True)

    def _shortened(self) -> Path | None:
        """A copy of a cut-off file whose header says how many pages there are, None for a whole one.

        SQLite refuses a file that is shorter than its header says, and if told not to, takes what is missing for zeros.
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

    def times(self) -> Iterator[tuple[str, int]]:
        """(topic, time ns) in the order of recording, for finding out whether the clock jumped."""
        with closing(self._connect()) as database:
            try:
                for key, time in database.execute("SELECT topic_id, timestamp FROM messages ORDER BY id"):
                    yield self.channels[key][0], time
            except sqlite3.DatabaseError:
                return

    def messages(
        self, wanted: set[str] | None, by_time: bool = False, span: tuple[int, int] | None = None
    ) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, time ns, bytes), in the order of recording or of time; `span` is the first and last time."""
        keys = [key for key, (topic, _) in self.channels.items() if wanted is None or topic in wanted]
        marks = ",".join("?" * len(keys))
        order = "timestamp" if by_time else "id"
        times = " AND timestamp BETWEEN ? AND ?" if span else ""
        query = f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({marks}){times} ORDER BY {order}"
        read = 0
        with closing(self._connect()) as database:
            try:
                for key, time, data in database.execute(query, [*keys, *(span or ())]):
                    read += 1
                    yield *self.channels[key], time, data
            except sqlite3.DatabaseError as error:
                self.notes.append(
                    f"{self.path.name} is damaged ({error}): the {read} messages before the damage are used."
                )
