"""Resumable state of a run in one safetensors file: trained and averaged weights, optimiser
moments, step.

Averaged weights are a running mean of the trained weights, which a checkpoint then holds instead of
the newest. No archive of Python objects: tensors by the parameter's name, the rest as JSON in the
file's header. Everything random is drawn from the seed and the step alone, so no generator's state
is kept. Files and folders appear whole or not at all.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robovlms_ros.checkpoints.weights import tied_groups
from robovlms_ros.training.engine.batches import TrainingError


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


STATE = "state.safetensors"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class TrainingProgress:
    """Progress of a run. step: of the optimiser. batch: batches of `epoch` that are done. best:
    lowest validation loss.

    setup: what must stay the same for the run to go on (`Trainer.setup`). scaler: of float16's
    gradient scaling.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None
    setup: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor on the CPU; of a sharded one (FSDP 2) every process must call this."""
    gathered = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]
    return gathered.detach().cpu().contiguous()


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state, tied tensors once, whole (see `whole`)."""
    later = {name for group in tied_groups(module) for name in group[1:]}
    return {name: whole(tensor) for name, tensor in module.state_dict().items() if name not in later}


def trained_parameters(objective: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of an objective that train, by name; those of its policy by the policy's
    own names."""
    named = objective.named_parameters()
    return {name.removeprefix("policy."): p for name, p in named if p.requires_grad}


def collect(
    objective: nn.Module, optimiser: torch.optim.Optimizer, average: AveragedWeights | None = None
) -> dict[str, Tensor]:
    """Trained weights, moments and averaged weights, whole: `weight.NAME`, `exp_avg.NAME`,
    `average.NAME`, ..."""
    tensors = {}
    for name, parameter in trained_parameters(objective).items():
        tensors[f"weight.{name}"] = whole(parameter).clone()
        moments = optimiser.state.get(parameter, {})
        tensors |= {
            f"{key}.{name}": whole(moments[key]).clone() for key in _MOMENTS if key in moments
        }
        if average is not None:
            tensors[f"average.{name}"] = whole(average.values[name]).clone()
    return tensors


def restore(
    objective: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], where: str,
    average: AveragedWeights | None = None,
) -> None:
    """Put what `collect` gave back in place. Raises TrainingError naming the parameters that do
    not fit."""
    trained = trained_parameters(objective)
    kept = {key.removeprefix("weight."): t for key, t in tensors.items() if key.startswith("weight.")}
    faults = sorted(set(trained) ^ set(kept)) + [n for n in trained if n in kept and trained[n].shape != kept[n].shape]
    if faults:
        raise TrainingError(
            f"{where}: {len(faults)} parameters differ from this run's, for instance {faults[0]}. The folder belongs "
            "to another run: give another --output, or the configuration that it was begun with."
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(_placed(kept[name], parameter))
            if f"exp_avg.{name}" in tensors:
                step, *moments = (tensors[f"{key}.{name}"] for key in _MOMENTS)
                on = parameter.device if optimiser.param_groups[0].get("fused") else torch.device("cpu")
                placed = [_placed(m, parameter) for m in moments]
                optimiser.state[parameter] = dict(zip(_MOMENTS, [step.to(on), *placed], strict=True))
            if average is not None:
                average.values[name].copy_(
                    _placed(tensors.get(f"average.{name}", kept[name]), parameter)
                )


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    tensor = tensor.to(like.device)
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)  # type: ignore[attr-defined]


def save_state(folder: Path, tensors: dict[str, Tensor], progress: TrainingProgress) -> None:
    """Write the state file; a reader sees the old one or the new one. Raises TrainingError when
    writing fails."""
    from safetensors.torch import save_file

    part = folder / f"{STATE}.part"
    with writing(part, "the run's state", lambda: part.unlink(missing_ok=True)):
        save_file(tensors, part, metadata={"progress": json.dumps(asdict(progress))})
        os.replace(part, folder / STATE)


def load_state(folder: Path) -> tuple[dict[str, Tensor], TrainingProgress] | None:
    """The state that `save_state` wrote last, or None. Raises TrainingError for a file that is not
    one."""
    from safetensors import SafetensorError, safe_open

    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            progress = TrainingProgress(**json.loads((file.metadata() or {})["progress"]))
            return {key: file.get_tensor(key) for key in file.keys()}, progress  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: not the state of a training run ({error}). Give another --output.") from error


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Have `fill` write a folder, then put it in the place of `folder`, whose old content stays
    until then.

    Raises TrainingError when it cannot be written.
    """
    part, old = (folder.with_name(f"{folder.name}.{suffix}") for suffix in ("part", "old"))
    recover_folder(folder)
    shutil.rmtree(part, ignore_errors=True)
    with writing(part, "a checkpoint", lambda: shutil.rmtree(part, ignore_errors=True)):
        fill(part)
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
        shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Undo a replacement that was cut off between its two renames."""
    old = folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)


@contextmanager
def writing(path: Path, what: str, clean: Callable[[], None]) -> Iterator[None]:
    """Within the block, errors of writing are a TrainingError that names what is kept; what was
    begun is removed."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        clean()
        free = shutil.disk_usage(path.parent).free / 2**30
        raise TrainingError(
            f"{path}: {what} cannot be written ({error}; {free:.1f} GiB free there). Nothing is lost: what was written "
            "before is whole. Make room, and run the same command again to go on from there."
        ) from error
