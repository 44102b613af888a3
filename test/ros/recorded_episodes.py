"""Episodes of the shipped policies that `record_episodes.py` recorded, and a policy that replays
one of them."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from fault_simulation import PANDA, TICK, ServoedJoints

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec
from robovlms_ros.evaluation.replay.executor import CachedKinematics

RECORDED = Path(__file__).with_name("recorded_episodes.npz")
STEP = 0.05
BEFORE = 200  # ticks of joint states until the first image: a motion starts from rest
PAUSE = 0.1  # s from an episode's last chunk to its first one again


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode, N chunks and F camera frames; times in ns from its start.

    instruction: the sentence of the task.
    stamps_ns, ready_ns: (N,) int64, each chunk's image and its arrival at the executor.
    values: (N, horizon, 7) float32 as in `spec`.
    frames_ns: (F,) int64. positions: (F, 7) float32 rad. openings: (F,) float32, 0 closed to 1
    open; measured.
    """

    instruction: str
    stamps_ns: np.ndarray
    ready_ns: np.ndarray
    values: np.ndarray
    frames_ns: np.ndarray
    positions: np.ndarray
    openings: np.ndarray


def spec(factor=1.0):
    """The chunks' meaning, `factor` times as fast as recorded."""
    return ActionSpec("eef_delta", "base", "rotation_vector", "chained", STEP / factor)


@lru_cache
def load_episodes():
    """The recorded episodes, in the order of the recording script."""
    names = RecordedEpisode.__dataclass_fields__
    with np.load(RECORDED, allow_pickle=False) as stored:
        count = len({key.partition(".")[0] for key in stored})
        found = [{name: stored[f"{k}.{name}"] for name in names} for k in range(count)]
    return [RecordedEpisode(**{**each, "instruction": str(each["instruction"])}) for each in found]


@lru_cache
def kinematics():
    """The arm's own kinematics; the answers that draws have in common are computed once."""
    return CachedKinematics(Kinematics.for_robot(PANDA), size=2000)


class ReplayedPolicy:
    """An episode's chunks at their own times, `factor` times as fast, again and again.

    A chunk's deltas start at the pose of its stamp, as the policy's do: after a stop the motion
    goes on from there. Every second time the deltas are negated, which brings the tool back to its
    start: it would leave the workspace otherwise.
    """

    def __init__(self, episode, factor=1.0):
        ticks = NANOSECONDS * TICK * factor
        self.instruction = episode.instruction
        self.kinematics = kinematics()
        self.joints = ServoedJoints(episode.positions[0].astype(np.float64))
        self.speed_scaling_ramp = PANDA.gate.speed_scaling_ramp / factor
        self.narrowest = float(episode.openings.min())
        self.period = round((episode.stamps_ns[-1] + PAUSE * NANOSECONDS) / ticks)
        stamps = np.round(episode.stamps_ns / ticks).astype(int)
        waits = np.ceil((episode.ready_ns - episode.stamps_ns) / ticks).astype(int)
        values = episode.values.astype(np.float64)
        self._chunks = {
            stamp: (wait, each) for stamp, wait, each in zip(stamps, waits, values, strict=True)
        }
        self._spec = spec(factor)

    def infer(self, tick, now_ns):
        """The chunk of an image taken at this tick and the ticks until it is ready; None for no
        image."""
        since = tick - BEFORE
        found = self._chunks.get(since % self.period)
        if since < 0 or found is None:
            return None
        wait, values = found
        if since // self.period % 2:
            values = np.hstack([-values[:, :6], values[:, 6:]])
        return ActionChunk(now_ns, values, self._spec, self.instruction, "replay"), wait
