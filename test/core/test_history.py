"""The time-indexed history and the session.

- the window is sampled at stamp - k * step, nearest frame within the tolerance, whatever the camera's rate;
- before the buffer is full the window is what there is; gaps are held and reported, or refused;
- each frame goes through the vision tower once; a chunk equals a fresh computation over the same frames;
- before the window is full the head sees the last min(t, W) features; a new instruction starts a new history;
- two sessions of one policy do not touch each other; bad observations are refused.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.types import NANOSECONDS, Observation, ObservationError, RobotState
from robovlms_ros.inference.history import FrameHistory
from robovlms_ros.inference.session import PolicySession

MakeConfig = Callable[..., PolicyConfig]
MS = 1_000_000


def test_sampled_by_time_at_any_camera_rate() -> None:
    history: FrameHistory[int] = FrameHistory(4, 100 * MS, 50 * MS)
    for i in range(40):
        history.add(i * 33 * MS, i)
    frames, report = history.sample()
    assert [f.stamp_ns // MS for f in frames] == [990, 1089, 1188, 1287]
    assert (report.have, report.want, report.held) == (4, 4, 0)
    assert len(history) <= 13


def test_grows_until_full() -> None:
    history: FrameHistory[int] = FrameHistory(3, 100 * MS, 50 * MS)
    filled = []
    for i in range(4):
        history.add(i * 100 * MS, i)
        filled.append([f.content for f in history.sample()[0]])
    assert filled == [[0], [0, 1], [0, 1, 2], [1, 2, 3]]


def test_gaps() -> None:
    for gap in ("hold", "refuse"):
        history: FrameHistory[int] = FrameHistory(4, 100 * MS, 40 * MS, gap)
        for stamp in (0, 100, 500):
            history.add(stamp * MS, stamp)
        if gap == "refuse":
            with pytest.raises(ObservationError, match="skipped frames"):
                history.sample()
            continue
        frames, report = history.sample()
        assert [f.content for f in frames] == [100, 100, 100, 500] and report.held == 3


def test_stamps_do_not_go_back() -> None:
    history: FrameHistory[int] = FrameHistory(2, 100 * MS, 40 * MS)
    history.add(100 * MS, 1)
    assert history.add(100 * MS, 2).content == 1
    with pytest.raises(ObservationError, match="older than the newest"):
        history.add(50 * MS, 0)


def observation(stamp: float, cameras: tuple[str, ...] = ("static",), words: str = "lift the red cube") -> Observation:
    rng = np.random.default_rng(int(stamp * 1000))
    images = {name: rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for name in cameras}
    pose = np.eye(4)
    pose[:3, 3] = stamp, 0.1, 0.2
    return Observation(round(stamp * NANOSECONDS), images, words, RobotState(0, np.zeros(7), None, pose, 0.5))


def livelier(policy: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(3.0)


@pytest.mark.parametrize("history", ["post", "pre", "video"])
@torch.no_grad()
def test_equals_a_fresh_computation(make_config: MakeConfig, history: str) -> None:
    head = {"type": "lstm" if history == "post" else "fc"}
    config = make_config(
        model={"history_type": history},
        action_head=head,
        cameras=["static", "wrist"],
        proprioception={"names": ["eef_position", "gripper"], "mean": [0.5, 0.1, 0.2, 0.5], "std": [0.1] * 4},
    )
    policy = build_policy(config, seed=2)
    livelier(policy)
    seen: list[int] = []
    encode = policy.vlm.encode_frames
    policy.vlm.encode_frames = lambda images: seen.append(len(images["static"])) or encode(images)  # type: ignore
    session = PolicySession(policy)
    observations = [observation(0.1 * i, ("static", "wrist")) for i in range(5)]
    for i, current in enumerate(observations):
        chunk = session.predict_action_chunk(current)
        assert session.history_fill == (min(i + 1, 3), 3)
        window = observations[max(0, i - 2) : i + 1]
        process = policy.vlm.image_processor
        batch = {
            "images": {c: torch.stack([process(o.images[c]) for o in window])[None] for c in config.cameras},
            "proprioception": torch.tensor([[[*o.state.eef_pose[:3, 3], 0.5] for o in window]]),  # type: ignore
            **policy.tokenize([current.instruction]),
        }
        output = policy(batch)
        arm = output.arm[0, -1].double().numpy() * ([0.02] * 3 + [0.05] * 3)
        np.testing.assert_allclose(chunk.values[:, :6], arm, atol=1e-6)
        assert chunk.sequence == i and chunk.stamp_ns == current.stamp_ns
    session_frames = sum(seen) - sum(min(i + 1, 3) for i in range(5))  # our own check encodes windows afresh
    assert session_frames == 5


def test_observed_frames_are_encoded_only_when_named(make_config: MakeConfig) -> None:
    policy = build_policy(make_config())
    seen: list[int] = []
    encode = policy.vlm.encode_frames
    policy.vlm.encode_frames = lambda images: seen.append(len(images["static"])) or encode(images)  # type: ignore
    session = PolicySession(policy)
    for i in range(10):
        session.observe(observation(i / 30))
    assert not seen
    session.predict_action_chunk(observation(0.4))
    assert seen == [3] and session.history_report.held == 0


def test_a_new_instruction_starts_anew(make_config: MakeConfig) -> None:
    policy = build_policy(make_config())
    session, fresh = PolicySession(policy), PolicySession(policy)
    for i in range(3):
        session.predict_action_chunk(observation(0.1 * i))
    swapped = observation(0.3, words="lift the green cube")
    chunk = session.predict_action_chunk(swapped)
    assert session.history_fill == (1, 3)
    np.testing.assert_array_equal(chunk.values, fresh.predict_action_chunk(swapped).values)


def test_bad_observations(make_config: MakeConfig) -> None:
    policy = build_policy(make_config(proprioception={"names": ["gripper"]}))
    session = PolicySession(policy)
    good = observation(0.0)
    bad = {
        r"camera static": dataclasses.replace(good, images={"wrist": good.images["static"]}),
        r"never learned": dataclasses.replace(good, instruction="lift the blue cube"),
        r"empty": dataclasses.replace(good, instruction="  "),
        r"no robot state": dataclasses.replace(good, state=None),
        r"must be finite": dataclasses.replace(good, state=RobotState(0, np.zeros(7), gripper=float("nan"))),
        r"uint8": dataclasses.replace(good, images={"static": np.zeros((4, 4), np.uint8)}),
    }
    for message, faulty in bad.items():
        with pytest.raises(ObservationError, match=message):
            session.predict_action_chunk(faulty)
    session.predict_action_chunk(good)
