"""Fixed inputs of the golden answers: seeded frames, chunks, windows and shards as plain arrays."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Answers = dict[str, Any]
Array = NDArray[np.float64]
ONE = "lift the red cube"
OTHER = "lift the green cube"
MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND
HOME = np.array([0.0, 0.1316, 0.0, -2.5358, 0.0, 2.6673, 0.7859])
HORIZON = 16
STEP = 0.05
POSE = np.array(
    [
        [1.0, 0.0, 0.0, 0.48],
        [0.0, -1.0, 0.0, 0.02],
        [0.0, 0.0, -1.0, 0.21],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def image(seed: int, size: tuple[int, int] = (96, 96)) -> NDArray[np.uint8]:
    """A smooth seeded image (H, W, 3): a policy reacts to it, unlike to white noise."""
    rng = np.random.default_rng(seed)
    rows = np.linspace(0.0, 1.0, size[0])[:, None, None]
    columns = np.linspace(0.0, 1.0, size[1])[None, :, None]
    phase = rng.uniform(0.0, 6.3, 3)
    tilt = rng.uniform(1.0, 9.0, (2, 3))
    waves = np.sin(tilt[0] * rows + tilt[1] * columns + phase)
    noise = rng.uniform(-12.0, 12.0, (*size, 3))
    return np.clip(127.0 + 90.0 * waves + noise, 0.0, 255.0).astype(np.uint8)


def frames(
    instructions: list[str], period_ns: int = 100 * MILLISECOND, size: tuple[int, int] = (96, 96)
) -> list[Any]:
    """One frame per instruction: stamp, images of both cameras, words and the arm's state."""
    made = []
    for i, words in enumerate(instructions):
        pose = POSE.copy()
        pose[:3, 3] += [0.01 * i, -0.004 * i, -0.006 * i]
        made.append(
            {
                "stamp_ns": SECOND + i * period_ns,
                "images": {"static": image(2 * i, size), "wrist": image(2 * i + 1, size)},
                "instruction": words,
                "positions": HOME + 0.02 * np.sin(np.arange(7) + 0.7 * i),
                "velocities": 0.1 * np.cos(np.arange(7) + 0.7 * i),
                "pose": pose,
                "gripper": float(i % 4) / 3.0,
            }
        )
    return made


def reach(stamp_ns: int, home: Array, speed: float = 1.0) -> Array:
    """Joint targets (HORIZON, J) of a slow motion about `home`, from a stamp on, with noise."""
    seconds = stamp_ns / SECOND + STEP * np.arange(1, HORIZON + 1)[:, None]
    rng = np.random.default_rng(stamp_ns // MILLISECOND)
    phase = np.arange(len(home))
    swing = 0.12 * speed * (np.sin(0.9 * seconds + phase) - np.sin(0.9 + phase))
    return home + swing + rng.normal(0.0, 2e-4, swing.shape)


def deltas(seed: int, rows: int = HORIZON, scale: float = 1.0) -> Array:
    """End-effector deltas (rows, 6): metres and radians per step, a constant drift and noise."""
    rng = np.random.default_rng(seed)
    drift = np.array([0.003, -0.002, 0.0015, 0.004, -0.006, 0.008]) * np.cos(
        0.3 * seed + np.arange(6)
    )
    return scale * (drift + rng.normal(0.0, 4e-4, (rows, 6)))


def poses(stamp_ns: int, start: Array) -> Array:
    """Tool poses (HORIZON, 6) about `start` (4, 4): position, and intrinsic xyz Euler angles."""
    seconds = (stamp_ns - SECOND) / SECOND + STEP * np.arange(1, HORIZON + 1)
    shift = 0.05 * np.stack(
        [np.sin(seconds), np.sin(0.7 * seconds), -np.sin(0.5 * seconds)], axis=1
    )
    turn = Rotation.from_rotvec(np.stack([0.1 * seconds, 0.05 * seconds, -0.2 * seconds], axis=1))
    turned = turn * Rotation.from_matrix(start[:3, :3])
    return np.hstack([start[:3, 3] + shift, turned.as_euler("XYZ")])


def openings(index: int, rows: int = HORIZON) -> Array:
    """The gripper's column (rows, 1): open, closed from the fifth chunk on, at times in between."""
    opening = np.full((rows, 1), 1.0 if index < 5 else 0.0)
    opening[:2] = 0.5 if index % 3 == 1 else opening[:2]
    return opening


def windows(
    count: int, window: int, chunk: int, cameras: tuple[str, ...], size: int
) -> Iterator[dict[str, Any]]:
    """Training windows: random images, actions (window, chunk, 7) on the head's scale, masks."""
    rng = np.random.default_rng(11)
    for i in range(count):
        actions = rng.uniform(-1.0, 1.0, (window, chunk, 7)).astype(np.float32)
        actions[..., -1] = rng.integers(0, 2, actions.shape[:-1])
        mask = np.ones((window, chunk), bool)
        mask[:, chunk - i % 2 :] = False
        yield {
            "images": {
                name: rng.integers(0, 256, (window, size, size, 3), dtype=np.uint8)
                for name in cameras
            },
            "instruction": ("lift the red cube", "lift the green cube the cube")[i % 2],
            "actions": actions,
            "mask": mask,
            "proprioception": rng.normal(size=(window, 4)).astype(np.float32),
        }


def shard_frames(labelled: int, horizon: int, size: int) -> dict[str, NDArray[Any]]:
    """The columns that every recorded shard holds: two episodes of nine frames, seeded."""
    rng = np.random.default_rng(21)
    count = 18
    labels = rng.uniform(-0.015, 0.015, (count, labelled, horizon, 7)).astype(np.float32)
    labels[..., 6] = rng.integers(0, 2, labels.shape[:-1])
    placed = np.tile(np.eye(4), (count, 1, 1))
    placed[:, :3, 3] = rng.uniform(0.3, 0.6, (count, 3))
    return {
        "images": rng.integers(0, 256, (count, 2, size, size, 3), dtype=np.uint8),
        "poses": placed,
        "joints": HOME + rng.normal(0.0, 0.1, (count, 7)),
        "openings": rng.uniform(size=count).astype(np.float32),
        "labels": labels,
        "episodes": np.repeat(np.array([0, 1], np.int64), 9),
    }
