"""Peak memory of a path, in a process of its own: what was freed before would hide it in this one."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from robovlms_ros.bench.policy.cases import Case, SyntheticFrames
from robovlms_ros.bench.policy.models import build
from robovlms_ros.bench.policy.variants import WARM_UP, make_way
from robovlms_ros.core.schema import ConfigError

STATUS = Path("/proc/self/status")


def peak_memory(case: Case, path: str, threads: int) -> int | None:
    """Bytes: the most that a process had in memory that builds the case and makes steps of one path on the CPU. None
    where the system does not say. Raises ConfigError when the process fails."""
    if not STATUS.exists():
        return None
    package = Path(__file__).resolve().parents[3]
    inherited = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(package), inherited]))}
    command = [sys.executable, "-m", "robovlms_ros.bench.policy.memory", json.dumps(asdict(case)), path, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise ConfigError(f"{case.title}, {path}: the process that measures memory failed: {done.stderr[-800:]}")
    return int(done.stdout.split()[-1])


def high_water() -> int:
    """Bytes: this process's largest resident memory so far (not its parent's, which ru_maxrss starts from)."""
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def main(arguments: list[str]) -> None:
    """Build, step, print the peak."""
    case, path, threads = Case(**json.loads(arguments[0])), arguments[1], int(arguments[2])
    torch.set_num_threads(threads)
    policy = build(case, torch.device("cpu"), seed=None)
    way = make_way(path, policy, SyntheticFrames(policy.config.cameras))
    for index in range(WARM_UP):
        way.step(index)
    print(high_water())


if __name__ == "__main__":
    main(sys.argv[1:])
