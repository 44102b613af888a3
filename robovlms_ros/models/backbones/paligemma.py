"""PaliGemma 1 and 2, causal as RoboVLMs trains it."""

from typing import Any

from torch import Tensor

from robovlms_ros.models.backbones.base import BaseRoboVLM, part
from robovlms_ros.models.backbones.spec import HALF, BackboneSpec
from robovlms_ros.models.tokenization import TEMPLATES

TINY_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "vocab_size": 512,
}
TINY_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "vision_use_head": False,
}
TINY = {
    "text_config": {"model_type": "gemma", **TINY_TEXT},
    "vision_config": TINY_VISION,
    "projection_dim": 64,
    "hidden_size": 64,
}


class RoboPaligemma(BaseRoboVLM):
    """transformers' PaliGemma forwards image features unscaled and Gemma scales words by sqrt(d).
    Here everything is spliced in the unscaled domain, so image features are divided by sqrt(d) and
    the whole sequence is multiplied."""

    spec = BackboneSpec(
        name="paligemma",
        model_types=("paligemma",),
        prompt=TEMPLATES["paligemma"],
        tiny={"paligemma": TINY},
        full={"paligemma-3b-pt-224": "paligemma-3b-pt-224.json", "paligemma2-3b-pt-224": "paligemma2-3b-pt-224.json"},
        image_mean=HALF,
        image_std=HALF,
        key_rules=(
            (r"^model\.", ""),
            (r"^language_model\.lm_head\.", "lm_head."),
            (r"^language_model\.model\.", "language_model."),
            (r"^vision_tower\.vision_model\.", "vision_tower."),
        ),
    )

    @staticmethod
    def complete_config(data: dict[str, Any]) -> None:
        # transformers' PaliGemma makes its Gemma bidirectional: sdpa would drop causality for
        # batches without padding.
        data["text_config"]["use_bidirectional_attention"] = False
        width = data["text_config"].get("hidden_size")
        if width is not None:
            data["hidden_size"] = data["projection_dim"] = width
            data["vision_config"]["projection_dim"] = width

    word_embedding = part("model.language_model.embed_tokens")
    text_tower = part("model.language_model")
    vision_tower = part("model.vision_tower")

    @property
    def attention(self) -> Any:
        if self.hf_config.text_config.model_type != "gemma2":
            return self.config.vlm.attention
        # Gemma 2 caps attention logits, which only the eager implementation does.
        return {"": "eager", "text_config": "eager", "vision_config": self.config.vlm.attention}

    @property
    def input_scale(self) -> float:
        # Gemma scales in the embedding layer where that layer has a scale, else in the model's
        # forward.
        return self.hidden_size**0.5 if hasattr(self.word_embedding, "embed_scale") else 1.0

    def model_encode_images(self, images: Tensor) -> Tensor:
        features = self.vision_tower(images).last_hidden_state
        return self.backbone.model.multi_modal_projector(features) / self.hidden_size**0.5
