"""Averaged weights: a running mean of the trained weights, which a checkpoint then holds instead
of the newest."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class AveragedWeights:
    """Exponential moving average of some parameters.

    parameters: by name, on their device. decay: per step, below 1; early steps use a smaller one,
    so that the initial weights do not stay in the mean.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps of the optimiser."""
        keep = min(self._decay, step / (step + 10))
        torch._foreach_lerp_(list(self.values.values()), list(self._parameters.values()), 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the mean into the parameters within the block; the newest weights return after it."""
        newest = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._fill(self.values)
        try:
            yield
        finally:
            self._fill(newest)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
