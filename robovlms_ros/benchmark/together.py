"""Several robots on one policy: the frames of all of them through the network in one batch.

Each robot keeps its own session, with its history, instruction, head states and gripper rule; only the features of new
frames are computed together. Answers equal those of the sessions alone, up to rounding in batched products.
"""

from collections.abc import Sequence

import torch

from robovlms_ros.backbones.sequence import VisualTokens
from robovlms_ros.policy.paths import Encoded, PlainPath
from robovlms_ros.policy.session import PolicySession
from robovlms_ros.types import ActionChunk, Observation, RoboVLMsError


def predict_together(sessions: Sequence[PolicySession], observations: Sequence[Observation]) -> list[ActionChunk]:
    """`predict_action_chunk` of every session with its observation.

    Raises RoboVLMsError when the sessions are of different policies, or the policy's history is not of frames that the
    VLM sees alone (`post`, `one_step`) or its head generates words; ObservationError as the sessions do.
    """
    policy = sessions[0].policy
    config = policy.config
    if any(session.policy is not policy for session in sessions):
        raise RoboVLMsError("predict_together: the sessions must share one policy; there are several.")
    if config.model.history_type not in ("post", "one_step") or config.action_head.action_space == "discrete":
        raise RoboVLMsError(
            f"predict_together: history_type '{config.model.history_type}', action_space "
            f"'{config.action_head.action_space}': needs 'post' or 'one_step' and a continuous head. Step the sessions "
            "one by one."
        )
    for session, observation in zip(sessions, observations, strict=True):
        session.observe(observation)
    _encode(sessions, observations)
    return [session.predict_action_chunk(o) for session, o in zip(sessions, observations, strict=True)]


@torch.inference_mode()
def _encode(sessions: Sequence[PolicySession], observations: Sequence[Observation]) -> None:
    """The features of every frame that a session's window names and that has none yet."""
    missing: list[tuple[Encoded, str]] = []
    for session, observation in zip(sessions, observations, strict=True):
        window = {id(frame.content): frame.content for frame in session._frames.sample()[0]}
        missing += [(frame, observation.instruction) for frame in window.values() if frame.feature is None]
    if not missing:
        return
    policy = sessions[0].policy
    frames = [frame for frame, _ in missing]
    sessions[0]._encode_images([frame for frame in frames if frame.observation is not None])
    tokens = policy.tokenize([instruction for _, instruction in missing])
    if policy.config.model.padding != "row_end" and not bool(tokens["attention_mask"].all()):
        raise RoboVLMsError(
            "predict_together: instructions of different lengths with model.padding 'last_column': a padded row would "
            "answer differently. Set padding to 'row_end', or step the sessions one by one."
        )
    visual = {
        name: VisualTokens.join([frame.visual[name] for frame in frames])  # type: ignore[index]
        for name in policy.config.cameras
    }
    state = None if frames[0].state is None else torch.cat([frame.state for frame in frames])  # type: ignore[misc]
    features = PlainPath(policy).features(visual, tokens, state, 1)  # (N, 1, tokens, d)
    for i, frame in enumerate(frames):
        frame.feature, frame.visual = features[i:i + 1], None
