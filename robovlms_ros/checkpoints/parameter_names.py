"""Names of parameters: RoboVLMs' published layout, transformers' generations, and ours, brought
together."""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from robovlms_ros.checkpoints.weights import apply_rules
from robovlms_ros.models.vla_policy import VLAPolicy

VLM = "vlm.backbone."
# RoboVLMs' module names as ours; applied once `module.` and Lightning's `model.` are gone.
PUBLISHED = (
    (r"^backbone\.", VLM),
    (r"^action_token$", "vlm.action_token"),
    (r"^vision_resampler\.", "vlm.vision_resampler."),
    (r"^act_head\.", "head."),
)
ROOTS = ("backbone.", "act_head.", "action_token", "vision_resampler.", "perceiver.")
# Tables that older transformers stored and newer ones compute.
TABLES = re.compile(r"(position_ids|embed_positions\.weights|rotary_emb\.inv_freq)$")


HEAD = re.compile(r"(^|\.)lm_head\.weight$")


def with_tied_embedding(
    policy: VLAPolicy, tensors: Mapping[str, Tensor], canonical: Callable[[str], str]
) -> dict[str, Tensor]:
    """The tensors, with the word embedding under its own name where a file holds the output matrix
    alone.

    A model with `tie_word_embeddings` has one matrix for both, and a file may name either.
    canonical: as in `assign`.
    """
    given = dict(tensors)
    config = policy.vlm.hf_config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    tied = any(getattr(part, "tie_word_embeddings", False) for part in (text, config))
    embedding = policy.vlm.word_embedding.weight
    name = next(key for key, parameter in policy.named_parameters() if parameter is embedding)
    heads = [key for key in given if HEAD.search(key)]
    absent = canonical(name) not in {canonical(key) for key in given}
    if tied and absent and len(heads) == 1 and given[heads[0]].shape == embedding.shape:
        given[name] = given.pop(heads[0])
    return given


class KeyLayout:
    """Common names for one policy and one file's keys."""

    def __init__(self, policy: VLAPolicy, keys: Iterable[str]):
        self.rules = policy.vlm.spec.key_rules
        self.published = (*policy.vlm.spec.published_rules, *PUBLISHED)
        self.discrete = policy.config.action_head.action_space == "discrete"
        self.head_ignored = [re.compile(p) for p in getattr(policy.head, "ignored_keys", ())]
        keys = [key.removeprefix("module.") for key in keys]
        self.strip_model = any(key.startswith(tuple(f"model.{root}" for root in ROOTS)) for key in keys)

    def canonical(self, key: str) -> str:
        """The common name of a file's or the policy's key."""
        key = key.removeprefix("module.")
        if self.strip_model:
            key = key.removeprefix("model.")
        key = apply_rules(key, self.published)
        return VLM + apply_rules(key[len(VLM) :], self.rules) if key.startswith(VLM) else key

    def ignored(self, key: str) -> bool:
        """True for a canonical key that a file may hold and the policy does not need."""
        if TABLES.search(key):
            return True
        if key.startswith("head."):
            return any(pattern.fullmatch(key[len("head.") :]) for pattern in self.head_ignored)
        return not self.discrete and re.search(r"(^|\.)lm_head\.", key) is not None
