"""Reading a recorded case: weights and images are functions of their names, the rest lies in a safetensors file."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE, OTHER_ATTENTION, BFLOAT16, LOSS = 1e-5, 5e-5, 2e-2, 1e-6
UNDECIDED = 1e-4  # below this the reference's own logit says nothing about the gripper
LARGEST: dict[float, float] = {}  # tolerance -> largest relative deviation of this run


def is_case(path: Path) -> bool:
    """A JSON beside a checkpoint file of the same stem is that checkpoint's configuration, not a case."""
    return not any(path.parent.glob(f"{path.stem}_ckpt*"))


def load_case(path: Path) -> dict[str, Any]:
    file = path.with_suffix(".safetensors")
    tensors = load_file(file) if file.exists() else {}

    def place(node: Any) -> Any:
        if isinstance(node, dict):
            return (
                tensors[node["__tensor__"]] if set(node) == {"__tensor__"} else {k: place(v) for k, v in node.items()}
            )
        return [place(v) for v in node] if isinstance(node, list) else node

    return place(json.loads(path.read_text(encoding="utf-8")))


def filled_parameter(key: str, shape: tuple[int, ...]) -> Tensor:
    """The parameter `key`: uniform noise scaled by fan-in for matrices, around 1 for norm scales, small otherwise."""
    noise = np.random.RandomState(zlib.crc32(key.encode()) % 2**32).random_sample(tuple(shape)) * 2.0 - 1.0
    if len(shape) >= 2:
        values = noise * np.sqrt(3.0 / int(np.prod(shape[1:])))
    else:
        values = 1.0 + 0.1 * noise if key.endswith("weight") else 0.1 * noise
    return torch.from_numpy(values.astype(np.float32))


def filled_state(shapes: dict[str, list[int]], prefix: str = "") -> dict[str, Tensor]:
    """A case's weights, `prefix` taken off their keys."""
    return {key.removeprefix(prefix): filled_parameter(key, tuple(shape)) for key, shape in shapes.items()}


def image_u8(name: str, height: int, width: int) -> np.ndarray:
    """The (height, width, 3) uint8 image called `name`, in blocks of 4 x 4 pixels."""
    stream = np.random.RandomState(zlib.crc32(("u8" + name).encode()) % 2**32)
    blocks = (stream.random_sample((height // 4 + 1, width // 4 + 1, 3)) * 256).astype(np.uint8)
    return np.repeat(np.repeat(blocks, 4, 0), 4, 1)[:height, :width].copy()


def close(got: Any, expected: Any, tolerance: float = TOLERANCE, what: str = "") -> None:
    """Shapes are equal, nothing is NaN, no number is off by more than `tolerance` x max(1, size).

    size: the largest |value| of the reference's tensor. float32 rounds a sum relative to its
    largest terms, so the small numbers of a large tensor are no more precise than the large ones,
    and differ from processor to processor.
    """
    got, expected = (
        torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x).detach().double() for x in (got, expected)
    )
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, the reference has {tuple(expected.shape)}"
    size = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    worst = float((got - expected).abs().max()) / size if expected.numel() else 0.0
    assert worst <= tolerance, f"{what}: off by {worst:.2e} of the size, allowed {tolerance:.0e}"
    LARGEST[tolerance] = max(LARGEST.get(tolerance, 0.0), worst)
