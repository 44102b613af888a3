"""The recorded bag with the predictions beside it, as one MCAP file to open in Foxglove,
PlotJuggler or RViz."""

import shutil
import tempfile
from pathlib import Path

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import TypesysError

from robovlms_ros.core.types import ActionChunk, TrajectoryCommand
from robovlms_ros.evaluation.bags.chunks import (
    CHUNK,
    TRAJECTORY,
    message_of_chunk,
    message_of_command,
)
from robovlms_ros.evaluation.bags.reader import Bag, RawMessage


class Annotator:
    """Copies messages and adds predictions; `close` puts the file where it belongs.

    Predicted topics: `/robovlms/<policy>/action_chunk` and `/robovlms/<policy>/joint_trajectory`.
    notes: types that cannot be copied because neither the bag nor this package defines them.
    """

    def __init__(self, target: Path, bag: Bag, base_frame: str) -> None:
        self._target = target
        self._bag = bag
        self._frame = base_frame
        self._folder = Path(tempfile.mkdtemp(prefix="robovlms_annotated_", dir=target.parent))
        self._writer = Writer(self._folder / "bag", version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._connections: dict[str, object | None] = {}
        self.notes: list[str] = []

    def copy(self, raw: RawMessage) -> None:
        """A recorded message, undecoded."""
        self._write(raw.topic, raw.type, raw.log_ns, raw.data)

    def chunk(self, policy: str, now_ns: int, chunk: ActionChunk) -> None:
        """A predicted chunk, at the time its observation was complete."""
        data = message_of_chunk(self._bag.types, chunk, self._frame)
        self._write(f"/robovlms/{topic_token(policy)}/action_chunk", CHUNK, now_ns, data)

    def command(self, policy: str, now_ns: int, command: TrajectoryCommand) -> None:
        """Commands for the arm's controller, had they been sent."""
        data = message_of_command(self._bag.types, command)
        self._write(f"/robovlms/{topic_token(policy)}/joint_trajectory", TRAJECTORY, now_ns, data)

    def _write(self, topic: str, kind: str, now_ns: int, data: bytes) -> None:
        if topic not in self._connections:
            try:
                self._connections[topic] = self._writer.add_connection(topic, kind, typestore=self._bag.types)
            except (TypesysError, KeyError):
                self._connections[topic] = None
                self.notes.append(f"{topic} ({kind}) is not in the annotated bag: its message type is unknown.")
        connection = self._connections[topic]
        if connection is not None:
            self._writer.write(connection, now_ns, data)  # type: ignore[arg-type]

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        for file in (self._folder / "bag").glob("*.mcap"):
            shutil.move(file, self._target)
        shutil.rmtree(self._folder, ignore_errors=True)


def topic_token(name: str) -> str:
    """A policy's name as a part of a topic."""
    token = "".join(c if c.isalnum() or c == "_" else "_" for c in name).strip("_") or "policy"
    return f"p_{token}" if token[0].isdigit() else token
