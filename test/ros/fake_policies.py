"""Policies for a moment: what the node's session answers, replaced."""

import dataclasses

import numpy as np


class Injected:
    """The node's policy session with `predict_action_chunk` replaced, for the time of a with block.

    function: (the session's own, observation) -> chunk.
    """

    def __init__(self, graph, function):
        self.session, self.function = graph.node._session, function

    def __enter__(self):
        self.original = self.session.predict_action_chunk
        self.session.predict_action_chunk = lambda observation: self.function(self.original, observation)

    def __exit__(self, *_):
        self.session.predict_action_chunk = self.original


def constant(step, horizon=40, opening=1.0):
    """A policy that asks for the same pose delta (6,) per step, chained from the observation."""
    def answer(original, observation):
        chunk = original(observation)
        values = np.outer(np.arange(1, horizon + 1), np.append(step, 0.0))
        values[:, 6] = opening
        return dataclasses.replace(chunk, values=values)
    return answer
