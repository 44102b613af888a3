"""Policies of any size with random weights and no second copy, and the peak memory of a variant.

The peak is measured in a process of its own: memory freed earlier would hide it in this one.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from robovlms_ros.bench.policy.cases import Case, SyntheticFrames, config_of
from robovlms_ros.bench.policy.variants import WARM_UP, make_way
from robovlms_ros.checkpoints.checkpoint import DTYPES, random_tokenizer
from robovlms_ros.checkpoints.weights import tied_groups
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.models.backbones.meta_parameters import parameters_on_meta
from robovlms_ros.models.vla_policy import VLAPolicy

NORM = re.compile(r"(^|[._])(layer_?norm\d?|layrnorm|norm\d?|ln|ln_\w+|\w+_norm|\w+_layrnorm|\w+_layernorm|norm_\w+)$")


def build(case: Case, device: torch.device, seed: int | None = 0) -> VLAPolicy:
    """The policy of a case on `device`: every weight is drawn where it will stay, in the precision
    it will have.

    seed: None gives all weights one value, which is quick and enough to measure memory.
    """
    config = config_of(case)
    with parameters_on_meta():
        policy = VLAPolicy(config, random_tokenizer(config, None))
    draw_weights(policy, device, DTYPES[case.dtype], seed)
    policy.identity = case.title
    return policy.to(device).eval()


def draw_weights(module: nn.Module, device: torch.device, dtype: torch.dtype, seed: int | None = 0) -> None:
    """Give every parameter of `module` memory and values: matrices normal with 1 / sqrt(columns),
    so that activations keep their scale through any depth; norms the identity; biases small. Tied
    parameters stay one tensor."""
    generator = torch.Generator(device).manual_seed(seed or 0)
    for group in tied_groups(module):
        owner_name, _, leaf = group[0].rpartition(".")
        owner = module.get_submodule(owner_name)
        old = owner._parameters[leaf]
        assert old is not None
        values = torch.empty(old.shape, dtype=dtype, device=device)
        if seed is None:
            values.fill_(0.01)
        else:
            _draw(values, owner, owner_name, leaf, generator)
        parameter = nn.Parameter(values, requires_grad=False)
        for name in group:
            place, _, last = name.rpartition(".")
            module.get_submodule(place)._parameters[last] = parameter


def _draw(values: Tensor, owner: nn.Module, owner_name: str, leaf: str, generator: torch.Generator) -> None:
    if leaf == "weight" and (isinstance(owner, nn.LayerNorm) or NORM.search(owner_name)):
        # Gemma's norm multiplies by 1 + weight.
        values.fill_(0.0 if "Gemma" in type(owner).__name__ else 1.0)
    elif values.ndim < 2:
        values.normal_(0.0, 0.02, generator=generator)
    else:
        fan_in = values.shape[-1] if values.ndim == 2 else values[0].numel()
        values.normal_(0.0, min(fan_in, 4096) ** -0.5, generator=generator)


def size_of(policy: VLAPolicy) -> dict[str, int]:
    """Numbers of parameters: `all`, and `without_embedding` of the words."""
    total = sum(parameter.numel() for parameter in policy.parameters())
    return {"all": total, "without_embedding": total - policy.vlm.word_embedding.weight.numel()}


STATUS = Path("/proc/self/status")


def peak_memory(case: Case, path: str, threads: int) -> int | None:
    """Bytes: the most that a process had in memory that builds the case and makes steps of one path
    on the CPU. None where the system has no such count. Raises ConfigError when the process
    fails."""
    if not STATUS.exists():
        return None
    package = Path(__file__).resolve().parents[3]
    inherited = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(package), inherited]))}
    command = [sys.executable, "-m", "robovlms_ros.bench.policy.models", json.dumps(asdict(case)), path, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise ConfigError(f"{case.title}, {path}: the process that measures memory failed: {done.stderr[-800:]}")
    return int(done.stdout.split()[-1])


def high_water() -> int:
    """Bytes: this process's largest resident memory so far (not its parent's, which ru_maxrss
    starts from)."""
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def main(arguments: list[str]) -> None:
    """Build, step, print the peak."""
    case = Case(**json.loads(arguments[0]))
    path = arguments[1]
    threads = int(arguments[2])
    torch.set_num_threads(threads)
    policy = build(case, torch.device("cpu"), seed=None)
    way = make_way(path, policy, SyntheticFrames(policy.config.cameras))
    for index in range(WARM_UP):
        way.step(index)
    print(high_water())


if __name__ == "__main__":
    main(sys.argv[1:])
