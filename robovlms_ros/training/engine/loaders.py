"""Windows in batches: the order of an epoch, the worker processes, and what to say when one of them dies."""

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import cast

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from robovlms_ros.config.training import TrainingConfig
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.training.engine.batches import Collate, TrainingError


class EpochSampler(Sampler[int]):
    """An epoch's order, from the seed and the epoch alone; `begin` says which, and how many are done already."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed
        self.epoch = self.done = 0

    def begin(self, epoch: int, done: int) -> None:
        self.epoch, self.done = epoch, min(done, self.length)

    def __len__(self) -> int:
        return self.length - self.done

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter(order[self.done :].tolist())


def build_loader(policy: VLAPolicy, data: Dataset, sampler: Sampler[int] | Sequence[int]) -> DataLoader:
    """Batches of `data` in the sampler's order, decoded and squashed in `training.workers` processes."""
    training = policy.config.training
    collate = Collate(policy.config, policy.vlm.image_size)
    return DataLoader(
        data, training.batch_size, sampler=sampler, collate_fn=collate, num_workers=training.workers,
        persistent_workers=training.workers > 0,
    )


def require_windows(train: Dataset, validation: Dataset | None) -> None:
    """Raise TrainingError for a split without windows."""
    for name, data in (("training", train), ("validation", validation)):
        if data is not None and len(cast(Sized, data)) == 0:
            raise TrainingError(
                f"the {name} split holds no window: too few episodes, or all of them shorter than a window. Give more "
                "data, or another training.validation_fraction (0 holds nothing out)."
            )


@contextmanager
def watching_workers(training: TrainingConfig) -> Iterator[None]:
    """Within the block, a worker that was killed is a TrainingError (torch tells it from a signal, at any line)."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a process that decodes images died ({str(error).splitlines()[0]}), most often for lack of memory. "
            f"Lower training.workers (now {training.workers}) or batch_size, and run the same command again: it goes "
            "on from the last saved state."
        ) from error
