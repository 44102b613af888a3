"""Frames of a prediction, listed one by one, and the properties that follow from the list.

Frames come every 50 ms, the history steps 100 ms, a place accepts a frame within 30 ms; four places.

- with 20 % of all frames dropped, and with jitter, the frames used are the golden lists below; gaps are held or
  refused, and reported; the change of the action is printed;
- frames off the sampling grid may be dropped, predictions made rarely or often: equal actions within 1e-5;
- every frame goes through the VLM once, and frames that no place names never do;
- thinned out, a place takes the nearest first frame of a cell (golden list); a cell without frames is a gap;
- thinning is off for a policy that keeps up, and leaves it half of its time otherwise.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.types import ActionChunk, Observation, ObservationError
from robovlms_ros.inference.history import FrameHistory, thinning
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.vla_policy import VLAPolicy

MakeConfig = Callable[..., PolicyConfig]
MS = 1_000_000
ALL = range(0, 2000, 50)

# Eight of the forty frames, drawn by numpy.random.default_rng(4).choice(40, 8, replace=False).
DROPPED = {150, 900, 1150, 1500, 1600, 1700, 1850, 1900}
# Of the prediction at the first number: the frames used. A dropped frame's neighbours are 50 ms from its place, further
# than 30 ms: a gap, in which the newest frame before the place stands in.
GOLDEN_DROPPED = {
    450: ((100, 250, 350, 450), 1),  # 150 is missing: 100 is held
    1000: ((700, 800, 850, 1000), 1),  # 900 is missing: 850 is held
    1250: ((950, 1050, 1100, 1250), 1),  # 1150: 1100
    1450: ((1100, 1250, 1350, 1450), 1),  # 1150: 1100
    1800: ((1450, 1550, 1650, 1800), 3),  # 1500, 1600 and 1700: 1450, 1550 and 1650
    1950: ((1650, 1750, 1800, 1950), 1),  # 1850: 1800
}

# 50 ms apart give or take 12 ms: numpy.random.default_rng(5).integers(-12, 13, 40) added.
JITTERED = (
    4, 58, 88, 158, 199, 250, 303, 345, 412, 439, 494, 547, 602, 648, 691, 739, 788, 839, 891, 962,
    992, 1054, 1106, 1143, 1195, 1248, 1294, 1362, 1392, 1460, 1507, 1559, 1590, 1647, 1703, 1750,
    1804, 1854, 1904, 1939,
)  # fmt: skip
# At 439: places 139, 239, 339. At 962: 662, 762, 862; 762 has 739 at 23 and 788 at 26; 862 has 839 at 23 and 891 at 29.
GOLDEN_JITTER = {
    439: (158, 250, 345, 439),
    962: (648, 739, 839, 962),
    1362: (1054, 1143, 1248, 1362),  # 1062, 1162, 1262
    1939: (1647, 1750, 1854, 1939),  # 1639, 1739, 1839
}

# Cells of 300 ms begin at 0, 300, 600, ...; the frames at those stamps are their anchors. A place takes the nearest.
GOLDEN_THINNED = {
    1000: ((600, 900, 900, 1000), 0),  # places 700, 800, 900
    1450: ((1200, 1200, 1200, 1450), 0),  # 1150, 1250, 1350: 1500 has not come
    1500: ((1200, 1200, 1500, 1500), 0),  # 1200, 1300, 1400: 1500 is the newest and an anchor
}
# With 900 dropped, the cell's first frame is 950. With 900 to 1150 dropped the cell is empty: its places are gaps.
GOLDEN_THINNED_DROPPED = {
    (900,): {1000: ((600, 950, 950, 1000), 0)},  # 700 is 100 from 600; 800 is 150 from 950 and 200 from 600
    tuple(range(900, 1200, 50)): {1300: ((600, 600, 1200, 1300), 2)},  # 1000 and 1100 are held, 1200 is an anchor
}


def observation(stamp: int) -> Observation:
    image = np.random.default_rng(stamp).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Observation(stamp * MS, {"static": image}, "lift the red cube")


@pytest.fixture
def make_policy(make_config: MakeConfig) -> Callable[..., VLAPolicy]:
    def make(gap: str = "hold") -> VLAPolicy:
        config = make_config(model={"history_length": 4, "history_tolerance": 0.03, "history_gap": gap})
        policy = build_policy(config, seed=2)
        for parameter in policy.parameters():
            parameter.data.mul_(3.0)
        return policy

    return make


def run(session: PolicySession, stamps: Iterable[int], at: Sequence[int]) -> dict[int, tuple[ActionChunk, object]]:
    """Chunk and report of the predictions at some stamps, every other frame observed."""
    answers = {}
    for stamp in stamps:
        if stamp in at:
            answers[stamp] = session.predict_action_chunk(observation(stamp)), session.history_report
        else:
            session.observe(observation(stamp))
    return answers


def used(answers: dict, stamp: int) -> tuple[int, ...]:
    return tuple(ns // MS for ns in answers[stamp][1].stamps_ns)


def test_dropped_frames(make_policy, capsys) -> None:
    policy = make_policy()
    whole = run(PolicySession(policy), ALL, list(GOLDEN_DROPPED))
    answers = run(PolicySession(policy), [s for s in ALL if s not in DROPPED], list(GOLDEN_DROPPED))
    for stamp, (frames, held) in GOLDEN_DROPPED.items():
        assert used(answers, stamp) == frames
        assert used(whole, stamp) == (stamp - 300, stamp - 200, stamp - 100, stamp)
        report = answers[stamp][1]
        assert (report.have, report.want, report.held) == (4, 4, held)
    changes = [np.abs(answers[s][0].values - whole[s][0].values).max(axis=0) for s in GOLDEN_DROPPED]
    with capsys.disabled():
        print("\n20 % of the frames dropped: largest change of each action value:", np.max(changes, axis=0).round(5))
    assert np.max(changes) > 0


def test_gaps_are_refused_where_the_policy_says_so(make_policy) -> None:
    session = PolicySession(make_policy("refuse"))
    for stamp in (s for s in ALL if s not in DROPPED):
        if stamp in GOLDEN_DROPPED:
            with pytest.raises(ObservationError, match="no frame within 30 ms of the place"):
                session.predict_action_chunk(observation(stamp))
        else:
            session.observe(observation(stamp))


def test_jitter(make_policy, capsys) -> None:
    policy = make_policy()
    answers = run(PolicySession(policy), JITTERED, list(GOLDEN_JITTER))
    changes = []
    for stamp, frames in GOLDEN_JITTER.items():
        assert used(answers, stamp) == frames and answers[stamp][1].held == 0
        even = run(PolicySession(policy), [stamp - 300, stamp - 200, stamp - 100, stamp], [stamp])
        changes.append(np.abs(answers[stamp][0].values - even[stamp][0].values).max(axis=0))
    with capsys.disabled():
        print("\n12 ms of jitter: largest change of each action value:", np.max(changes, axis=0).round(5))


def test_frames_off_the_grid_and_the_rate_of_inference_do_not_matter(make_policy) -> None:
    policy = make_policy()
    grid = [s for s in ALL if s % 100 == 0]
    often = run(PolicySession(policy), ALL, grid)
    without = run(PolicySession(policy), grid, grid)
    seldom = run(PolicySession(policy), ALL, [700, 1300, 1900])
    at_odds = run(PolicySession(policy), ALL, [50, 350, 700, 1150, 1300, 1450, 1900])
    for others in (without, seldom, at_odds):
        for stamp in set(others) & set(often):
            np.testing.assert_allclose(others[stamp][0].values, often[stamp][0].values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("at", "every", "seen"), [
    (list(ALL), 1, 40),  # every frame is the newest once
    ([1900], 1, 4),  # 1600, 1700, 1800, 1900
    ([1000, 1050, 1900, 1950], 1, 16),  # no frame is named twice: 50 ms apart the windows interleave
    ([1000, 1100, 1200], 1, 6),  # 700 to 1200
    ([1000, 1100, 1200, 1300], 3, 6),  # anchors 600, 900 and 1200, which is a newest frame too; 1000, 1100, 1300
])  # fmt: skip
def test_each_frame_goes_through_the_vision_tower_once(make_policy, at, every, seen) -> None:
    policy = make_policy()
    counted: list[int] = []
    encode = policy.vlm.encode_frames
    policy.vlm.encode_frames = lambda images: counted.append(len(images["static"])) or encode(images)
    session = PolicySession(policy)
    session.thin_history(every)
    run(session, ALL, at)
    assert sum(counted) == seen


def test_thinned_out(make_policy) -> None:
    policy = make_policy()
    cases = {(): GOLDEN_THINNED, **GOLDEN_THINNED_DROPPED}
    for dropped, golden in cases.items():
        for at in (list(golden), [*golden, 650, 700, 850]):  # whatever else is predicted
            session = PolicySession(policy)
            session.thin_history(3)
            answers = run(session, [s for s in ALL if s not in dropped], at)
            for stamp, (frames, held) in golden.items():
                report = answers[stamp][1]
                assert used(answers, stamp) == frames
                assert (report.have, report.held, report.every) == (4, held, 3)


def test_an_empty_cell_is_refused_where_the_policy_says_so() -> None:
    history: FrameHistory[int] = FrameHistory(4, 100 * MS, 30 * MS, "refuse", every=3)
    for stamp in (s for s in ALL if s <= 1300 and not 900 <= s < 1200):
        history.add(stamp * MS, stamp)
    with pytest.raises(ObservationError, match="no frame within the cell of 300 ms of the place 3 steps back"):
        history.sample()
    assert len(history) <= 4


@pytest.mark.parametrize(("frame", "every"), [(0.05, 1), (0.1, 1), (0.11, 3), (0.15, 3), (0.2, 4), (0.5, 10)])
def test_how_far_a_slow_policy_is_thinned_out(frame, every) -> None:
    assert thinning(frame, 0.1) == every
