"""One robot's conversation with a policy: history, instruction, and the chunks that come out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    ChunkTiming,
    Observation,
    ObservationError,
)
from robovlms_ros.inference.action_pipeline import ActionPipeline, GripperState
from robovlms_ros.inference.history import FrameHistory, HistoryFrame, HistoryReport
from robovlms_ros.inference.optimized.optimized_inference import path_for
from robovlms_ros.inference.optimized.options import FastPathOptions
from robovlms_ros.inference.proprioception import state_vector
from robovlms_ros.inference.reference_inference import Encoded, Timer, no_timer
from robovlms_ros.models.backbones.sequence import VisualTokens
from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.heads.discrete import DiscreteHead
from robovlms_ros.models.image_processor import check_image
from robovlms_ros.models.vla_policy import VLAPolicy


@dataclass(frozen=True)
class GripperMemory:
    """The gripper rule's states along the last chunk; `before` is the state that the chunk started
    from."""

    stamp_ns: int = 0
    before: GripperState | None = None
    states: tuple[GripperState, ...] = ()

    def at(self, stamp_ns: int, step_duration: float) -> GripperState | None:
        """The state after the steps whose time had come by `stamp_ns`."""
        done = min(round((stamp_ns - self.stamp_ns) / NANOSECONDS / step_duration), len(self.states))
        return self.states[done - 1] if done > 0 else self.before


class PolicySession:
    """History and instruction of one robot; used by one thread at a time. Any number share a
    policy.

    now: a clock in ns, only to time the inference; without one the chunks carry no timing. fast:
        see
    `inference.optimized.options`; None is the plain path.
    """

    def __init__(
        self, policy: VLAPolicy, now: Callable[[], int] | None = None, fast: FastPathOptions | None = None
    ):
        policy.config.require_runnable()
        assert policy.config.action is not None
        self.policy = policy
        self.now = now
        self.fast = fast
        self.path_note = ""
        self._path = path_for(policy, fast)
        self._normalised: NDArray[np.float64] | None = None
        self.pipeline = ActionPipeline(policy.config.action)
        model = policy.config.model
        step_ns = round((model.history_step or 0.0) * NANOSECONDS)
        tolerance_ns = round(model.history_tolerance * NANOSECONDS) if model.history_tolerance else step_ns // 2
        self._frames: FrameHistory[Encoded] = FrameHistory(
            model.history_length, step_ns, tolerance_ns, model.history_gap
        )
        self._instruction: str | None = None
        self._tokens: dict[str, Tensor] = {}
        self._gripper = GripperMemory()
        self._random = torch.Generator(policy.device).manual_seed(policy.config.training.seed)
        self._sequence = 0
        self._report = HistoryReport(0, model.history_length)

    @property
    def history_fill(self) -> tuple[int, int]:
        """(places filled, places) of the last prediction's window."""
        return self._report.have, self._report.want

    @property
    def history_report(self) -> HistoryReport:
        """Fill and gaps of the last prediction's window."""
        return self._report

    @property
    def path(self) -> str:
        """`fast` or `plain`."""
        return self._path.name

    @property
    def path_reason(self) -> str:
        """Parts of the fast path that run and those that do not, with reasons; then `path_note`."""
        return self._path.reason + (f"; {self.path_note}" if self.path_note else "")

    @property
    def normalised(self) -> NDArray[np.float64]:
        """(n, A + 1) of the last chunk before it got units: the arm in -1..1, the gripper's
        probability (the value, for the discrete head). Raises ObservationError before the first."""
        if self._normalised is None:
            raise ObservationError("no chunk yet.")
        return self._normalised

    def release_reference_weights(self) -> None:
        """Free the weights that only the plain path needs (a quantised model's originals), for all
        sessions at once."""
        self._path.release_reference_weights()

    def reset(self) -> None:
        """Forget frames, instruction and the gripper rule's state. The chunk counter goes on."""
        self._frames.clear()
        self._path.reset()
        self._instruction = None
        self._gripper = GripperMemory()
        self._report = HistoryReport(0, self.policy.config.model.history_length)

    def thin_history(self, every: int) -> None:
        """Let one frame in `every` steps of the history be seen (`FrameHistory`); 1 is all. Resets
        the session.

        A policy without a history has nothing to thin out.
        """
        self.reset()
        if self.policy.config.model.history_length > 1:
            self._frames.thin_out(every)

    def observe(self, observation: Observation) -> None:
        """Keep a frame for the history. Cheap: nothing is computed until a prediction's window
        names it.

        A new instruction starts a new history. Raises ObservationError for missing cameras, a bad
        instruction or state, or a stamp that goes back.
        """
        self._keep(observation)

    @torch.inference_mode()
    def predict_action_chunk(self, observation: Observation, timer: Timer | None = None) -> ActionChunk:
        """The chunk for `observation`, the newest frame. Raises ObservationError when it or the
        history is unusable.

        timer: gives a context manager per stage (preprocess, vision, projector, text, head, post),
            entered around it.
        """
        timer = timer or no_timer
        start = self.now() if self.now else 0
        self._keep(observation)
        frames, report = self._frames.sample()
        output = self._infer([frame.content for frame in frames], timer)
        with timer("post"):
            values = self._decode(output, observation.stamp_ns)
        self._report = report
        timing = ChunkTiming(observation.stamp_ns, start, self.now()) if self.now else None
        spec = self.policy.config.action.spec  # type: ignore[union-attr]
        chunk = ActionChunk(
            observation.stamp_ns, values, spec, observation.instruction, self.policy.identity, self._sequence, timing
        )
        self._sequence += 1
        return chunk

    @torch.inference_mode()
    def record_prompts(self, observation: Observation, longest: int) -> list[int]:
        """Run the policy on `observation` with prompts of every length, up to `longest` tokens,
        that needs a recording of its own; from then on nothing is recorded. Resets the session.
        Returns the lengths: none where the fast path records nothing by length."""
        bucket = self._path.bucket
        if bucket == 1:
            return []
        self._keep(observation)
        if self.policy.config.action_head.action_space == "discrete":
            # Tokens are generated right behind the prompt: prompts are not padded, and this length
            # alone is recorded.
            length = self._tokens["input_ids"].shape[1]
            self._infer([self._frames.sample()[0][-1].content])
            self.reset()
            self._path.seal()
            return [length]
        state = self._frames.sample()[0][-1].content.state
        tokens = self._tokens
        word = self.policy.tokenize([observation.instruction.split()[0]])
        shortest = word["input_ids"].shape[1]
        lengths = list(range(shortest + -shortest % bucket, longest + 1, bucket))
        model = self.policy.config.model
        per_frame = model.history_type in ("post", "one_step")
        # A frame alone, and one behind another that was only observed; or whole windows.
        windows = sorted({1, min(2, model.history_length) if per_frame else model.history_length})
        # The longest first: the others fit into its memory.
        for length in reversed(lengths):
            self._tokens = {name: _of_length(x, length) for name, x in tokens.items()}
            for window in windows:
                self._path.reset()
                self._infer([Encoded(observation, state) for _ in range(window)])
        self.reset()
        self._path.seal()
        return lengths

    @torch.inference_mode()
    def finish(self) -> None:
        """Do what the last prediction put off, for instance once its chunk was handed over; the
        next one does it first otherwise, so answers are the same."""
        self._path.finish()

    def _keep(self, observation: Observation) -> HistoryFrame[Encoded]:
        config = self.policy.config
        missing = [name for name in config.cameras if name not in observation.images]
        if missing:
            have = ", ".join(sorted(observation.images)) or "none"
            raise ObservationError(f"no image of camera {', '.join(missing)}; the observation has {have}.")
        for name in config.cameras:
            check_image(observation.images[name], f"camera {name}")
        if observation.instruction != self._instruction:
            tokens = self.policy.tokenize([observation.instruction])
            self.reset()
            self._instruction = observation.instruction
            self._tokens = tokens
        state = None
        if config.proprioception is not None:
            vector = torch.from_numpy(state_vector(config.proprioception, observation.state)).to(self.policy.device)
            state = self.policy.normalise_state(vector[None, None])  # (1, 1, P)
        return self._frames.add(observation.stamp_ns, Encoded(observation, state))

    def _infer(self, window: list[Encoded], timer: Timer = no_timer) -> HeadOutput | NDArray[np.int64]:
        """The head's answer for a window: continuous, or the ids of the discrete head."""
        config = self.policy.config
        if config.action_head.action_space == "discrete":
            window = window[-1:]  # RoboVLMs generates from the newest frame alone
        elif config.model.history_type in ("post", "one_step"):
            output = self._path.step(window, self._tokens, timer)
            if output is not None:
                return output
        self._encode_images([frame for frame in window if frame.observation is not None], timer)
        if config.action_head.action_space == "discrete":
            with timer("text"):
                return self._generate(window[0])
        if config.model.history_type in ("post", "one_step"):
            for frame in window:
                if frame.feature is None:
                    frame.feature = self._features([(frame,)], timer)
                    frame.visual = None
            return self._path.answer(window, timer)
        return self._path.head(self._features([window], timer), timer)

    def _generate(self, frame: Encoded) -> NDArray[np.int64]:
        """(n * dims,) ids of the action tokens that follow the frame's prompt."""
        policy = self.policy
        tokens = self._tokens
        assert frame.visual is not None and isinstance(policy.head, DiscreteHead)
        sequence = policy.vlm.build_sequence(frame.visual, tokens["input_ids"], tokens["attention_mask"], frame.state)
        count = policy.head.horizon * policy.head.dims
        ids = self._path.generate(sequence, count, self._random)
        return ids[0].cpu().numpy()

    def _features(
        self, windows: Sequence[Sequence[Encoded]], timer: Timer = no_timer
    ) -> Tensor:
        """(B, T, tokens, d) of B windows of equal length."""
        frames = [frame for window in windows for frame in window]
        visual = {
            name: VisualTokens.join([f.visual[name] for f in frames])  # type: ignore[index]
            for name in self.policy.config.cameras
        }
        state = None
        if self.policy.config.proprioception is not None:
            rows = [torch.cat([f.state for f in window], dim=1) for window in windows]  # type: ignore[misc]
            state = torch.cat(rows)  # (B, window, P)
        # A view of one row is the very tokens: by them the fast path knows its layouts.
        tokens = {name: row.expand(len(windows), -1) for name, row in self._tokens.items()}
        return self._path.features(visual, tokens, state, len(windows[0]), timer)

    def _encode_images(self, frames: list[Encoded], timer: Timer = no_timer, steady: bool = False) -> None:
        """Vision tower over the frames that it has not seen, all in one batch; their pixels are
        freed. steady: as many will come again."""
        frames = list({id(frame): frame for frame in frames}.values())
        if not frames:
            return
        with timer("preprocess"):
            images = self._path.preprocess([frame.observation.images for frame in frames])  # type: ignore[union-attr]
        visual = self._path.encode(images, timer, steady)
        for i, frame in enumerate(frames):
            frame.visual = {name: tokens.frames(i, i + 1) for name, tokens in visual.items()}
            frame.observation = None

    def _decode(self, output: HeadOutput | NDArray[np.int64], stamp_ns: int) -> NDArray[np.float64]:
        """SI values (n, dims) of the newest frame's chunk (or the oldest's, if `pre_executes` is
        `oldest`)."""
        if isinstance(output, HeadOutput):
            index = 0 if self.policy.config.model.pre_executes == "oldest" else -1
            # One copy from the device, of these numbers alone.
            both = torch.cat((output.arm[0, index], output.gripper_logits[0, index]), dim=-1).double().cpu().numpy()
            # (n, A), (n, 1)
            arm = both[:, :-1]
            logits = both[:, -1:]
        else:
            values = self.policy.head.decode(output)  # type: ignore[operator]
            arm = values[:, :-1]
            logits = values[:, -1:]
        self._normalised = normalised_answer(arm, logits, isinstance(output, HeadOutput))
        before = self._gripper.at(stamp_ns, self.pipeline.config.step_duration)
        decoded = self.pipeline.decode(arm, logits, before)
        self._gripper = GripperMemory(stamp_ns, before, decoded.gripper_states)
        return decoded.values


def _of_length(row: Tensor, length: int) -> Tensor:
    """(1, L) as (1, length): columns in the middle are repeated or left out."""
    count = row.shape[1]
    tail = min(count, length) // 2
    head = min(count, length) - tail
    middle = row[:, head - 1 : head].expand(-1, max(length - count, 0))
    return torch.cat((row[:, :head], middle, row[:, count - tail :]), dim=1)


def normalised_answer(arm: NDArray[np.float64], gripper: NDArray[np.float64], logits: bool) -> NDArray[np.float64]:
    """(n, A + 1) from arm (n, A) and gripper (n, 1), which becomes a probability where it holds
    logits."""
    column = 1.0 / (1.0 + np.exp(-np.clip(gripper, -60.0, 60.0))) if logits else gripper
    return np.column_stack([arm, column])
