"""Rate of training's loader: images a second, against plain decoding of the same recordings."""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
from torch.utils.data import DataLoader, Dataset

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.resources import find
from robovlms_ros.core.schema import require
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.text_table import aligned
from robovlms_ros.training.data.episodes import EpisodeSource
from robovlms_ros.training.data.kept_images import BLOCK, KeptImages
from robovlms_ros.training.data.statistics import compute_statistics, with_statistics
from robovlms_ros.training.data.windows import WindowDataset
from robovlms_ros.training.engine.batches import build_loader
from robovlms_ros.training.runs import open_data, read_run


class Decoding(Dataset[int]):
    """Every image of an episode once, in order and as recorded; an item is their number."""

    def __init__(self, source: EpisodeSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> int:
        length = self._source.length(i)
        decoded = 0
        for begin in range(0, length, BLOCK):
            found = self._source.images(i, np.arange(begin, min(begin + BLOCK, length)))
            decoded += sum(map(len, found.values()))
        return decoded


def run(args: argparse.Namespace) -> int:
    """Measure; returns 0 when the loader on kept images is fast enough."""
    require(args.windows >= 1, "--windows", args.windows, "at least 1")
    require(args.workers >= 1, "--workers", args.workers, "at least 1")
    job = read_run(find(args.config, "config/train"))
    size = args.image_size or job.config.vlm.image_size or 0
    require(size >= 1, "--image-size", size, "pixels a side: the file has no vlm.image_size")
    source, _ = open_data(args.data, job, print)
    training = replace(job.config.training, workers=args.workers)
    config = replace(job.config, training=training)
    config = with_statistics(config, compute_statistics(source, range(len(source)), config))
    plain = DataLoader(
        Decoding(source), batch_size=None, num_workers=args.workers, persistent_workers=True
    )
    seconds = {"plain decoding": _second_pass(plain)}
    images = {"plain decoding": sum(map(source.length, range(len(source)))) * len(source.cameras)}
    with tempfile.TemporaryDirectory(prefix="robovlms_bench_") as folder:
        kept = KeptImages(source, size, Path(folder))
        begin = perf_counter()
        kept.write(args.workers, lambda _: None)
        seconds["writing kept images"] = perf_counter() - begin
        images["writing kept images"] = images["plain decoding"]
        rows: tuple[tuple[str, EpisodeSource], ...] = (
            ("loader, as recorded", source), ("loader, kept images", kept)
        )
        for name, episodes in rows:
            data = WindowDataset(episodes, range(len(source)), config)
            order = np.random.default_rng(0).permutation(len(data))[: args.windows].tolist()
            seconds[name] = _second_pass(build_loader(config, size, data, order))
            images[name] = len(order) * config.model.history_length * len(config.cameras)
    rates = {name: images[name] / seconds[name] for name in seconds}
    ratio = {name: rate / rates["plain decoding"] for name, rate in rates.items()}
    lines = [[name, f"{images[name]}", f"{rates[name]:.0f}", f"{ratio[name]:.2f}"] for name in rates]
    print(_heading(config, len(source), size, args.workers))
    print(aligned(("", "images", "images/s", "ratio"), lines, numbers=True))
    write_json(args.json, {"images_per_second": rates, "ratio": ratio, "image_size": size,
                           "workers": args.workers})
    return 0 if ratio["loader, kept images"] >= args.at_least else 1


def _heading(config: PolicyConfig, episodes: int, size: int, workers: int) -> str:
    window = config.model.history_length
    cameras = len(config.cameras)
    return (
        f"{episodes} episodes, {cameras} cameras, windows of {window} frames at random, "
        f"{size} pixels a side, {workers} processes"
    )


def _second_pass(loader: "DataLoader | Sequence[object]") -> float:
    """Seconds of a pass by processes that are running already."""
    for _ in loader:
        pass
    begin = perf_counter()
    for _ in loader:
        pass
    return perf_counter() - begin
