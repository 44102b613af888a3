"""Events of a bag, in the order of reception."""

from dataclasses import dataclass
from typing import Any

from robovlms_ros.core.types import ActionChunk, Observation, RobotState
from robovlms_ros.evaluation.bags.reader import RawMessage
from robovlms_ros.evaluation.replay.calibration import Calibration

DISCARD = "discard"
MARKS = ("end", "success", "failure", DISCARD)
"""Texts of episode markers that end an episode, or judge the one that has ended. Any other text
begins one."""
DISCARDED = "it was discarded"
"""Reason why an episode is neither trained on nor evaluated."""


@dataclass(frozen=True)
class ObservationEvent:
    """A complete observation. now_ns: when the bag received the message that completed it. camera:
    where the reference camera was, None without calibration.
    """

    now_ns: int
    observation: Observation
    episode: int
    camera: Calibration | None = None


@dataclass(frozen=True)
class JointStateEvent:
    """A newer measured state."""

    now_ns: int
    state: RobotState


@dataclass(frozen=True)
class CommandEvent:
    """A message of the arm's or the gripper's command topic."""

    now_ns: int
    message: Any
    gripper: bool


@dataclass(frozen=True)
class RecordedChunkEvent:
    """A chunk that was recorded."""

    now_ns: int
    chunk: ActionChunk


@dataclass(frozen=True)
class SourceEvent:
    """Another source commands the arm, from `since_ns` on. person: a person drives. commands: the
    source is the same, and the person sent a command."""

    now_ns: int
    since_ns: int
    person: bool
    commands: bool = False


@dataclass(frozen=True)
class Restart:
    """Something begins anew. episode: the one that begins. forget: the node forgets history and
    plan as well (a pause, a clock jump). jump: earlier records hold no information about
    follows (a clock jump, an arm put elsewhere).
    mark: one of MARKS, of the episodes from number `since` on; empty where something else restarts.
    A mark that `judges` replaces the outcome that they had.
    """

    now_ns: int
    reason: str
    episode: int
    forget: bool = True
    jump: bool = False
    mark: str = ""
    since: int = 0

    @property
    def judges(self) -> bool:
        """True for a mark that gives episodes an outcome."""
        return self.mark not in ("", "end")


@dataclass
class LeftOut:
    """An episode that is not evaluated. name: the text of the message that began it. begin_ns,
    end_ns: stamps of its first and its last image."""

    name: str
    reason: str
    images: int = 0
    begin_ns: int = 0
    end_ns: int = 0

    def add(self, stamp_ns: int) -> None:
        """Count an image."""
        self.begin_ns = min(self.begin_ns, stamp_ns) if self.images else stamp_ns
        self.end_ns = max(self.end_ns, stamp_ns)
        self.images += 1

    def covers(self, stamp_ns: int) -> bool:
        """True for a stamp among its images'."""
        return self.images > 0 and self.begin_ns <= stamp_ns <= self.end_ns


@dataclass(frozen=True)
class RawMessageEvent:
    """A recorded message that is only copied."""

    raw: RawMessage


Event = (
    ObservationEvent | JointStateEvent | CommandEvent | RecordedChunkEvent | SourceEvent | Restart
    | RawMessageEvent
)
