"""Kosmos-2: the only family with published RoboVLMs weights."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.models.backbones.base import BaseRoboVLM, part
from robovlms_ros.models.backbones.sequence import TokenSequence
from robovlms_ros.models.backbones.spec import BackboneSpec
from robovlms_ros.models.tokenization import TEMPLATES

TINY = {
    "text_config": {
        "vocab_size": 512,
        "max_position_embeddings": 256,
        "embed_dim": 64,
        "layers": 2,
        "ffn_dim": 128,
        "attention_heads": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "layerdrop": 0.0,
        "scale_embedding": True,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    },
    "latent_query_num": 4,
}


class RoboKosMos(BaseRoboVLM):
    """The text model scales its inputs by sqrt(d) itself; its positions count columns from 2,
    padding included."""

    spec = BackboneSpec(
        name="kosmos",
        model_types=("kosmos-2",),
        prompt=TEMPLATES["kosmos"],
        tiny={"kosmos-2": TINY},
        full={"kosmos-2-patch14-224": "kosmos-2-patch14-224.json"},
    )

    def build_model(self) -> nn.Module:
        model = super().build_model()
        # Up to transformers 5.17 the module is marked causal, and sdpa applies the mark: queries
        # would attend to the first patches only.
        model.image_to_text_projection.x_attn.is_causal = False
        return model

    @property
    def hidden_size(self) -> int:
        return int(self.hf_config.text_config.embed_dim)

    word_embedding = part("text_model.model.embed_tokens")
    text_tower = part("text_model.model")
    vision_tower = part("vision_model")

    def run_text_tower(self, sequence: TokenSequence, tower: nn.Module | None = None, **kwargs: Any) -> Any:
        # The table of sinusoids is no weight and stays float32 at load: it would lift the whole
        # sequence to float32.
        table = self.text_tower.embed_positions
        table.weights = table.weights.to(sequence.embeds.dtype)
        return super().run_text_tower(sequence, tower, **kwargs)

    def model_encode_images(self, images: Tensor) -> Tensor:
        features = self.vision_tower(pixel_values=images).last_hidden_state
        # Kosmos-2 normalises every token, not only the class token, and projects onto the unit
        # sphere first.
        features = functional.normalize(self.vision_tower.model.post_layernorm(features), dim=-1)
        return self.backbone.image_to_text_projection(features)[0]
