"""Demonstrations from the simulated arm, one shard of episodes at a time, every frame labelled by the expert.

The expert's law has no memory, so a frame carries the label of EVERY instruction, whichever one was being followed, and
episodes that a policy drove are labelled in the same way (dataset aggregation, Ross et al. 2011).

A shard is a folder: `images.npy` (F, cameras, S, S, 3) uint8 and `frames.npz` with `poses` (F, 4, 4), `joints` (F, 7),
`openings` (F,), `cubes` (F, C, 3) m in the base frame, `labels` (F, C, horizon, 7) per `expert.ACTION_SPEC`,
`followed` (F,), which of the cubes was asked for, `episodes` (F,), the episode's seed, and `scenes` (F,), alike in
episodes that begin alike. Frames of an episode are adjacent and 50 ms apart. C runs over `task.CUBES`, cameras over
`world.CAMERAS`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.core.rotations import matrix_from_vector
from robovlms_ros.core.types import NANOSECONDS, ActionChunk
from robovlms_ros.sim.expert import HAND_DOWN, MAX_SPEED, STEP, expert_chunk
from robovlms_ros.sim.rollout import Agent, ClosedLoop, EpisodeSettings, Outcome, RolloutFrame
from robovlms_ros.sim.task import CUBES, INSTRUCTIONS, named_cube
from robovlms_ros.sim.world import CAMERAS

Array = NDArray[np.float64]

_DISTURBED_STEPS = 6  # about what is executed before the next chunk; more would only lead out of reach
START_BOX = ((0.36, 0.70), (-0.22, 0.22), (-0.05, 0.17))
"""Where the hand may start when it does not start at home: x, y, z ranges in the base frame (m)."""


@dataclass(frozen=True)
class DemonstrationSettings:
    """How much an episode departs from the expert's own path.

    noise: largest standard deviation of the executed speed's noise, as a part of the expert's top speed; each episode
        draws its own. random_start, switch: probabilities that the hand starts elsewhere than at home, and that the
        instruction changes on the way. closed_start: probability that a hand that starts elsewhere is not open. slip:
        probability per chunk that the fingers do the opposite for a while. limit: s of simulated time at most.
    """

    noise: float = 0.6
    random_start: float = 0.5
    closed_start: float = 0.3
    switch: float = 0.35
    slip: float = 0.02
    limit: float = 6.0


def _distance_to_cube(chunk: ActionChunk, frame: RolloutFrame) -> float:
    state = frame.observation.state
    assert state is not None and state.eef_pose is not None
    return float(np.linalg.norm(state.eef_pose[:3, 3] - frame.truth.cubes[named_cube(chunk.instruction)]))


class Disturbance:
    """Noise on what is executed: correlated over time (AR(1)) in speed, weaker near the goal.

    distance: m from the goal at a frame; by default from the hand to the named cube. turn: standard deviation of the
    noise about the vertical, rad per step.
    """

    def __init__(
        self,
        sigma: float,
        slip: float,
        rng: np.random.Generator,
        distance: Callable[[ActionChunk, RolloutFrame], float] = _distance_to_cube,
        turn: float = 0.0,
    ) -> None:
        self._sigma, self._slip, self._rng = sigma * MAX_SPEED * STEP, slip, rng
        self._distance, self._turn = distance, turn
        self._noise = rng.normal(size=3)
        self._last_ns: int | None = None

    def __call__(self, chunk: ActionChunk, frame: RolloutFrame) -> ActionChunk:
        if self._last_ns is not None:
            for _ in range(round((chunk.stamp_ns - self._last_ns) / (STEP * NANOSECONDS))):
                self._noise = self._next(self._noise)
        self._last_ns = chunk.stamp_ns
        near = float(np.clip((self._distance(chunk, frame) - 0.02) / 0.06, 0.08, 1.0))
        scale = self._sigma * near
        values, noise = chunk.values.copy(), self._noise
        for row in values[:_DISTURBED_STEPS]:
            row[:3] += scale * noise
            if self._turn:
                row[5] += self._turn * near * noise[2]
            noise = self._next(noise)
        if self._rng.uniform() < self._slip:
            values[: self._rng.integers(4, 10), 6] = 1 - np.round(values[0, 6])
        return replace(chunk, values=values)

    def _next(self, noise: Array) -> Array:
        return 0.8 * noise + 0.6 * self._rng.normal(size=3)


@dataclass
class _Recorder:
    frames: list[RolloutFrame] = field(default_factory=list)

    def __call__(self, frame: RolloutFrame) -> None:
        self.frames.append(frame)


class Recording(Protocol):
    """What is recorded: how an episode runs, and what is kept of a frame."""

    def run(self, seed: int, loop: ClosedLoop, agent: Agent, settings: DemonstrationSettings) -> Outcome:
        """One episode, drawn from the seed alone."""
        ...

    def row(self, frame: RolloutFrame, seed: int) -> dict[str, Any]:
        """A frame's row of every column, `images` and `episodes` among them."""
        ...


class CubeRecording:
    """The easy demo: two cubes, every frame labelled for both. paired: an even seed's scene is shown by the odd seed
    after it once more, for the other instruction, and no instruction changes on the way."""

    def __init__(self, paired: bool = False) -> None:
        self._paired = paired

    def run(self, seed: int, loop: ClosedLoop, agent: Agent, settings: DemonstrationSettings) -> Outcome:
        asked = list(INSTRUCTIONS)[seed % 2] if self._paired else None
        return run_episode(seed, loop, agent, settings, self._scene(seed), asked)

    def row(self, frame: RolloutFrame, seed: int) -> dict[str, Any]:
        return {**_row(frame, seed), "scenes": np.int64(self._scene(seed))}

    def _scene(self, seed: int) -> int:
        return seed - seed % 2 if self._paired else seed


def record_shard(
    folder: Path,
    seeds: Sequence[int],
    loop: ClosedLoop,
    agent: Agent,
    settings: DemonstrationSettings,
    progress: Callable[[Outcome], None] = lambda outcome: None,
    recording: Recording | None = None,
) -> list[Outcome]:
    """Run one episode per seed with `agent` in `loop` and write the shard; complete or absent, never half.

    A shard that exists is left as it is and answers with no outcomes. recording: the easy demo's by default.
    """
    recording = recording or CubeRecording()
    if (folder / "frames.npz").exists():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    recorder, outcomes, rows = _Recorder(), [], []
    loop.on_frame = recorder
    for seed in seeds:
        recorder.frames.clear()
        outcomes.append(recording.run(seed, loop, agent, settings))
        progress(outcomes[-1])
        rows += [recording.row(frame, seed) for frame in recorder.frames]
    loop.on_frame = loop.disturb = None
    np.save(folder / "images.npy", np.stack([row.pop("images") for row in rows]))
    (folder / "outcomes.json").write_text(json.dumps([vars(o) for o in outcomes], indent=1))
    part = folder / "frames.part.npz"
    columns: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.savez(part, **columns)
    part.rename(folder / "frames.npz")
    return outcomes


def run_episode(
    seed: int, loop: ClosedLoop, agent: Agent, settings: DemonstrationSettings, scene: int, asked: str | None = None
) -> Outcome:
    """One disturbed episode of a scene, drawn from the seed alone; asked: its one instruction, in the place of those
    that are drawn."""
    rng = np.random.default_rng((seed, 1))
    loop.world.reset(scene)
    if rng.uniform() < settings.random_start:
        opening = rng.uniform() if rng.uniform() < settings.closed_start else 1.0
        loop.world.set_arm(random_start(rng, loop.kinematics, loop.world.joint_state().positions), opening)
    first, second = rng.permutation(list(INSTRUCTIONS))
    spoken = [(0.0, str(first))]
    if rng.uniform() < settings.switch:
        spoken.append((float(rng.uniform(0.2, 2.2)), str(second)))
    if asked is not None:
        spoken = [(0.0, asked)]
    loop.disturb = Disturbance(rng.uniform(0, settings.noise), settings.slip, rng)
    loop.settings = EpisodeSettings(latency=(0.03, 0.15), limit=settings.limit, linger=float(rng.uniform(0.2, 0.8)))
    return loop.run(agent, spoken, rng)


def random_start(rng: np.random.Generator, kinematics: Kinematics, seed: Array, turn: float = 0.12) -> Array:
    """Joint positions (7,) that put the hand somewhere in START_BOX, pointing nearly down, turned by at most `turn`
    rad about the vertical."""
    while True:
        low, high = np.array(START_BOX).T
        pose = np.eye(4)
        pose[:3, 3] = rng.uniform(low, high)
        pose[:3, :3] = matrix_from_vector(rng.uniform(-1.0, 1.0, 3) * (0.12, 0.12, turn)) @ HAND_DOWN
        result = kinematics.inverse(pose[None], seed)
        if result.reached[0]:
            return result.positions[0]


def _row(frame: RolloutFrame, seed: int) -> dict[str, Any]:
    state = frame.observation.state
    assert state is not None and state.eef_pose is not None and state.gripper is not None
    cubes = [frame.truth.cubes[name] for name in CUBES]
    labels = [expert_chunk(state.eef_pose, state.gripper, cube) for cube in cubes]
    return {
        "images": np.stack([frame.observation.images[name] for name in CAMERAS]),
        "poses": state.eef_pose,
        "joints": state.positions,
        "openings": np.float32(state.gripper),
        "cubes": np.stack(cubes).astype(np.float32),
        "labels": np.stack(labels).astype(np.float32),
        "followed": np.int64(CUBES.index(named_cube(frame.observation.instruction))),
        "episodes": np.int64(seed),
    }
