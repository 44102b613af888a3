"""Support of a policy for the parts of the fast path."""

import torch

from robovlms_ros.inference.optimized.options import FastPathError
from robovlms_ros.inference.optimized.text_towers import prune_last_layer
from robovlms_ros.models.image_processor import ImageProcessor
from robovlms_ros.models.vla_policy import VLAPolicy

OF_CONTINUOUS = ("prompt_cache", "last_layer_action_only", "staggered_lstm", "quantize")


def check_supported(name: str, policy: VLAPolicy) -> None:
    """Raise FastPathError where the part `name` cannot run with `policy`; the error holds the
    reason."""
    config = policy.config
    vlm = policy.vlm
    if name in OF_CONTINUOUS and config.action_head.action_space == "discrete":
        raise FastPathError("the discrete head generates words")
    if name == "last_layer_action_only":
        prune_last_layer(vlm.text_tower, torch.zeros(1, dtype=torch.int64))
        levels = getattr(vlm.hf_config.vision_config, "deepstack_visual_indexes", None) or ()
        layers = getattr(vlm.hf_config.get_text_config(), "num_hidden_layers", len(levels) + 1)
        if len(levels) >= layers:
            raise FastPathError("image features are added behind the last layer")
    if name == "staggered_lstm":
        if config.model.history_type not in ("post", "one_step"):
            raise FastPathError(f"history_type '{config.model.history_type}': every window has other features")
        if config.model.pre_executes == "oldest":
            raise FastPathError("pre_executes 'oldest': the answer is not the newest frame's")
    if name == "device_preprocess" and not isinstance(vlm.image_processor, ImageProcessor):
        raise FastPathError(f"image processor {type(vlm.image_processor).__name__} is not Pillow's bicubic squash")
    if name == "cuda_graphs" and policy.device.type != "cuda":
        raise FastPathError(f"the policy runs on {policy.device.type}")
