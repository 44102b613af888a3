"""Windows, splits, statistics and checks of training data, on a source whose numbers are known by construction.

- A window holds W frames a history step apart, each with its n normalised actions; the mask ends where its
  episode does.
- Workers give what the process itself gives, in the sampler's order, also after an interruption; an index beyond the
  length is the same window augmented anew.
- Chunks that a reader computed are taken as they are; a short episode, an empty split, odd history steps are refused.
- Statistics equal NumPy's over the same rows, in the units of the configuration, and carry that unit into it.
- A split keeps pieces of one recording together and depends on the seed alone.
- Each flaw is found by kind and place; `accept` lets it through; the page is one file that opens offline.
- Memory does not grow with the number of windows that were read.
"""

import gc
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from robovlms_ros.config.policy import PolicyConfig, config_from_mapping, config_to_mapping
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.training.data import statistics as data_statistics
from robovlms_ros.training.data.checks import check_data, require_trainable
from robovlms_ros.training.data.episodes import DataError, EpisodeArrays, Flaw, split
from robovlms_ros.training.data.inspection import inspect_data
from robovlms_ros.training.data.statistics import Running, compute_statistics, with_statistics
from robovlms_ros.training.data.windows import WindowDataset, action_chunks, episode_windows

STEP = 0.1
UNITS = np.array([0.02] * 3 + [0.05] * 3)


class Source:
    """Episodes of these lengths; every number tells where it is from."""

    cameras = ("static",)
    rate_hz = 1 / STEP
    notes = ("made up",)

    def __init__(self, lengths=(12, 7, 9), size=4, change=None, origins=None, flaws=(), accept=()):
        self.lengths, self.size, self.change, self.flaws, self.accept = lengths, size, change, flaws, accept
        self.origins = origins or [f"episode {i}" for i in range(len(lengths))]

    def __len__(self) -> int:
        return len(self.lengths)

    def length(self, i: int) -> int:
        return self.lengths[i]

    def origin(self, i: int) -> str:
        return self.origins[i]

    def arrays(self, i: int) -> EpisodeArrays:
        rng, t = np.random.default_rng(i), np.arange(self.lengths[i])
        actions = np.column_stack([rng.uniform(-0.02, 0.02, (len(t), 6)), (t // 3) % 2])
        state = np.column_stack([t, 100.0 * i + t])
        stamps = (t * STEP * 1e9).astype(np.int64)
        arrays = EpisodeArrays(stamps, actions, state, f"do {i}", self.origin(i))
        return self.change(i, arrays) if self.change else arrays

    def images(self, i: int, steps: Any) -> dict[str, np.ndarray]:
        grey = np.array([(20 * i + int(t)) % 255 for t in steps], np.uint8)
        return {"static": np.broadcast_to(grey[:, None, None, None], (len(grey), self.size, self.size, 3)).copy()}


def config(window: int = 3, history_step: float = 2 * STEP, chunk: int = 4, **blocks: Any) -> PolicyConfig:
    action = {"space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
              "step_duration": STEP, "units": {"translation": 0.02, "rotation": 0.05}, "gripper": {"open_value": 0},
              "normalization": [{"method": "min_max", "low": [-2.0], "high": [2.0]}], **blocks.pop("action", {})}
    return config_from_mapping({
        "model": {"backbone": "paligemma", "history_length": window, "history_step": history_step,
                  "action_chunk_size": chunk},
        "action": action, "proprioception": {"names": ["gripper", "joint_positions"], "joints": 1}, **blocks})


def noisy(images: Any, rng: np.random.Generator) -> Any:
    return {name: frames + rng.integers(0, 9, frames.shape, dtype=np.uint8) for name, frames in images.items()}


def test_windows_against_their_definition():
    source = Source()
    data = WindowDataset(source, [0, 2], config())
    assert len(data) == (12 - 4) + (9 - 4)
    item = data[8 + 3]  # the fourth window of episode 2: frames 3, 5, 7
    arrays = source.arrays(2)
    assert item["instruction"] == "do 2"
    assert np.array_equal(item["images"]["static"][:, 0, 0, 0], [43, 45, 47])
    assert np.array_equal(item["proprioception"], [[3, 203], [5, 205], [7, 207]])
    for w, t in enumerate((3, 5, 7)):
        for k in range(4):
            assert item["mask"][w, k] == (t + k < 9)
            expected = np.zeros(7)
            if t + k < 9:
                told = arrays.actions[t + k]
                expected = np.append(np.clip(told[:6] / UNITS, -2, 2) / 2, 1 - told[6])
            assert np.allclose(item["actions"][w, k], expected, atol=1e-6)
    assert item["actions"].dtype == item["proprioception"].dtype == np.float32


def test_windows_at_the_rate_of_the_actions_are_the_references():
    """`episode_windows` is compared with recorded cases of the reference (test/parity)."""
    window, chunk, length = 3, 4, 9
    data = WindowDataset(Source((length,)), [0], config(window, STEP, chunk))
    frames, exist = episode_windows(length, window, chunk)
    assert len(data) == len(frames)
    for i, (row, there) in enumerate(zip(frames, exist, strict=True)):
        item = data[i]
        assert item["images"]["static"][:, 0, 0, 0].tolist() == row[:window].tolist()
        assert np.array_equal(item["mask"], action_chunks(there[:-1, None], chunk)[..., 0])


def test_an_episode_shorter_than_the_history_is_masked():
    data = WindowDataset(Source((4,)), [0], config())
    item = data[0]
    assert len(data) == 1 and np.array_equal(item["images"]["static"][:, 0, 0, 0], [0, 2, 3])
    assert item["mask"].sum(axis=1).tolist() == [4, 2, 0] and not item["actions"][2].any()


def test_computed_chunks_are_taken():
    def change(_: int, arrays: EpisodeArrays) -> EpisodeArrays:
        chunks = np.zeros((len(arrays), 4, 7))
        chunks[:, :, 0] = 0.01 * np.arange(4)
        known = np.ones((len(arrays), 4), bool)
        known[5, 1:] = False
        return replace(arrays, chunks=chunks, known=known)

    source, settings = Source((9,), change=change), config(1, STEP)
    data = WindowDataset(source, [0], settings)
    assert np.allclose(data[0]["actions"][0, :, 0], 0.25 * np.arange(4))
    assert data[5]["mask"][0].tolist() == [True, False, False, False]
    assert compute_statistics(source, [0], settings).count == 9 * 4 - 3
    observed = config(1, STEP, action={"composition": "from_observation"})
    assert len(WindowDataset(source, [0], observed)) == 9
    with pytest.raises(ConfigError, match=r"composition = 'from_observation' with episode 0"):
        WindowDataset(Source((9,)), [0], observed)


def test_workers_give_the_same_in_the_sampler_order():
    data = WindowDataset(Source(), [0, 1, 2], config(), noisy, seed=7)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1)).tolist()

    def read(indices: list[int], workers: int) -> Any:
        return [batch["images"]["static"] for batch in DataLoader(data, 2, sampler=indices, num_workers=workers)]

    alone = read(order, 0)
    assert all(torch.equal(a, b) for a, b in zip(alone, read(order, 2), strict=True))
    # A run that was interrupted after two batches goes on with the third.
    assert all(torch.equal(a, b) for a, b in zip(alone[2:], read(order[4:], 0), strict=True))
    later = data[order[0] + len(data)]
    assert not np.array_equal(later["images"]["static"], alone[0][0].numpy())
    assert np.array_equal(later["actions"], data[order[0]]["actions"])


def test_refusals():
    with pytest.raises(DataError, match=r"episode 1 has 3 steps, a chunk is 4.*exclude"):
        WindowDataset(Source((9, 3)), [0, 1], config())
    with pytest.raises(DataError, match=r"no episodes: this side of the split is empty"):
        WindowDataset(Source(), [], config())
    with pytest.raises(ConfigError, match=r"history_step = 0.15 s: must be a multiple of action.step_duration = 0.1"):
        WindowDataset(Source(), [0], config(history_step=0.15))
    with pytest.raises(DataError, match=r"1 recorded episodes cannot be split"):
        split(Source((9,)), 0.5, 0)


def test_split_keeps_recordings_together():
    source = Source((9,) * 12, origins=[f"recording {i // 3}" for i in range(12)])
    train, held = split(source, 0.25, seed=4)
    assert sorted((*train, *held)) == list(range(12)) and len(held) == 3
    assert not {source.origin(i) for i in train} & {source.origin(i) for i in held}
    assert split(source, 0.25, seed=4) == (train, held)
    assert len({split(source, 0.25, seed)[1] for seed in range(12)}) > 1
    assert split(source, 0.0, seed=4) == (tuple(range(12)), ())


def test_statistics_equal_numpy():
    source, settings = Source((40, 7, 300)), config(action={"normalization": []})
    statistics = compute_statistics(source, [0, 2], settings)
    rows = np.concatenate([source.arrays(i).actions[:, :6] for i in (0, 2)]) / UNITS
    for name, expected in {"low": rows.min(0), "high": rows.max(0), "mean": rows.mean(0), "std": rows.std(0),
                           "q01": np.quantile(rows, 0.01, axis=0), "q99": np.quantile(rows, 0.99, axis=0)}.items():
        assert np.allclose(getattr(statistics, name), expected, atol=1e-7), name
    states = np.concatenate([source.arrays(i).proprioception for i in (0, 2)])
    assert np.allclose(statistics.proprioception_mean, states.mean(0))
    assert np.allclose(statistics.proprioception_std, states.std(0))
    filled = with_statistics(settings, statistics)
    assert filled.action.normalization[0].unit == "translation 0.02 m, rotation 0.05 rad"
    assert np.allclose(filled.action.normalization[0].high[:6], np.quantile(rows, 0.99, axis=0))
    assert filled.proprioception.mean == statistics.proprioception_mean
    mapping = config_to_mapping(filled)
    assert config_from_mapping(mapping) == filled
    mapping["action"]["units"]["translation"] = 1.0
    with pytest.raises(ConfigError, match=r"normalization\[0\].unit = 'translation 0.02 m"):
        config_from_mapping(mapping)
    given = config()
    assert with_statistics(given, statistics).action == given.action
    inner = [WindowDataset(source, [0], with_statistics(settings, statistics, method))[0]["actions"]
             for method in ("min_max", "mean_std")]
    assert np.abs(inner[0][..., :6]).max() <= 1 + 1e-6
    assert np.allclose(inner[1][0, 0, :6], (rows[0] - rows.mean(0)) / (rows.std(0) + 1e-6), atol=1e-5)


def test_statistics_file_can_be_named(tmp_path):
    import json

    settings = config(action={"normalization": []})
    statistics = compute_statistics(Source(), [0, 1, 2], settings)
    (tmp_path / "statistics.json").write_text(json.dumps(statistics.as_table("mine")))
    mapping = config_to_mapping(settings)
    mapping["action"]["normalization"] = [{"method": "quantile", "statistics": "statistics.json", "key": "mine"}]
    assert config_from_mapping(mapping, folder=tmp_path).action == with_statistics(settings, statistics).action


def test_thinned_quantiles_and_constant_dimensions(monkeypatch):
    monkeypatch.setattr(data_statistics, "EXACT_ROWS", 1000)
    rows, running = np.random.default_rng(0).normal(size=(20_000, 2)), Running()
    for part in np.array_split(rows, 37):
        running.add(part)
    assert sum(map(len, running._sample)) <= 1000
    assert np.allclose(running.mean, rows.mean(0)) and np.allclose(running.std, rows.std(0))
    assert np.allclose(running.quantile(0.99), np.quantile(rows, 0.99, axis=0), atol=0.3)
    source = Source(change=lambda _, a: replace(a, actions=np.where(np.arange(7) == 4, 0.0, a.actions)))
    settings = config(action={"normalization": []})
    filled = with_statistics(settings, compute_statistics(source, [0], settings))
    assert np.allclose(WindowDataset(source, [0], filled)[0]["actions"][..., 4], 0.0)


def spoiled(**fields: Any) -> Any:
    return lambda i, arrays: replace(arrays, **{k: v(arrays) for k, v in fields.items()}) if i == 1 else arrays


def with_nan(arrays: EpisodeArrays) -> np.ndarray:
    actions = arrays.actions.copy()
    actions[2, 5] = np.nan
    return actions


def still(arrays: EpisodeArrays) -> np.ndarray:
    return np.column_stack([np.zeros((len(arrays), 6)), arrays.actions[:, 6]])


FLAWS = {
    "nan": (spoiled(actions=with_nan), "'rz' at step 2 (0.20 s)"),
    "clock": (spoiled(stamps_ns=lambda a: np.where(np.arange(len(a)) < 4, a.stamps_ns, a.stamps_ns - 10**10)),
              "at step 4"),
    "gap": (spoiled(stamps_ns=lambda a: a.stamps_ns + (np.arange(len(a)) > 3) * 2 * 10**9), "2.10 s without a frame"),
    "static": (spoiled(actions=still), "does not move"),
    "units": (spoiled(actions=lambda a: a.actions * [1000, 1000, 1000, 1, 1, 1, 1]), "millimetres"),
    "instruction": (spoiled(instruction=lambda _: " "), "no instruction"),
    "gripper": (lambda _, a: replace(a, actions=a.actions * [1, 1, 1, 1, 1, 1, 0]), "never opens or closes"),
}


@pytest.mark.parametrize("kind", FLAWS)
def test_what_would_train_badly_is_refused(kind):
    change, text = FLAWS[kind]
    flaws, _ = check_data(Source(change=change), config())
    assert [flaw.kind for flaw in flaws if flaw.refuse] == [kind]
    assert text in flaws[0].text and flaws[0].where == ("all episodes" if kind == "gripper" else "episode 1")
    with pytest.raises(DataError, match=rf"Remedy: .*\n.*accept: \[{kind}\]"):
        require_trainable(flaws)
    accepted, _ = check_data(Source(change=change, accept=(kind,)), config())
    require_trainable(accepted)


def test_words_that_the_vocabulary_lacks_are_noted():
    words = config(vlm={"size": "tiny", "vocabulary": ["do", "0"]})
    (flaw,) = [flaw for flaw in check_data(Source(), words)[0] if flaw.kind == "words"]
    assert flaw.text == "vlm.vocabulary lacks '1', '2'" and not flaw.refuse
    assert not [flaw for flaw in check_data(Source(), config())[0] if flaw.kind == "words"]


def test_degrees_and_short_episodes():
    joints = {"space": "joint_position", "units": {"joint": 1.0}, "normalization": []}
    degrees = Source(change=lambda _, a: replace(a, actions=np.column_stack(
        [np.linspace(0, 90, len(a))[:, None] * np.ones(6), a.actions[:, 6]])))
    flaws, _ = check_data(degrees, config(action=joints))
    assert {flaw.kind for flaw in flaws if flaw.refuse} == {"units"} and "degrees" in flaws[0].text
    flaws, _ = check_data(Source((9, 3)), config())
    assert [(flaw.kind, flaw.where) for flaw in flaws if flaw.refuse] == [("short", "episode 1")]


def test_sound_data_and_the_page(tmp_path):
    source = Source(flaws=(Flaw("gap", "episode 0", "a hole", "fill it"),))
    findings = inspect_data(source, config(), tmp_path)
    assert findings.ok and findings.lines()[0].startswith("3 episodes, 28 steps at 10 Hz")
    page = findings.page.read_text()
    assert page.count("data:image/jpeg;base64,") == 15 and "a hole" in page and "do 2" in page
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    flat = Source()
    flat.images = lambda i, steps: {"static": np.full((len(steps), 4, 4, 3), 90, np.uint8)}
    findings = inspect_data(flat, config(), tmp_path)
    assert not findings.ok and {flaw.kind for flaw in findings.flaws if flaw.refuse} == {"frozen"}


def test_memory_is_flat():
    data = WindowDataset(Source((200,) * 40, size=64), range(40), config())

    def peak(indices: range) -> int:
        gc.collect()
        tracemalloc.start()
        for index in indices:
            data[index]
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    few, many = peak(range(0, 200)), peak(range(200, 1400))
    assert many - few < 2_000_000  # 1200 windows of 37 kB would be 44 MB
