"""Episodes recorded at another rate than the policy's steps.

- Absolute targets of a straight motion lie on it at the policy's steps; the gripper is what was in
  force.
- Deltas, in base and tool axes, lead along the path that the recorded deltas describe, to the same
  places.
- Images, states and stamps are those nearest in time; no step leads beyond the recording.
- The same rate is left alone; frames that are too slow are refused with the rate that would fit.
"""

import numpy as np
import pytest

from robovlms_ros.control.planner import compose_targets
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import NANOSECONDS, ActionChunk
from robovlms_ros.training.data.episodes import DataError, EpisodeArrays
from robovlms_ros.training.data.resampling import at_policy_rate


class Frames:
    """One episode of numbered frames at a rate."""

    cameras = ("static",)
    flaws = ()
    accept = ()
    notes = ("a note",)

    def __init__(self, actions, rate):
        self.dropped = {}
        self.rate_hz = rate
        stamps = np.round(np.arange(len(actions)) * NANOSECONDS / rate).astype(np.int64)
        self._arrays = EpisodeArrays(
            stamps,
            actions,
            np.arange(len(actions), dtype=float)[:, None],
            "go",
            "one",
            takeover=np.full(len(actions), np.inf),
        )

    def __len__(self):
        return 1

    def length(self, i):
        return len(self._arrays)

    def origin(self, i):
        return "one"

    def arrays(self, i):
        return self._arrays

    def images(self, i, steps):
        return {"static": np.array([np.full((2, 2, 3), step, np.uint8) for step in steps])}


def test_absolute_targets_lie_on_the_motion(bags):
    times = np.arange(1, 32) / 30  # row t is to be reached one frame later
    actions = np.column_stack([np.outer(times, np.arange(7)), times > 0.5])
    source = at_policy_rate(Frames(actions, 30.0), bags.config(), "here")
    arrays = source.arrays(0)
    ends = np.arange(1, len(arrays) + 1) / 20
    assert source.rate_hz == 20 and source.length(0) == len(arrays) == 20
    assert np.allclose(arrays.actions[:, :7], np.outer(ends, np.arange(7)))
    assert np.array_equal(arrays.actions[:, 7], np.ceil(ends * 30 - 1e-6) / 30 > 0.5)
    assert np.allclose(np.diff(arrays.stamps_ns), NANOSECONDS / 20, atol=2)
    shown = source.images(0, range(len(arrays)))["static"][:, 0, 0, 0]
    assert np.array_equal(shown, arrays.proprioception[:, 0]) and len(arrays.takeover) == len(
        arrays
    )
    assert np.abs(shown / 30 - np.arange(len(arrays)) / 20).max() <= 0.5 / 30 + 1e-9
    assert any(
        "resampled from 30 to 20 Hz: images and states nearest" in note for note in source.notes
    )


@pytest.mark.parametrize("frame", ["base", "tool"])
@pytest.mark.parametrize(("rate", "every", "steps"), [(30.0, 3, 2), (60.0, 3, 1), (16.0, 4, 5)])
def test_deltas_lead_to_the_same_places(bags, frame, rate, every, steps):
    rng = np.random.default_rng(5)
    actions = np.column_stack(
        [rng.normal(size=(48, 3)) / 100, rng.normal(size=(48, 3)) / 20, np.ones(48)]
    )
    settings = bags.config(
        action={
            "space": "eef_delta",
            "frame": frame,
            "rotation": "euler_xyz_extrinsic",
            "composition": "chained",
            "step_duration": 0.05,
            "gripper": {"open_value": 1},
            "units": {"translation": 1.0, "rotation": 1.0},
        },
        action_head={"action_dim": 7},
    )
    source = at_policy_rate(Frames(actions, rate), settings, "here")
    start = np.eye(4)

    def path(values):
        return compose_targets(ActionChunk(0, values, settings.action.spec, "go", "p"), start)

    recorded, resampled = path(actions), path(source.arrays(0).actions)
    whole = len(resampled) // steps
    assert whole >= 10 and (len(resampled) + 1) / 20 > 46 / rate
    assert np.allclose(
        resampled[steps - 1 :: steps][:whole], recorded[every - 1 :: every][:whole], atol=1e-9
    )


def test_joint_deltas_add_up(bags):
    actions = np.column_stack([np.full((30, 7), 0.01), np.zeros(30)])
    settings = bags.config(
        action={
            **bags.config().action.__dict__,
            "space": "joint_delta",
            "units": {"joint": 1.0},
            "gripper": {"open_value": 1},
            "normalization": [],
        }
    )
    arrays = at_policy_rate(Frames(actions, 30.0), settings, "here").arrays(0)
    assert len(arrays) == 20 and np.allclose(arrays.actions[:, :7], 0.015)


def test_the_same_rate_is_left_alone_and_slow_frames_are_refused(bags):
    actions = np.column_stack([np.zeros((9, 7)), np.ones(9)])
    same = Frames(actions, 20.02)
    assert at_policy_rate(same, bags.config(), "here") is same
    with pytest.raises(
        ConfigError,
        match=r"step_duration = 0.05 s, here was recorded at 10 Hz: must be 0.08 s or more",
    ):
        at_policy_rate(Frames(actions, 10.0), bags.config(), "here")
    one = at_policy_rate(Frames(actions[:1], 30.0), bags.config(), "here")
    assert one.length(0) == len(one.arrays(0)) == 1
    with pytest.raises(DataError, match=r"one: an action is not finite"):
        at_policy_rate(Frames(np.full((9, 8), np.nan), 30.0), bags.config(), "here").arrays(0)
