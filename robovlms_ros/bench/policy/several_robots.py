"""Several robots on one policy: the frames of all of them through the network in one batch.

Each robot keeps its own session, with its history, instruction, head states and gripper rule; only the features of new
frames are computed together, by the first session's path. On the fast path robots of one instruction share a batch of
the language model (its layout is made once per instruction), on the plain path all do. Answers equal those of the
sessions alone, up to rounding in batched products.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robovlms_ros.core.types import ActionChunk, Observation, RoboVLMsError
from robovlms_ros.inference.reference_inference import Encoded
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.backbones.sequence import VisualTokens


def predict_together(sessions: Sequence[PolicySession], observations: Sequence[Observation]) -> list[ActionChunk]:
    """`predict_action_chunk` of every session with its observation.

    Raises RoboVLMsError when the sessions are of different policies or take different paths, or the policy's history is
    not of frames that the VLM sees alone (`post`, `one_step`) or its head generates words; ObservationError as the
    sessions do.
    """
    policy = sessions[0].policy
    config = policy.config
    if any(session.policy is not policy for session in sessions):
        raise RoboVLMsError("predict_together: the sessions must share one policy; there are several.")
    if any(session.fast != sessions[0].fast for session in sessions):
        raise RoboVLMsError("predict_together: the sessions must take one path; their fast path options differ.")
    if config.model.history_type not in ("post", "one_step") or config.action_head.action_space == "discrete":
        raise RoboVLMsError(
            f"predict_together: history_type '{config.model.history_type}', action_space "
            f"'{config.action_head.action_space}': needs 'post' or 'one_step' and a continuous head. Step the sessions "
            "one by one."
        )
    for session, observation in zip(sessions, observations, strict=True):
        session.observe(observation)
    _encode(sessions)
    return [session.predict_action_chunk(o) for session, o in zip(sessions, observations, strict=True)]


Missing = list[tuple[Encoded, PolicySession]]


@torch.inference_mode()
def _encode(sessions: Sequence[PolicySession]) -> None:
    """The features of every frame that a session's window names and that has none yet."""
    missing: Missing = []
    for session in sessions:
        window = {id(frame.content): frame.content for frame in session._frames.sample()[0]}
        missing += [(frame, session) for frame in window.values() if frame.feature is None]
    unseen = [frame for frame, _ in missing if frame.observation is not None]
    sessions[0]._encode_images(unseen, steady=len(unseen) == len(sessions))
    for group, tokens in _batches(sessions, missing):
        frames = [frame for frame, _ in group]
        visual = {
            name: VisualTokens.join([frame.visual[name] for frame in frames])  # type: ignore[index]
            for name in sessions[0].policy.config.cameras
        }
        state = None if frames[0].state is None else torch.cat([frame.state for frame in frames])  # type: ignore[misc]
        features = sessions[0]._path.features(visual, tokens, state, 1)  # (N, 1, tokens, d)
        for i, frame in enumerate(frames):
            frame.feature, frame.visual = features[i:i + 1], None


def _batches(sessions: Sequence[PolicySession], missing: Missing) -> list[tuple[Missing, dict[str, Tensor]]]:
    """What goes through the language model at once, with its tokens (N, L)."""
    if not missing:
        return []
    if sessions[0].path == "fast":
        groups: dict[str | None, Missing] = {}
        for pair in missing:
            groups.setdefault(pair[1]._instruction, []).append(pair)
        # A view of the session's own tokens: by them the path knows the layout that it made for an earlier step.
        return [(group, {name: ids.expand(len(group), -1) for name, ids in group[0][1]._tokens.items()})
                for group in groups.values()]
    policy = sessions[0].policy
    tokens = policy.tokenize([session._instruction or "" for _, session in missing])
    if policy.config.model.padding != "row_end" and not bool(tokens["attention_mask"].all()):
        raise RoboVLMsError(
            "predict_together: instructions of different lengths with model.padding 'last_column': a padded row would "
            "answer differently. Set padding to 'row_end', take the fast path, or step the sessions one by one."
        )
    return [(missing, tokens)]
