"""The live node's session, many frames at a time: offline the future is known, so the network runs
once for a block."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from robovlms_ros.core.types import ActionChunk, ChunkTiming, Observation
from robovlms_ros.inference.history import HistoryReport
from robovlms_ros.inference.optimized.options import FastPathOptions
from robovlms_ros.inference.session import Encoded, PolicySession
from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.vla_policy import VLAPolicy


@dataclass(frozen=True)
class _Window:
    """The frames that one prediction sees."""

    observation: Observation
    frames: tuple[Encoded, ...]
    report: HistoryReport


class BlockSession(PolicySession):
    """A PolicySession with one more method. Histories, windows, decoding and gripper rule are the
    session's own.

    batch: frames that go through the network at once. now: a clock in ns that only times the
        inference. fast: see
    PolicySession; the head runs over the windows of a block at once either way.
    """

    def __init__(self, policy: VLAPolicy, now: Callable[[], int] | None = None, batch: int = 32,
                 fast: FastPathOptions | None = None) -> None:
        super().__init__(policy, now, fast)
        self._batch = batch

    @torch.inference_mode()
    def predict_block(self, observations: Sequence[Observation], wanted: Sequence[bool]) -> list[ActionChunk | None]:
        """As `observe` for every observation in turn and `predict_action_chunk` where `wanted`, in
        one go.

        Equal to stepping up to rounding in batched matrix products. A chunk's timing is its share
        of the block's. Raises ObservationError as they do.
        """
        if self.policy.config.action_head.action_space == "discrete":
            return [self.predict_action_chunk(o) if want else self.observe(o)  # type: ignore[func-returns-value]
                    for o, want in zip(observations, wanted, strict=True)]
        chunks: list[ActionChunk | None] = []
        pairs = list(zip(observations, wanted, strict=True))
        for _, group in groupby(pairs, key=lambda pair: pair[0].instruction):
            chunks += self._predict_group(list(group))
        return chunks

    def _predict_group(self, pairs: list[tuple[Observation, bool]]) -> list[ActionChunk | None]:
        """One instruction's worth: the tokens are the same for all."""
        start = self.now() if self.now else 0
        windows: list[_Window | None] = []
        for observation, want in pairs:
            self._keep(observation)
            if not want:
                windows.append(None)
                continue
            frames, report = self._frames.sample()
            windows.append(_Window(observation, tuple(frame.content for frame in frames), report))
        asked = [window for window in windows if window is not None]
        outputs = self._outputs(asked)
        share = (self.now() - start) // max(len(asked), 1) if self.now else 0
        answered = iter([self._chunk(w, output, share) for w, output in zip(asked, outputs, strict=True)])
        return [None if window is None else next(answered) for window in windows]

    def _chunk(self, window: _Window, output: HeadOutput, spent: int) -> ActionChunk:
        stamp = window.observation.stamp_ns
        values = self._decode(output, stamp)
        self._report = window.report
        action = self.policy.config.action
        assert action is not None
        timing = ChunkTiming(stamp, stamp, stamp + spent) if self.now else None
        chunk = ActionChunk(stamp, values, action.spec, window.observation.instruction, self.policy.identity,
                            self._sequence, timing)
        self._sequence += 1
        return chunk

    def _outputs(self, windows: list[_Window]) -> list[HeadOutput]:
        """The head's answer for each window, (1, T, n, A) and (1, T, n, 1)."""
        frames = list({id(frame): frame for window in windows for frame in window.frames}.values())
        fresh = [frame for frame in frames if frame.observation is not None]
        for begin in range(0, len(fresh), self._batch):
            self._encode_images(fresh[begin:begin + self._batch])
        per_frame = self.policy.config.model.history_type in ("post", "one_step")
        if per_frame:
            new = [frame for frame in frames if frame.feature is None]
            for begin in range(0, len(new), self._batch):
                some = new[begin:begin + self._batch]
                for frame, feature in zip(some, self._features([(f,) for f in some]), strict=True):
                    frame.feature = feature[None]
                    frame.visual = None
        outputs: dict[int, HeadOutput] = {}
        # Windows of one length go through the head together; only an episode's first ones are
        # shorter.
        for length in {len(window.frames) for window in windows}:
            places = [i for i, window in enumerate(windows) if len(window.frames) == length]
            for begin in range(0, len(places), self._batch):
                some_places = places[begin:begin + self._batch]
                chosen = [windows[i].frames for i in some_places]
                if per_frame:
                    features = torch.cat([torch.cat([f.feature for f in w], dim=1) for w in chosen])  # type: ignore[misc]
                else:
                    features = self._features(chosen)
                output = self.policy.head(features)  # (B, T, n, A)
                for row, place in enumerate(some_places):
                    outputs[place] = HeadOutput(output.arm[row:row + 1], output.gripper_logits[row:row + 1])
        return [outputs[i] for i in range(len(windows))]
