"""Records episodes of the shipped policies in the simulator, for the faults of
`test_faults_in_episodes.py`.

Run `./scripts/run python test/ros/record_episodes.py` to write `recorded_episodes.npz` anew (half a
minute).
"""

import numpy as np
from recorded_episodes import RECORDED, RecordedEpisode, spec

from robovlms_ros.sim.rollout import EpisodeSettings, build_loop
from robovlms_ros.sim.scenes import load_agent
from robovlms_ros.sim.tasks.language import INSTRUCTIONS
from robovlms_ros.sim.world import START_NS, SimWorld

RED, GREEN = INSTRUCTIONS
EPISODES = (
    ("demo", "cubes", 0, RED),
    ("demo", "cubes", 1, GREEN),
    ("demo", "cubes", 2, RED),
    ("demo", "cubes", 3, GREEN),
    ("tasks", "stack", 0, ""),
    ("tasks", "put", 0, ""),
)
"""Checkpoint, task, seed and instruction (empty: the scene's own sentence)."""
SETTINGS = EpisodeSettings(limit=12.0, linger=1.0)


class DeliveryRecorder:
    """A ChunkExecutor that keeps every chunk with its time of arrival."""

    def __init__(self, executor):
        self._executor = executor
        self.deliveries = []

    def __getattr__(self, name):
        return getattr(self._executor, name)

    def on_chunk(self, chunk, state_at_stamp, measured, now_ns):
        self.deliveries.append((chunk, now_ns))
        return self._executor.on_chunk(chunk, state_at_stamp, measured, now_ns)


def record(checkpoint, task, seed, instruction):
    """Run one episode. Raises AssertionError unless the policy succeeds and no chunk is refused."""
    world = SimWorld(seed, task=task)
    loop = build_loop(world, settings=SETTINGS)
    frames = []
    loop.on_frame = frames.append
    loop.executor = DeliveryRecorder(loop.executor)
    world.reset(seed)
    sentence = instruction or world.sentence
    outcome = loop.run(load_agent(checkpoint), [(0.0, sentence)], np.random.default_rng(seed))
    world.close()
    assert outcome.success and not outcome.refusals, outcome
    chunks = [chunk for chunk, _ in loop.executor.deliveries]
    assert all(chunk.spec == spec() for chunk in chunks)
    states = [frame.observation.state for frame in frames]
    return RecordedEpisode(
        sentence,
        np.array([chunk.stamp_ns for chunk in chunks]) - START_NS,
        np.array([now_ns for _, now_ns in loop.executor.deliveries]) - START_NS,
        np.array([chunk.values for chunk in chunks], np.float32),
        np.array([state.stamp_ns for state in states]) - START_NS,
        np.array([state.positions for state in states], np.float32),
        np.array([state.gripper for state in states], np.float32),
    )


def main():
    """Write every episode."""
    arrays = {}
    for k, arguments in enumerate(EPISODES):
        episode = record(*arguments)
        arrays |= {f"{k}.{name}": value for name, value in vars(episode).items()}
        seconds = episode.frames_ns[-1] / 1e9
        print(f"{episode.instruction}: {len(episode.values)} chunks, {seconds:.1f} s")
    np.savez_compressed(RECORDED, **arrays)
    print(f"{RECORDED.name}: {RECORDED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
