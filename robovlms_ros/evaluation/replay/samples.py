"""What a report shows of single chunks: thinned samples for the plots, the worst moments, the table of chunks."""

import base64
import heapq
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.core.rotations import vector_from_matrix
from robovlms_ros.core.types import NANOSECONDS, ActionSpec
from robovlms_ros.evaluation.metrics.errors import number, numbers, value_error
from robovlms_ros.evaluation.replay.results import FANS, WORST, WORST_APART_S, Thinned
from robovlms_ros.evaluation.replay.steps import Steps, displacement, distance
from robovlms_ros.evaluation.replay.tracks import Answer

Array = NDArray[np.float64]
Row = dict[str, Any]

TRACK = 4000
PICTURE_WIDTH = 320


class Samples:
    """Of one policy on one bag. fans, track: predicted chunks and recorded steps over time, thinned."""

    def __init__(self, spec: ActionSpec, kinematics: Kinematics | None, write_row: Callable[[Row], None] | None,
                 name: str) -> None:
        self._spec, self._kinematics, self._write, self._name = spec, kinematics, write_row, name
        self.fans, self.track = Thinned(FANS), Thinned(TRACK)
        self._worst: list[tuple[float, int, dict[str, Any]]] = []
        self._origin: int | None = None
        self._episode = ""
        self._turn: Array | None = None

    def worst(self) -> list[dict[str, Any]]:
        """The moments of the largest error, the largest first."""
        return [moment for *_, moment in sorted(self._worst, key=lambda entry: -entry[0])]

    def add(self, answer: Answer, predicted: Steps, reference: Steps, error: float) -> None:
        """The samples for the plots, the worst moments, and the chunk's line in the table of chunks."""
        stamp = answer.chunk.stamp_ns
        self._origin = stamp if self._origin is None else self._origin
        seconds = (stamp - self._origin) / NANOSECONDS
        known = reference.valid
        if self._turn is None and answer.start.eef_pose is not None:
            self._turn = answer.start.eef_pose[:3, :3]
        if answer.episode != self._episode:
            self._episode = answer.episode
            self.track.add([round(seconds, 4), *[None] * (_shown(reference, self._turn).shape[1])])  # breaks the curve
        first = np.where(known[:, None], _shown(reference, self._turn), np.nan)[0]
        self.track.add([round(seconds + self._spec.step_duration, 4), *numbers(first.round(5))])
        fan = [numbers(row) for row in _shown(predicted, self._turn).round(5)]
        self.fans.add({"t": round(seconds, 4), "values": fan})
        self._keep_worst(answer, predicted, reference, error, seconds)
        self.row(answer, predicted, reference, error)

    def _keep_worst(self, answer: Answer, predicted: Steps, reference: Steps, error: float, seconds: float) -> None:
        near = [i for i, (_, _, moment) in enumerate(self._worst) if abs(moment["t"] - seconds) < WORST_APART_S]
        if near:
            if self._worst[near[0]][0] >= error:
                return
            self._worst = [entry for i, entry in enumerate(self._worst) if i not in near]
            heapq.heapify(self._worst)
        if len(self._worst) >= WORST and self._worst[0][0] >= error:
            return
        moves = {"predicted": displacement(predicted, answer.start), "recorded": displacement(reference, answer.start)}
        known = int(reference.valid.sum())
        moment: dict[str, Any] = {
            "t": round(seconds, 3), "stamp_ns": answer.chunk.stamp_ns, "error": error, "episode": answer.episode,
            "instruction": answer.chunk.instruction, "image": _jpeg(answer.image),
            "predicted": moves["predicted"].round(5).tolist(), "recorded": moves["recorded"][:known].round(5).tolist(),
            "gripper": {"predicted": numbers(predicted.gripper), "recorded": numbers(reference.gripper)},
        }
        moment.update(self._drawn(answer, predicted, reference))
        heapq.heappush(self._worst, (error, answer.chunk.stamp_ns, moment))
        if len(self._worst) > WORST:
            heapq.heappop(self._worst)

    def _drawn(self, answer: Answer, predicted: Steps, reference: Steps) -> dict[str, Any]:
        """Both motions from the start on, in pixels of the image; empty where that is not known."""
        begin, known = answer.start.eef_pose, int(reference.valid.sum())
        if answer.camera is None or answer.image is None or begin is None:
            return {}
        pixels = {}
        for name, steps, count in (("predicted", predicted, len(predicted.valid)), ("recorded", reference, known)):
            path = self._path(steps, count)
            if path is None:
                return {}
            pixels[name] = answer.camera.project(np.vstack([begin[:3, 3], path]))
        return {"pixels": pixels, "size": [answer.image.shape[1], answer.image.shape[0]]}

    def _path(self, steps: Steps, count: int) -> Array | None:
        """(count, 3) m, where the tool goes."""
        if steps.poses is not None:
            return steps.poses[:count, :3, 3]
        if steps.joints is None or self._kinematics is None:
            return None
        return np.array([self._kinematics.forward(row)[:3, 3] for row in steps.joints[:count]])

    def row(self, answer: Answer, predicted: Steps | None, reference: Steps | None, error: float | None) -> None:
        """The chunk's line in the table of chunks; None for what could not be scored."""
        if self._write is None:
            return
        row: Row = {"policy": self._name, "episode": answer.episode, "sequence": answer.chunk.sequence,
                    "stamp_ns": answer.chunk.stamp_ns, "instruction": answer.chunk.instruction,
                    "distance": None if error is None else number(error)}
        if predicted is not None and reference is not None:
            errors = np.ma.masked_invalid(np.abs(value_error(predicted, reference)))
            means = errors.mean(axis=0).filled(np.nan)
            row.update({f"mae_{name}": number(value) for name, value in zip(self._spec.names, means, strict=True)})
            row["distance_end"] = number(distance(predicted, reference)[int(reference.valid.sum()) - 1])
            row["steps_known"] = int(reference.valid.sum())
        self._write(row)


def _shown(steps: Steps, turn: Array | None) -> Array:
    """What the plots show, (n, 7): position, rotation vector from `turn` (3, 3), opening; or joints and opening."""
    if steps.poses is not None:
        # Absolute rotation vectors of a hand that points down jump between pi and -pi.
        turns = (np.eye(3) if turn is None else turn.T) @ np.nan_to_num(steps.poses[:, :3, :3])
        arm = np.hstack([steps.poses[:, :3, 3], vector_from_matrix(turns + 1e-12)])
    else:
        assert steps.joints is not None
        arm = steps.joints
    return np.column_stack([arm, steps.gripper])


def _jpeg(image: NDArray[np.uint8] | None) -> str | None:
    """A small JPEG as base64 text."""
    if image is None:
        return None
    from PIL import Image

    picture = Image.fromarray(image)
    width = min(PICTURE_WIDTH, max(picture.width, 160))
    picture = picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode("ascii")
