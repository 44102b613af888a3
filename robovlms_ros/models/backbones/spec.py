"""Differences between VLM families, as data: the base class branches on none of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.models.tokenization import PromptTemplate, discrete_template

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# (pattern, replacement) applied in order to both a file's keys and the module's: equal results name
# the same tensor.
KeyRules = tuple[tuple[str, str], ...]


class BackboneError(RoboVLMsError):
    """A backbone cannot be built, is incomplete, or is given inputs that do not fit."""


@dataclass(frozen=True)
class BackboneSpec:
    """The data of a family.

    name: of the registry. model_types: transformers' `config.model_type` values that the adapter
        runs; `tiny` holds configurations by model type, the first type is the default.
    prompt: template and special tokens. bos_offset: where images are spliced in, counted from the
        front of the text.
    eos_offset: how many text tokens follow the action token.
    image_prefix, image_suffix: names of configuration entries (token ids) whose word embeddings
        wrap each image.
    fusion: `splice`, images are tokens of the sequence; `cross_attention`, the language model
        attends to them.
    image_mean, image_std: of the pixel normalisation after division by 255.
    vocab_path: path of the vocabulary size in the configuration.
    key_rules: see KeyRules; bring every generation of transformers' parameter names together.
    published_rules: RoboVLMs' own names of this family's modules, where they are not `backbone.`.
    full: name of a pretrained model to the file of its configuration in `configs/`.
    """

    name: str
    model_types: tuple[str, ...]
    prompt: PromptTemplate
    tiny: Mapping[str, Mapping[str, Any]]
    bos_offset: int = 1
    eos_offset: int = 1
    image_prefix: tuple[str, ...] = ()
    image_suffix: tuple[str, ...] = ()
    fusion: Literal["splice", "cross_attention"] = "splice"
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    vocab_path: tuple[str, ...] = ("text_config", "vocab_size")
    key_rules: KeyRules = ()
    published_rules: KeyRules = ()
    full: Mapping[str, str] = field(default_factory=dict)


def template_of(config: PolicyConfig, spec: BackboneSpec) -> PromptTemplate:
    """The family's template, the question of the discrete action space, or `vlm.prompt` where it is
    given.

    The prompt names one step more than the chunk has, as RoboVLMs' CALVIN code does in training and
    evaluation.
    """
    if config.vlm.prompt is not None:
        return replace(spec.prompt, text=config.vlm.prompt)
    if config.action_head.action_space == "discrete":
        closing = " \n" if spec.eos_offset else ""
        question = discrete_template(config.model.action_chunk_size + 1, closing)
        return replace(spec.prompt, text=question.text)
    return spec.prompt
