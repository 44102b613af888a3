"""One bag, some policies, one result that JSON can hold: what `robovlms eval` runs for every
bag."""

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robovlms_ros.checkpoints.passport import difference
from robovlms_ros.control.collision_solids import CollisionModel
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.scheduler import ScheduleConfig
from robovlms_ros.core.schema import require
from robovlms_ros.core.types import NANOSECONDS, ActionSpec
from robovlms_ros.evaluation.bags.annotate import Annotator
from robovlms_ros.evaluation.bags.mapping import (
    CHUNK,
    IMAGES,
    STATUS,
    BagCamera,
    Stamps,
    TopicMapping,
    TopicsConfig,
    detect,
    encodings_of,
)
from robovlms_ros.evaluation.bags.reader import Bag, BagError, RawMessage
from robovlms_ros.evaluation.replay.calibration import Calibration
from robovlms_ros.evaluation.replay.executor import CachedKinematics, executor_factory
from robovlms_ros.evaluation.replay.loop import Perturbations, Replay, Runner, Schedule, Subject
from robovlms_ros.evaluation.replay.observations import BagObservations, discarded_episodes
from robovlms_ros.evaluation.replay.results import Row
from robovlms_ros.evaluation.replay.scoring import Scorer
from robovlms_ros.evaluation.report.build import EvaluationThresholds

PARTS = 2
"""Changes with the content of a filed result."""
COLUMNS = ("bag", "policy", "episode", "sequence", "stamp_ns", "instruction", "distance", "distance_end", "steps_known")


@dataclass(frozen=True)
class EvaluationConfig:
    """The evaluation YAML. Times are seconds.

    instruction: for bags without one, or instead of theirs. other_instruction: to see whether the
    model obeys; empty takes one that the bag had before. rate: inferences per second at most, 0
    is every image.
    latencies: replayed through scheduler and gate; the first one judges. sensitivity: also with
    each camera blanked, and with the other instruction; dropped: and with this fraction of images
    missing from the history; at every variant_stride-th inference. drop: fraction of images taken
    away from everything. block: images through the network together.
    stamps: `bag` times images by their reception in the bag, for recordings whose images are
    stamped zero. annotate: write annotated.mcap, which is larger than the bag. camera: as the
    node's parameter.
    """

    topics: TopicsConfig = field(default_factory=TopicsConfig)
    instruction: str = ""
    other_instruction: str = ""
    rate: float = 0.0
    drop: float = 0.0
    latencies: tuple[float, ...] = (0.05, 0.15, 0.3)
    sensitivity: bool = True
    dropped: float = 0.0
    variant_stride: int = 4
    camera_tolerance: float | None = None
    joint_states_tolerance: float | None = None
    block: int = 32
    annotate: bool = True
    stamps: Stamps = "header"
    camera: dict[str, BagCamera] = field(default_factory=dict)
    thresholds: EvaluationThresholds = field(default_factory=EvaluationThresholds)
    calibration: dict[str, Calibration] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(len(self.latencies) > 0 and all(0 <= x <= 10 for x in self.latencies), "latencies", self.latencies,
                "at least one number of seconds, each 0 to 10")
        require(0 <= self.drop < 1, "drop", self.drop, "a fraction, 0 or more and below 1")
        require(0 <= self.dropped < 1, "dropped", self.dropped, "a fraction, 0 or more and below 1")
        require(0 <= self.rate <= 1000, "rate", self.rate, "0 to 1000 Hz")
        require(1 <= self.block <= 4096, "block", self.block, "1 to 4096 images")
        require(1 <= self.variant_stride <= 1000, "variant_stride", self.variant_stride, "1 to 1000")


@dataclass(frozen=True)
class Setting:
    """Settings that all bags share. cameras: of the policies, the reference first.

    tolerances: s, as the node's parameters. encodings: camera -> encoding of its raw images, as the
    node's parameters; `config.camera` has precedence. camera_topics: camera -> base topic of the
    node's parameters.
    """

    robot: RobotSpec
    kinematics: Kinematics | None
    schedule: ScheduleConfig
    cameras: tuple[str, ...]
    config: EvaluationConfig
    camera_tolerance: float = 0.02
    state_tolerance: float = 0.05
    max_instruction: int = 500
    encodings: Mapping[str, str] = field(default_factory=dict)
    collision: CollisionModel | None = None
    camera_topics: Mapping[str, str] = field(default_factory=dict)


def evaluate_bag(
    path: Path, subjects: Sequence[Subject], setting: Setting, output: Path | None = None,
    stamps: frozenset[int] | None = None, progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Everything about one bag, as what JSON can hold.

    output: folder for `<bag>.csv` and `<bag>.mcap` (annotated), None writes nothing. Raises
    BagError when the bag cannot be used at all; missing or damaged parts are named in `notes`.
    """
    config = setting.config
    label = path.stem
    with Bag(path) as bag:
        mapping, lines = detect(
            bag, config.topics, setting.cameras, setting.robot, setting.camera_topics
        )
        encodings = _encodings(bag, mapping, setting)
        given = config.calibration.get(setting.cameras[0])
        _require_state(bag, mapping)
        kinematics: Any = CachedKinematics(setting.kinematics) if setting.kinematics is not None else None
        annotator = Annotator(output / f"{label}.mcap", bag, setting.robot.base_frame) \
            if output is not None and config.annotate else None
        inputs = BagObservations(
            bag, mapping, setting.robot, kinematics, setting.cameras, config.instruction,
            setting.camera_tolerance if config.camera_tolerance is None else config.camera_tolerance,
            setting.state_tolerance if config.joint_states_tolerance is None else config.joint_states_tolerance,
            everything=annotator is not None, max_instruction=setting.max_instruction, calibration=given,
            stamps=config.stamps, encodings=encodings,
            discarded=discarded_episodes(path, mapping, setting.robot, config.instruction))
        rows = _RowWriter(output / f"{label}.csv" if output is not None else None, str(path))
        runners = _runners(subjects, setting, kinematics, mapping, rows.write)
        for runner in runners:
            if annotator is not None and runner.lanes:
                runner.on_command = annotator.command
        schedule = Schedule(stamps, config.rate, config.drop)
        replay = Replay(inputs, runners, schedule, config.block, progress, label, annotator)
        try:
            replay.run()
        finally:
            rows.close()
            if annotator is not None:
                annotator.close()
        results = {runner.subject.name: runner.close() for runner in runners}
        notes = [*bag.notes, *inputs.notes, *(annotator.notes if annotator else []), *_notes(replay, inputs, bag)]
        evaluated = dict.fromkeys(result.policy_id for result in results.values() if result)
        apart = (difference(old, new) for old in inputs.policies for new in evaluated)
        notes += [text for text in apart if text]
        if inputs.instructions and not config.instruction:
            lines.append("instructions: " + "; ".join(inputs.instructions))
        return {
            "bag": str(path), "label": label, "topics": lines, "notes": notes, "images": replay.images,
            "lost": dict(inputs.lost), "episodes": replay.episodes,
            "left_out": list(map(asdict, inputs.left_out)), "instructions": list(inputs.instructions),
            "results": {name: None if result is None else result.as_json() for name, result in results.items()},
            "reference": _reference_words(mapping),
        }


def _encodings(bag: Bag, mapping: TopicMapping, setting: Setting) -> dict[str, str]:
    """Camera -> encoding of its raw images: the evaluation's, else the node's."""
    raw = {name for name, topic in mapping.cameras.items() if bag.topics[topic] == IMAGES[0]}
    configured = {name: encoding for name, encoding in setting.encodings.items() if name in raw}
    given = setting.config.camera
    kept = {name: encoding for name, encoding in configured.items() if name not in given}
    return kept | encodings_of(bag, mapping, given, "camera")


def _require_state(bag: Bag, mapping: TopicMapping) -> None:
    if mapping.joint_states is None and not mapping.tf:
        raise BagError(
            f"{bag.path}: no joint states (sensor_msgs/JointState) and no TF: the arm's pose at an image is unknown, "
            "so predictions mean nothing. Topics there: " + (", ".join(sorted(bag.topics)) or "none") + "."
        )


def _runners(
    subjects: Sequence[Subject], setting: Setting, kinematics: Any, mapping: TopicMapping,
    write: Callable[[Row], None],
) -> list[Runner]:
    config = setting.config
    robot = setting.robot
    moves = robot.controller.type != "chunk_only" and kinematics is not None and mapping.joint_states is not None
    make = (
        executor_factory(robot, kinematics, setting.schedule, setting.collision) if moves else None
    )
    seen_specs: set[tuple[ActionSpec, int]] = set()

    def make_scorer(subject: Subject, spec: ActionSpec, horizon: int) -> Scorer:
        fresh = (spec, horizon) not in seen_specs
        seen_specs.add((spec, horizon))
        return Scorer(subject.name, spec, horizon, robot, kinematics, fresh, write, subject.memory)

    blank = setting.cameras if config.sensitivity else ()
    other = config.other_instruction if config.sensitivity else None
    whatif = Perturbations(config.latencies, blank, other, config.dropped, config.variant_stride)
    return [Runner(subject, whatif, make, make_scorer) for subject in subjects]


def _notes(replay: Replay, inputs: BagObservations, bag: Bag) -> list[str]:
    notes = [f"{count} times: {reason}" for reason, count in inputs.lost.items()]
    if replay.images == 0:
        total = sum((bag.counts or {}).values())
        why = "the bag holds no messages" if bag.counts is not None and total == 0 else \
            "its episodes were discarded" if any(episode.images for episode in inputs.left_out) else \
            "no image came together with joint states and an instruction"
        if not inputs.instruction:
            why += "; there is no instruction: give one with --instruction"
        notes.insert(0, f"nothing was evaluated: {why}.")
    return notes


def _reference_words(mapping: TopicMapping) -> str:
    if mapping.commands is None:
        return "the motion that followed"
    return f"the commands recorded on {mapping.commands} ({mapping.command_kind})"


class _RowWriter:
    """The table of chunks, line by line."""

    def __init__(self, path: Path | None, bag: str) -> None:
        self._file = path.open("w", newline="", encoding="utf-8") if path else None
        self._bag = bag
        self._writer: Any = None

    def write(self, row: Row) -> None:
        if self._file is None:
            return
        if self._writer is None:
            extra = [name for name in row if name not in COLUMNS]
            self._writer = csv.DictWriter(self._file, [*COLUMNS, *extra], restval="", extrasaction="ignore")
            self._writer.writeheader()
        self._writer.writerow({"bag": self._bag, **row})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def recorded_stamps(path: Path, topics: TopicsConfig) -> frozenset[int]:
    """The observation stamps of the chunks that a live run recorded in the bag: where it inferred.

    Raises BagError when there are none, with the node's own status.
    """
    stamps: set[int] = set()
    status = None
    with Bag(path) as bag:
        named = {topics.chunks} if topics.chunks else {t for t, kind in bag.topics.items() if kind == CHUNK}
        asides = {t for t, kind in bag.topics.items() if kind == STATUS}
        for raw in bag.messages(named | asides):
            message = bag.decode(raw) if isinstance(raw, RawMessage) else None
            if message is None:
                continue
            if isinstance(raw, RawMessage) and raw.topic in asides:
                status = message
            else:
                stamps.add(message.header.stamp.sec * NANOSECONDS + message.header.stamp.nanosec)
    if not stamps:
        said = "" if status is None else f" The node was {': '.join(filter(None, (status.state, status.detail)))}."
        raise BagError(f"{path}: no ActionChunk was recorded, so it does not say where the live run inferred.{said}")
    return frozenset(stamps)


def part_key(path: Path, checkpoints: Sequence[str], config: EvaluationConfig, extra: Mapping[str, Any]) -> str:
    """Key of a finished bag's result: it changes with the bag, the weights and the
    settings."""
    facts = [
        PARTS, str(path.resolve()), *(_stat(p) for p in _files(path)), asdict(config), dict(extra),
    ]
    for checkpoint in checkpoints:
        facts += [checkpoint, *(_stat(p) for p in _files(Path(checkpoint)))]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.exists() else []


def _stat(path: Path) -> str:
    status = path.stat()
    return f"{path.name}:{status.st_size}:{status.st_mtime_ns}"
