"""LLaVA 1.5 (one tile) and 1.6 (any-resolution tiles), on LLaMA, Vicuna or Mistral."""

import torch
from torch import Tensor
from torch.nn import functional

from robovlms_ros.models.backbones.base import BaseRoboVLM, part
from robovlms_ros.models.backbones.spec import BackboneError, BackboneSpec
from robovlms_ros.models.tokenization import TEMPLATES

TINY_TEXT = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}
TINY_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 32,
}
TINY = {"text_config": TINY_TEXT, "vision_config": TINY_VISION, "image_token_index": 500, "image_seq_length": 4}
TINY_NEXT = {**TINY, "image_grid_pinpoints": [[56, 56], [28, 56], [56, 28]]}


class RoboLLaVA(BaseRoboVLM):
    """With LLaVA 1.6 a frame is squashed to a square of `image_size` pixels. One tile (the vision
    tower's size) gives the base features; a square that the model's pinpoints list gives base and
    tiles, as transformers packs them."""

    spec = BackboneSpec(
        name="llava",
        model_types=("llava", "llava_next"),
        prompt=TEMPLATES["llava"],
        tiny={"llava": TINY, "llava_next": TINY_NEXT},
        full={
            "llava-1.5-7b-hf": "llava-1.5-7b.json",
            "llava-v1.5-7b": "llava-1.5-7b.json",
            "llava-v1.6-mistral-7b-hf": "llava-1.6-mistral-7b.json",
        },
        key_rules=(
            (r"^model\.", ""),
            (r"^language_model\.lm_head\.", "lm_head."),
            (r"^language_model\.model\.", "language_model."),
            (r"^vision_tower\.vision_model\.", "vision_tower."),
        ),
    )

    word_embedding = part("model.language_model.embed_tokens")
    text_tower = part("model.language_model")
    vision_tower = part("model.vision_tower")

    @property
    def tile_size(self) -> int:
        """Pixels on a side of what the vision tower sees."""
        return int(self.hf_config.vision_config.image_size)

    @property
    def image_size(self) -> int:
        wanted = self.config.vlm.image_size
        if self.hf_config.model_type == "llava" or wanted is None:
            return self.tile_size
        squares = [h for h, w in self.hf_config.image_grid_pinpoints if h == w]
        if wanted not in (self.tile_size, *squares):
            raise BackboneError(
                f"vlm.image_size = {wanted}: this LLaVA 1.6 takes {self.tile_size} (one tile)"
                f"{''.join(f' or {s}' for s in squares)} (tiles) pixels."
            )
        return wanted

    @property
    def vision_depth(self) -> int | None:
        given = self.hf_config.vision_feature_layer
        count = int(self.hf_config.vision_config.num_hidden_layers)
        # Hidden state 0 is the first layer's input.
        deepest = max(i % (count + 1) for i in ([given] if isinstance(given, int) else given))
        return None if deepest == count else deepest

    def model_encode_images(self, images: Tensor) -> Tensor:
        if self.hf_config.model_type == "llava":
            return super().model_encode_images(images)
        count = len(images)
        size = images.shape[-1]
        tile = self.tile_size
        if size == tile:
            return self._one_tile(images)
        base = functional.interpolate(images, (tile, tile), mode="bicubic", antialias=True)[:, None]
        # (N, 3, rows, columns, tile, tile)
        tiles = images.unfold(2, tile, tile).unfold(3, tile, tile)
        tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        sizes = torch.tensor([[size, size]] * count, device=images.device)
        pixels = torch.cat((base, tiles), dim=1)  # (N, 1 + tiles, 3, tile, tile)
        features = self.backbone.get_image_features(pixel_values=pixels, image_sizes=sizes).pooler_output
        return torch.stack(list(features))

    def _one_tile(self, images: Tensor) -> Tensor:
        """Base features and the newline embedding, as transformers packs an image without tiles."""
        model = self.backbone.model
        config = self.hf_config
        layer = config.vision_feature_layer
        states = self.vision_tower(images, output_hidden_states=True).hidden_states
        chosen = states[layer] if isinstance(layer, int) else torch.cat([states[i] for i in layer], dim=-1)
        if config.vision_feature_select_strategy == "default":
            chosen = chosen[:, 1:]
        features = model.multi_modal_projector(chosen)
        newline = model.image_newline.to(features).expand(len(features), 1, -1)
        return torch.cat((features, newline), dim=1)
