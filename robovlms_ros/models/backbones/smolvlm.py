"""SmolVLM2: what fits a small computer on the robot."""

from typing import Any

import torch
from torch import Tensor

from robovlms_ros.models.backbones.base import BaseRoboVLM, part
from robovlms_ros.models.backbones.spec import HALF, BackboneSpec
from robovlms_ros.models.tokenization import PromptTemplate

TINY = {
    "text_config": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "pad_token_id": 0,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    },
    "scale_factor": 2,
    "image_token_id": 500,
    "fake_image_token_id": 498,
    "global_image_token_id": 499,
}
# Of SmolVLM2's own tokenizer; its config.json omits them.
SMOLVLM2_IDS = {"fake_image_token_id": 49189, "global_image_token_id": 49152}
SMOLVLM2_VOCABULARY = 49280


class RoboSmolVLM(BaseRoboVLM):
    """One global view per camera, wrapped as SmolVLM's processor does; no tiles."""

    spec = BackboneSpec(
        name="smolvlm",
        model_types=("smolvlm",),
        prompt=PromptTemplate("{instruction}", add_special_tokens=False),
        tiny={"smolvlm": TINY},
        full={
            "SmolVLM2-500M-Video-Instruct": "smolvlm2-500m.json",
            "SmolVLM2-256M-Video-Instruct": "smolvlm2-256m.json",
        },
        bos_offset=0,
        eos_offset=0,
        image_prefix=("fake_image_token_id", "global_image_token_id"),
        image_suffix=("fake_image_token_id",),
        image_mean=HALF,
        image_std=HALF,
        key_rules=((r"^model\.", ""),),
    )

    @staticmethod
    def complete_config(data: dict[str, Any]) -> None:
        if data.get("text_config", {}).get("vocab_size") == SMOLVLM2_VOCABULARY:
            for name, number in SMOLVLM2_IDS.items():
                data.setdefault(name, number)

    word_embedding = part("model.text_model.embed_tokens")
    text_tower = part("model.text_model")
    vision_tower = part("model.vision_model")

    def model_encode_images(self, images: Tensor) -> Tensor:
        # transformers' get_image_features drops an image whose pixels are all 0, and a grey frame
        # is one.
        side = images.shape[-1] // self.hf_config.vision_config.patch_size
        mask = torch.ones(len(images), side, side, dtype=torch.bool, device=images.device)
        features = self.vision_tower(pixel_values=images, patch_attention_mask=mask).last_hidden_state
        return self.backbone.model.connector(features)
