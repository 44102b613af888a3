"""Episodes recorded at another rate than the policy's steps, brought to its steps.

Images and states are the nearest in time. Absolute targets are interpolated; deltas are composed to
the path that they describe, which is sampled at the policy's steps. The gripper is commanded what
was in force at the end of a step. Rosbags are not resampled here: their reader samples messages.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import ActionChunk, RobotState
from robovlms_ros.evaluation.replay.steps import steps_of_chunk, steps_of_targets
from robovlms_ros.evaluation.replay.tracks import pose_between
from robovlms_ros.training.data.episodes import (
    Array,
    DataError,
    EpisodeArrays,
    EpisodeSource,
    Flaw,
    Images,
)

SAME = 0.01
"""Relative difference of two rates that count as one."""
SLOWEST = 0.8
"""Recorded frames for each of the policy's steps, at least: else most images are repeated."""
EDGE = 1e-6  # steps: rates such as 30 and 1 / 0.0333 differ by rounding


class Resampled:
    """The episodes of `source`, whose rows of actions are from frame to frame, at `1 /
    action.step_duration`. Raises ConfigError for frames that are too slow. See `EpisodeSource`."""

    def __init__(self, source: EpisodeSource, config: PolicyConfig, where: str) -> None:
        assert config.action is not None
        step = config.action.step_duration
        recorded = source.rate_hz
        self._frames = step * recorded
        if self._frames < SLOWEST:
            raise ConfigError(
                f"action.step_duration = {step:g} s, {where} was recorded at {recorded:g} Hz: "
                f"must be {SLOWEST / recorded:.4g} s or more, for {SLOWEST:g} frames a step.")
        self._source = source
        self._spec = dataclasses.replace(config.action.spec, composition="chained")
        self.rate_hz = 1 / step
        self.cameras = source.cameras
        self.flaws: Sequence[Flaw] = source.flaws
        self.accept: Sequence[str] = source.accept
        self.dropped: Mapping[str, str] = source.dropped
        how = "added up along their path" if self._spec.space.endswith("_delta") else "interpolated"
        self.notes: Sequence[str] = (
            *source.notes,
            f"resampled from {recorded:.4g} to {self.rate_hz:.4g} Hz: images and states nearest in "
            f"time, at most {500 / recorded:.0f} ms away, actions {how}, the gripper as in force "
            "at a step's end")

    def __len__(self) -> int:
        return len(self._source)

    def length(self, i: int) -> int:
        recorded = self._source.length(i)
        whole = min((recorded - 1) / self._frames, recorded / self._frames - 1)
        return max(int(whole + EDGE), 0) + 1

    def origin(self, i: int) -> str:
        return self._source.origin(i)

    def _nearest(self, i: int) -> NDArray[np.int64]:
        """(n,) the recorded frame nearest to each step."""
        frames = np.floor(np.arange(self.length(i)) * self._frames + 0.5 - EDGE).astype(np.int64)
        return np.minimum(frames, self._source.length(i) - 1)

    def arrays(self, i: int) -> EpisodeArrays:
        arrays = self._source.arrays(i)
        rows = self._nearest(i)
        places = np.arange(len(rows)) * self._frames
        stamps = np.interp(places, np.arange(len(arrays)), arrays.stamps_ns)
        chosen: dict[str, Any] = {}
        for name in ("proprioception", "takeover", "poses", "openings"):
            values = getattr(arrays, name)
            chosen[name] = None if values is None else values[rows]
        return dataclasses.replace(arrays, stamps_ns=np.round(stamps).astype(np.int64),
                                   actions=self._actions(arrays, len(rows)), **chosen)

    def _actions(self, arrays: EpisodeArrays, count: int) -> Array:
        """(count, D) the actions of the steps."""
        if not np.isfinite(arrays.actions).all():
            raise DataError(f"{arrays.source}: an action is not finite. Exclude the episode.")
        start = RobotState(0, np.zeros(arrays.actions.shape[1] - 1), None, np.eye(4))
        chunk = ActionChunk(0, arrays.actions, self._spec, arrays.instruction, "recorded")
        path = steps_of_chunk(chunk, start)
        targets = path.joints if path.poses is None else path.poses  # of the recorded rows
        assert targets is not None
        # the steps' ends, in recorded frames; row t ends at t + 1
        ends = np.arange(1, count + 1) * self._frames
        in_force = np.clip(np.ceil(ends - EDGE).astype(np.int64) - 1, 0, len(arrays) - 1)
        if self._spec.space.endswith("_delta"):
            # the path begins where the arm was at the first frame
            first = start.positions if path.poses is None else start.eef_pose
            targets = np.concatenate([np.asarray(first)[None], targets])
        else:
            ends = ends - 1
        ends = np.clip(ends, 0, len(targets) - 1)
        low = np.minimum(ends.astype(np.int64), max(len(targets) - 2, 0))
        high = np.minimum(low + 1, len(targets) - 1)
        share = ends - low
        if path.poses is None:
            sampled = targets[low] + share[:, None] * (targets[high] - targets[low])
        else:
            sampled = np.stack([pose_between(targets[a], targets[b], s)
                                for a, b, s in zip(low, high, share, strict=True)])
        known = np.ones(count, dtype=bool)
        gripper = arrays.actions[in_force, -1]
        return steps_of_targets(self._spec, start, sampled, known, gripper).values

    def images(self, i: int, steps: Sequence[int] | NDArray[np.int64]) -> Images:
        return self._source.images(i, self._nearest(i)[np.asarray(steps, dtype=np.int64)])


def at_policy_rate(source: EpisodeSource, config: PolicyConfig, where: str) -> EpisodeSource:
    """`source` itself where its frames are the policy's steps, else resampled."""
    assert config.action is not None
    same = abs(config.action.step_duration * source.rate_hz - 1) <= SAME
    return source if same else Resampled(source, config, where)
