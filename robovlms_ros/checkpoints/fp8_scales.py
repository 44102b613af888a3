"""Calibrated fp8 scales beside a checkpoint's weights: `fp8_scales.json`."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from robovlms_ros.checkpoints.weights import CheckpointError
from robovlms_ros.core.structured_text import write_json

log = logging.getLogger(__name__)
SCALES = "fp8_scales.json"
FORMAT = 1
BLOCKS = 64
BLOCK = 1 << 16


def write_scales(weights: Path, largest: Mapping[str, float], images: int) -> Path:
    """Write the largest inputs of the text model's layers, found on `images` images, beside the
    weights' file; returns the file."""
    path = weights.parent / SCALES
    content = {
        "format": FORMAT,
        "weights": fingerprint(weights),
        "images": images,
        "largest_inputs": dict(largest),
    }
    write_json(path, content)
    return path


def read_scales(weights: Path) -> dict[str, float]:
    """The largest inputs by layer; empty without a file, and with a warning where it belongs to
    other weights. Raises CheckpointError for an unreadable file."""
    path = weights.parent / SCALES
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, must be {FORMAT}")
        largest = {str(name): float(value) for name, value in content["largest_inputs"].items()}
        if not all(0 <= value < float("inf") for value in largest.values()):
            raise ValueError("a largest input is negative or not finite")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "Write it anew with `robovlms calibrate`, or remove it."
        raise CheckpointError(f"{path}: not a file of fp8 scales: {error}. {remedy}") from error
    if content.get("weights") != fingerprint(weights):
        log.warning(
            "%s was calibrated for other weights and is not used: run `robovlms calibrate`.", path
        )
        return {}
    return largest


def fingerprint(weights: Path) -> str:
    """SHA-256 of the file's size and of up to BLOCKS blocks that are spread over it; of all shards
    where it is an index of them."""
    digest = hashlib.sha256()
    shards = (
        sorted(weights.parent.glob("*.safetensors")) if weights.suffix == ".json" else [weights]
    )
    for shard in shards:
        size = shard.stat().st_size
        digest.update(str(size).encode())
        with shard.open("rb") as file:
            for i in range(BLOCKS):
                file.seek(max(size - BLOCK, 0) * i // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()
