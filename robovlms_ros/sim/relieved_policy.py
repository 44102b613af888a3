"""A policy that a scripted person relieves: an agent for recordings with corrections."""

from collections.abc import Callable

from robovlms_ros.core.types import NANOSECONDS, ActionChunk, Observation
from robovlms_ros.sim.rollout import Agent

PATIENCE = 4.0
"""s of an episode after which the person takes over; a policy that obeys needs 2 to 3."""


class RelievedPolicy:
    """The policy drives until an episode has lasted `patience` (s), then the person to its end.

    on_source: called with True when the person takes over, with False when an episode begins.
    """

    def __init__(self, policy: Agent, person: Agent, patience: float = PATIENCE) -> None:
        self.on_source: Callable[[bool], None] | None = None
        self.person_drives = False
        self._policy = policy
        self._person = person
        self._patience_ns = round(patience * NANOSECONDS)
        self._begin_ns: int | None = None

    def reset(self) -> None:
        """A new episode: the policy drives."""
        self._policy.reset()
        self._person.reset()
        self._begin_ns = None

    def observe(self, observation: Observation) -> None:
        """Pass the observation on; the person takes over where it is time."""
        first = self._begin_ns is None
        if self._begin_ns is None:
            self._begin_ns = observation.stamp_ns
        drives = observation.stamp_ns - self._begin_ns >= self._patience_ns
        if self.on_source is not None and (first or drives != self.person_drives):
            self.on_source(drives)
        self.person_drives = drives
        self._policy.observe(observation)
        self._person.observe(observation)

    def predict_action_chunk(self, observation: Observation) -> ActionChunk:
        """The chunk of the one who drives."""
        driver = self._person if self.person_drives else self._policy
        return driver.predict_action_chunk(observation)
