"""Golden answers of training: losses of a few steps on seeded data."""

import tempfile
from pathlib import Path
from typing import Any

import api
import golden_inputs as inputs
import numpy as np
from golden_inputs import Answers
from golden_policies import HEADS, tiny_mapping
from numpy.typing import NDArray


def training() -> Answers:
    """Losses of three steps of the general engine, and of two of the simulated arm's trainer."""
    answers: Answers = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, blocks in engine_runs().items():
            mapping = tiny_mapping(**blocks)
            model = mapping["model"]
            chunk = model["action_chunk_size"]
            windows = inputs.windows(12, model["history_length"], chunk, ("static", "wrist"), 28)
            answers[kind] = {
                "steps": api.train(api.tiny_policy(mapping), mapping, windows, folder / kind),
                "validation": api.validation_rows(folder / kind).splitlines(),
            }
        answers |= simulated_runs(folder)
    return answers


def engine_runs() -> dict[str, Answers]:
    """Configurations of the general engine's runs."""
    still = dict.fromkeys(("shift", "brightness", "contrast", "saturation", "hue"), 0.0)
    usual: Answers = {
        "batch_size": 4,
        "epochs": 1,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.5,
        "workers": 0,
    }
    model: Answers = {"history_length": 2, "action_chunk_size": 3}
    return {
        "lstm": {"model": model, "training": {**usual, "warmup_ratio": 0.0, "augmentation": still}},
        "augmented": {"model": model, "training": {**usual, "schedule": "cosine"}},
        "gpt_accumulated": {
            "model": model,
            "action_head": HEADS["gpt"]["action_head"],
            "training": {
                **usual,
                "warmup_ratio": 0.0,
                "batch_size": 2,
                "accumulation": 2,
                "augmentation": still,
            },
        },
        "discrete": {
            "model": {"history_length": 1, "action_chunk_size": 2},
            "action_head": HEADS["discrete"]["action_head"],
            "vlm": {"vocabulary": []},
            "proprioception": None,
            "training": {**usual, "augmentation": still},
        },
    }


def simulated_runs(folder: Path) -> Answers:
    """Steps of the simulated arm's trainer, with and without the simulator's ground truth."""
    mapping = tiny_mapping(model={"history_length": 2}, vlm={"image_size": 28})
    easy = write_shard(folder / "easy", easy_columns(api.cubes()))
    tabletop = write_shard(folder / "tabletop", tabletop_columns(*api.tabletop()))
    words = (
        "pick up take and it raise lift the red green blue yellow purple cube can ball plate "
        "stack on put top "
        "of place onto push to slide over"
    )
    named = tiny_mapping(
        model={"history_length": 2}, vlm={"image_size": 28, "vocabulary": words.split()}
    )
    runs: dict[str, tuple[Answers, Path, Answers]] = {
        "easy": (mapping, easy, {"tabletop": False}),
        "easy_recorded": (mapping, easy, {"tabletop": False, "ground_truth": False}),
        "tabletop": (named, tabletop, {"tabletop": True}),
        "tabletop_seeing": (named, tabletop, {"tabletop": True, "seeing": True}),
        "tabletop_recorded": (named, tabletop, {"tabletop": True, "ground_truth": False}),
    }
    return {
        name: api.train_simulated(
            api.tiny_policy(given), shard, folder / f"run_{name}", steps=2, rate=1e-3, **options
        )
        for name, (given, shard, options) in runs.items()
    }


def easy_columns(cubes: int) -> dict[str, NDArray[Any]]:
    """The columns of a shard of the easy demo."""
    columns = inputs.shard_frames(cubes, 4, 28)
    rng = np.random.default_rng(31)
    count = len(columns["episodes"])
    places = rng.uniform(-0.1, 0.1, (count, cubes, 3)).astype(np.float32)
    return api.cube_columns(columns, places, rng.integers(0, cubes, count))


def tabletop_columns(things: int, plates: int, goals: int) -> dict[str, NDArray[Any]]:
    """The columns of a shard of the tabletop tasks; each episode has six goals."""
    columns = inputs.shard_frames(6, 4, 28)
    rng = np.random.default_rng(41)
    count = len(columns["episodes"])
    placed = rng.uniform(0.3, 0.6, (count, things, 3)).astype(np.float32)
    placed[:, -1] = np.nan
    turns = rng.uniform(-0.7, 0.7, (count, things)).astype(np.float32)
    turns[:, things // 2 :] = np.nan
    chosen = [rng.choice(goals, 6, replace=False) for _ in range(2)]
    columns |= {
        "things": np.nan_to_num(placed, nan=0.5),
        "turns": turns,
        "plates": rng.uniform(0.3, 0.6, (count, plates, 3)).astype(np.float32),
        "goals": np.stack([chosen[episode] for episode in columns["episodes"]]).astype(np.int16),
        "yaws": rng.uniform(-0.7, 0.7, (count, 6)).astype(np.float32),
    }
    return columns


def write_shard(root: Path, columns: dict[str, NDArray[Any]]) -> Path:
    """A recorded shard `0` below `root`; returns `root`."""
    folder = root / "0"
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", columns["images"])
    rest = {name: column for name, column in columns.items() if name != "images"}
    np.savez(folder / "frames.npz", **rest)  # type: ignore[arg-type]
    return root
