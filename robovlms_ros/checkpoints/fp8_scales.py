"""Calibrated fp8 scales beside a checkpoint's weights: `fp8_scales.json`."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from robovlms_ros.checkpoints.weights import CheckpointError, weights_digest
from robovlms_ros.core.structured_text import write_json

log = logging.getLogger(__name__)
SCALES = "fp8_scales.json"
FORMAT = 1


def write_scales(weights: Path, largest: Mapping[str, float], images: int) -> Path:
    """Write the largest inputs of the text model's layers, found on `images` images, beside the
    weights' file; returns the file."""
    path = weights.parent / SCALES
    content = {
        "format": FORMAT,
        "weights": weights_digest(weights),
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
    if content.get("weights") != weights_digest(weights):
        log.warning(
            "%s was calibrated for other weights and is not used: run `robovlms calibrate`.", path
        )
        return {}
    return largest
