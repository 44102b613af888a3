"""Prompt template of a policy's training."""

import dataclasses

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.models.backbones.spec import BackboneSpec
from robovlms_ros.models.tokenization import PromptTemplate, discrete_template


def template_of(config: PolicyConfig, spec: BackboneSpec) -> PromptTemplate:
    """The family's template, the question of the discrete action space, or `vlm.prompt` where it is
    given.

    The prompt names one step more than the chunk has, as RoboVLMs' CALVIN code does in training and
    evaluation.
    """
    if config.vlm.prompt is not None:
        return dataclasses.replace(spec.prompt, text=config.vlm.prompt)
    if config.action_head.action_space == "discrete":
        closing = " \n" if spec.eos_offset else ""
        question = discrete_template(config.model.action_chunk_size + 1, closing)
        return dataclasses.replace(spec.prompt, text=question.text)
    return spec.prompt
