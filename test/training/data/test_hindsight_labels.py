"""Recordings relabelled in hindsight.

- The place is that of the last closing; a scene's episodes lend each other theirs, and no other's.
- The recorded habit is learned from commands that waver, and leads to any place.
- Pauses are not learned; a scene that is not whole, and a recording without poses, are
  refused.
"""

import numpy as np
import pytest

from robovlms_ros.config.training import HindsightConfig
from robovlms_ros.training.data.episodes import DataError, EpisodeArrays
from robovlms_ros.training.data.hindsight import HindsightSource, LookWindows, find_grasp, idle

HORIZON = 4
CLOSE = 2
"""Steps that the fingers need."""


def episode(words, place, source, seed=0, waver=0.0, pause=0):
    """Straight to `place` at 1 cm a step, then the fingers close, then 5 cm up."""
    rng = np.random.default_rng(seed)
    hand = np.array((0.4, 0.0, 0.2)) + rng.uniform(-0.05, 0.05, 3)
    opening = 1.0
    poses = []
    openings = []
    actions = []
    closed = 0
    for t in range(60):
        way = place - hand
        closes = np.linalg.norm(way) < 0.012 or closed > 0
        closed += closes
        move = np.zeros(3)
        if t >= pause and not closes:
            move = way * min(1.0, 0.01 / np.linalg.norm(way)) + waver * rng.normal(size=3)
        elif closed > CLOSE:
            move = np.array((0.0, 0.0, 0.01))
        pose = np.eye(4)
        pose[:3, 3] = hand
        poses.append(pose)
        openings.append(opening)
        actions.append([*move, 0.0, 0.0, 0.0, 0.0 if closes else 1.0])
        hand = hand + move
        opening = max(opening - 0.3, 0.4) if closes else 1.0
        if closed == CLOSE + 5:
            break
    actions = np.array(actions)
    rows = np.arange(len(actions))[:, None] + np.arange(HORIZON)
    known = rows < len(actions)
    chunks = np.where(known[..., None], actions[np.minimum(rows, len(actions) - 1)], 0.0)
    stamps = 50_000_000 * np.arange(len(actions))
    return EpisodeArrays(
        stamps,
        actions,
        None,
        words,
        source,
        chunks,
        known,
        poses=np.stack(poses),
        openings=np.array(openings),
    )


class Recorded:
    cameras = ("static",)
    rate_hz = 20.0
    flaws = notes = accept = ()

    def __init__(self, episodes):
        self.dropped = {}
        self.episodes = episodes

    def __len__(self):
        return len(self.episodes)

    def length(self, i):
        return len(self.episodes[i])

    def origin(self, i):
        return self.episodes[i].source

    def arrays(self, i):
        return self.episodes[i]

    def images(self, i, steps):
        return {"static": np.full((len(steps), 2, 2, 3), i, np.uint8)}


RED = np.array((0.55, 0.1, 0.02))
GREEN = np.array((0.5, -0.1, 0.02))


def pair(number=0, waver=0.0):
    shift = np.array((0.0, 0.01 * number, 0.0))
    return [
        episode("red", RED + shift, f"bag {number}, episode 0", 2 * number, waver),
        episode("green", GREEN + shift, f"bag {number}, episode 1", 2 * number + 1, waver),
    ]


def test_the_episodes_of_a_scene_lend_each_other_their_places():
    source = HindsightSource(Recorded([*pair(0), *pair(1)]), HindsightConfig(episodes_per_scene=2))
    assert len(source) == 8 and "4 more under another instruction" in source.summary()
    looks = [source.arrays(i) for i in range(8)]
    assert [look.instruction for look in looks[:4]] == ["red", "green", "green", "red"]
    for look, place in zip(looks[:4], (RED, GREEN, GREEN, RED), strict=True):
        np.testing.assert_allclose(look.poses[0, :3, 3] + look.hindsight[0, :3], place, atol=0.015)
    assert (looks[0].hindsight[-1, :3] == 0).all()  # the thing is in the hand
    assert not looks[1].known.any()  # what would be done for the other thing was not recorded
    assert [source.origin(i) for i in range(8)] == ["bag 0, episode 0"] * 4 + [
        "bag 1, episode 0"
    ] * 4
    assert source.images(1, [0])["static"][0, 0, 0, 0] == 0  # of the episode itself


def test_without_pairs_an_episode_knows_its_own_place_alone():
    source = HindsightSource(Recorded(pair()), HindsightConfig())
    assert [source.arrays(i).instruction for i in range(len(source))] == ["red", "green"]


def test_the_last_closing_counts_and_an_open_hand_took_nothing():
    arrays = episode("red", RED, "bag")
    grasp = find_grasp(arrays)
    np.testing.assert_allclose(grasp.pose[:3, 3], RED, atol=0.015)
    arrays.openings[3:5] = 0.5  # closed in the air, and opened again
    assert find_grasp(arrays).step == grasp.step
    arrays.openings[:] = 1.0
    assert find_grasp(arrays) is None
    source = HindsightSource(Recorded([arrays]), HindsightConfig())
    assert np.isnan(source.arrays(0).hindsight).all() and "in 1 the gripper" in source.summary()


def test_the_habit_goes_to_the_place_of_either_instruction():
    recorded = Recorded([e for number in range(6) for e in pair(number, waver=0.003)])
    source = HindsightSource(
        recorded, HindsightConfig(episodes_per_scene=2, relabel=True, relabel_steps=400)
    )
    for i in (0, 1):  # one episode, under both
        look = source.arrays(i)
        way = look.hindsight[0, :3] / np.linalg.norm(look.hindsight[0, :3])
        step = look.chunks[0, 0, :3]
        assert look.known[0].all() and look.chunks[0, 0, -1] == 1
        assert step @ way / np.linalg.norm(step) > 0.9
    own = source.arrays(0)
    other = source.arrays(1)
    held = own.openings < 0.9
    assert own.known[held].all() and not other.known[held].any()
    assert own.chunks[held, 0, -1].max() == 0  # it keeps closed what it holds


def test_a_frame_comes_under_every_instruction_of_its_scene():
    recorded = Recorded([*pair(0), *pair(1)])
    recorded.episodes[3].openings[:] = 1.0  # the second scene's green thing was never taken
    source = HindsightSource(recorded, HindsightConfig(episodes_per_scene=2))
    looks = list(range(len(source)))

    class Windows:
        def spans(self):
            begins = np.cumsum([0, *(source.length(i) for i in looks)])
            return [(i, int(begins[i]), source.length(i)) for i in looks]

        def __getitem__(self, index):
            episode = next(i for i, b, n in self.spans() if b <= index < b + n)
            arrays = source.arrays(episode)
            place = index - self.spans()[episode][1]
            return {
                "instruction": arrays.instruction,
                "mask": arrays.known[[place]],
                "hindsight": arrays.hindsight[[place]],
                "piece": source.episode(episode),
                "place": place,
            }

    frames = LookWindows(source, Windows())
    assert len(frames) == sum(len(arrays) for arrays in recorded.episodes)
    for i in (0, 30, len(frames) - 1):
        items = frames[i]
        assert len(items) == 2
        assert len({(item["piece"], item["place"]) for item in items}) == 1
    assert {item["instruction"] for item in frames[0]} == {"red", "green"}
    filled = frames[sum(len(arrays) for arrays in recorded.episodes[:2])][1]
    assert not filled["mask"].any() and np.isnan(filled["hindsight"]).all()


def test_pauses_are_not_learned():
    arrays = episode("red", RED, "bag", pause=5)
    assert idle(arrays)[:5].all() and not idle(arrays)[5:].any()
    kept = HindsightSource(Recorded([arrays]), HindsightConfig()).arrays(0).known
    assert not kept[:5].any() and kept[5].all()
    assert (
        HindsightSource(Recorded([arrays]), HindsightConfig(skip_idle=False))
        .arrays(0)
        .known[0]
        .all()
    )


def test_what_cannot_be_relabelled_is_refused():
    with pytest.raises(DataError, match="3 recorded episodes are no whole number of scenes"):
        HindsightSource(Recorded([*pair(0), *pair(1)][:3]), HindsightConfig(episodes_per_scene=2))
    arrays = pair()[0]
    bare = EpisodeArrays(arrays.stamps_ns, arrays.actions, None, "red", "bag")
    with pytest.raises(DataError, match="no tool pose"):
        HindsightSource(Recorded([bare]), HindsightConfig())
