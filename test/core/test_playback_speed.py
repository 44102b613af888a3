"""The same frames at 1x, 0.5x and 3x through the inference worker and the session, as the node runs them.

- how many frames come while one inference runs decides which frames are inferred, and nothing else: at equal stamps the
  actions are equal within 1e-5, with the history whole, thinned out, and with frames dropped;
- what of a chunk is executed (strategy, number of steps) does not reach the policy.
"""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.schedule import ScheduleConfig
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, Observation, RobotState
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.inference.worker import InferenceWorker

MS = 1_000_000
SOON = 60.0  # s, only reached when something is broken
INFERENCE = 120  # ms of wall time that one inference takes
FRAMES = range(0, 2000, 50)


def observation(stamp: int) -> Observation:
    image = np.random.default_rng(stamp).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Observation(stamp * MS, {"static": image}, "lift the red cube")


class Paced:
    """A session whose inference ends when the player says that its time is over."""

    def __init__(self, session: PolicySession):
        self.session, self.begun, self.over = session, threading.Semaphore(0), threading.Semaphore(0)
        self.reset, self.observe, self.finish = session.reset, session.observe, session.finish

    def predict_action_chunk(self, frame: Observation) -> ActionChunk:
        self.begun.release()
        assert self.over.acquire(timeout=SOON)
        return self.session.predict_action_chunk(frame)


def play(session: PolicySession, stamps: Sequence[int], speed: float) -> dict[int, np.ndarray]:
    """Chunks by stamp, played at `speed`: an inference lasts INFERENCE * speed of the recording's time."""
    paced, chunks, errors, done = Paced(session), {}, [], threading.Semaphore(0)

    def take(chunk: ActionChunk) -> None:
        chunks[chunk.stamp_ns // MS] = chunk.values
        done.release()

    worker = InferenceWorker(paced, lambda: 0, take, lambda error: (errors.append(error), done.release()))
    ends: float | None = None
    for stamp in stamps:
        if ends is not None and stamp >= ends:  # what came meanwhile waits for the next inference
            paced.over.release()
            assert done.acquire(timeout=SOON)
            assert paced.begun.acquire(timeout=SOON)
            ends += INFERENCE * speed
        worker.submit(observation(stamp))
        if ends is None:
            assert paced.begun.acquire(timeout=SOON)
            ends = stamp + INFERENCE * speed
    paced.over.release(len(stamps))
    while max(chunks, default=0) < stamps[-1] and not errors:
        assert done.acquire(timeout=SOON)
    assert worker.stop(SOON) and not errors
    return chunks


@pytest.mark.parametrize(("every", "drop"), [(1, 0.0), (3, 0.0), (1, 0.2)], ids=["whole", "thinned", "dropped"])
def test_equal_actions_at_equal_stamps(make_config: Callable[..., PolicyConfig], every: int, drop: float) -> None:
    policy = build_policy(make_config(model={"history_length": 4, "history_tolerance": 0.03}), seed=2)
    for parameter in policy.parameters():
        parameter.data.mul_(3.0)
    kept = np.random.default_rng(7).random(len(FRAMES)) >= drop
    stamps = [stamp for stamp, keep in zip(FRAMES, kept, strict=True) if keep]
    played = {}
    for speed in (1.0, 0.5, 3.0):
        session = PolicySession(policy)
        session.thin_history(every)
        played[speed] = play(session, stamps, speed)
    assert len(played[0.5]) > len(played[1.0]) > len(played[3.0]) >= 5
    for speed in (0.5, 3.0):
        common = set(played[1.0]) & set(played[speed])
        assert len(common) >= 2
        for stamp in common:
            np.testing.assert_allclose(played[speed][stamp], played[1.0][stamp], rtol=0, atol=1e-5)


def test_what_is_executed_does_not_reach_the_policy(make_config: Callable[..., PolicyConfig]) -> None:
    policy = build_policy(make_config(model={"history_length": 4}), seed=2)
    robot = load_robot("panda")
    kinematics = Kinematics.for_robot(robot)
    home = RobotState(0, np.array(robot.home))
    answers = []
    for schedule in (ScheduleConfig("first"), ScheduleConfig("receding", execute_steps=2), ScheduleConfig("blend")):
        session, executor, values = PolicySession(policy), build_executor(robot, kinematics, schedule), []
        for stamp in range(0, 1000, 100):
            chunk = session.predict_action_chunk(observation(stamp))
            now = (stamp + 50) * MS
            executor.on_chunk(chunk, home, RobotState(now, home.positions), now)
            values.append(chunk.values)
        answers.append(values)
        assert executor.commanded(NANOSECONDS) is not None
    np.testing.assert_array_equal(answers[1:], [answers[0]] * 2)
