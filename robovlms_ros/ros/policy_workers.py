"""The inference workers of one arm: of the policy that commands it, and of a shadow that does not.

A shadow's chunks are compared with the commanded motion.
"""

from typing import Protocol

from robovlms_ros.control.executor import ChunkExecutor
from robovlms_ros.control.interfaces import ObservationSource
from robovlms_ros.control.shadow import ShadowComparison
from robovlms_ros.core.types import ActionChunk, JointPlan, Observation, RoboVLMsError
from robovlms_ros.ros.command_sender import DecisionObserver


class Worker(Protocol):
    """Inference worker of one policy."""

    @property
    def inferring_since_ns(self) -> int | None:
        """Start time of the inference in progress."""

    def submit(self, observation: Observation) -> None:
        """Take a frame; never blocks."""

    def reset(self) -> None:
        """Forget the history and drop the inference in flight."""


class PolicyWorkers:
    """Not thread-safe, but for `submit`: the policy runner's lock orders all other calls.

    commanding, shadow: None before `start`; shadow also where there is one policy.
    """

    def __init__(
        self,
        executor: ChunkExecutor | None,
        observations: ObservationSource,
        observer: DecisionObserver,
    ) -> None:
        self.commanding: Worker | None = None
        self.shadow: Worker | None = None
        self._executor = executor
        self._observations = observations
        self._observer = observer
        self._comparison = ShadowComparison()

    @property
    def inferring_since_ns(self) -> int | None:
        """Start time of the commanding policy's inference in progress."""
        return None if self.commanding is None else self.commanding.inferring_since_ns

    def switch(self) -> None:
        """Let the shadow command the arm, and the other be the shadow."""
        former = self.commanding
        self.commanding = self.shadow
        self.shadow = former

    def submit(self, observation: Observation) -> None:
        """Hand a frame to both."""
        for worker in (self.commanding, self.shadow):
            if worker is not None:
                worker.submit(observation)

    def reset(self) -> None:
        """Forget histories, inferences in flight and what waits to be compared."""
        for worker in (self.commanding, self.shadow):
            if worker is not None:
                worker.reset()
        self._comparison.clear()

    def take_shadow_chunk(self, chunk: ActionChunk) -> None:
        """Publish a chunk that is not executed; `compare` compares it with what is commanded."""
        self._observer.on_shadow_chunk(chunk)
        if self._executor is None:
            return
        try:
            plan = self._executor.plan(chunk, self._observations.state_at(chunk.stamp_ns))
        except RoboVLMsError:
            return
        if isinstance(plan, JointPlan):
            self._comparison.add(plan)

    def compare(self, now_ns: int) -> None:
        """Report the disagreements whose instant is past."""
        if self._executor is None:
            return
        executor = self._executor
        for found in self._comparison.due(now_ns, executor.commanded, executor.kinematics):
            self._observer.on_disagreement(found)
