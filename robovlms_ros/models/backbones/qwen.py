"""Qwen2.5-VL and Qwen3-VL, transformers' native classes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robovlms_ros.models.backbones import sequence as seq
from robovlms_ros.models.backbones.base import BaseRoboVLM, part
from robovlms_ros.models.backbones.sequence import TokenSequence, VisualTokens
from robovlms_ros.models.backbones.spec import BackboneError, BackboneSpec
from robovlms_ros.models.tokenization import TEMPLATES

OLD = ("qwen-vl", "qwen-vl-chat", "qwen2-vl-2b-instruct", "qwen2-vl-7b-instruct")
TINY_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}
IDS = {"vision_start_token_id": 498, "vision_end_token_id": 499, "image_token_id": 500, "video_token_id": 501}
TINY_25 = {
    "text_config": TINY_TEXT,
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    **IDS,
}
TINY_3 = {
    "text_config": {**TINY_TEXT, "head_dim": 16},
    "vision_config": {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    },
    **IDS,
}
DEFAULT_IMAGE_SIZE = 224
TINY_IMAGE_SIZE = 64


class RoboQwen(BaseRoboVLM):
    """Every image lies between the model's vision start and end tokens. Positions are on three
    axes; Qwen3-VL adds features of earlier vision layers to its first decoder layers
    (DeepStack)."""

    spec = BackboneSpec(
        name="qwen",
        model_types=("qwen2_5_vl", "qwen3_vl"),
        prompt=TEMPLATES["qwen"],
        tiny={"qwen2_5_vl": TINY_25, "qwen3_vl": TINY_3},
        full={
            "Qwen2.5-VL-3B-Instruct": "qwen2.5-vl-3b.json",
            "Qwen3-VL-2B-Instruct": "qwen3-vl-2b.json",
        },
        bos_offset=0,
        eos_offset=0,
        image_prefix=("vision_start_token_id",),
        image_suffix=("vision_end_token_id",),
        key_rules=(
            (r"^model\.", ""),
            (r"^language_model\.model\.", "language_model."),
            (r"^(embed_tokens|layers|norm)\.", r"language_model.\1."),
        ),
    )

    def build_config(self, vocab_size: int | None, folder: Path | None) -> Any:
        name = Path(self.config.vlm.model_name or "").name
        if name.lower() in OLD:
            raise BackboneError(
                f"vlm.model_name = '{self.config.vlm.model_name}': this generation of Qwen is not run here (Qwen-VL "
                "exists only as remote code of the model hub). Use Qwen2.5-VL or Qwen3-VL and train on it."
            )
        return super().build_config(vocab_size, folder)

    word_embedding = part("model.language_model.embed_tokens")
    text_tower = part("model.language_model")
    vision_tower = part("model.visual")

    @property
    def unit(self) -> int:
        """Pixels on a side of what becomes one visual token."""
        vision = self.hf_config.vision_config
        return int(vision.patch_size * vision.spatial_merge_size)

    @property
    def image_size(self) -> int:
        usual = TINY_IMAGE_SIZE if self.config.vlm.size == "tiny" else DEFAULT_IMAGE_SIZE
        size = self.config.vlm.image_size or usual // self.unit * self.unit
        if size % self.unit:
            raise BackboneError(f"vlm.image_size = {size}: must be a multiple of {self.unit} pixels for this model.")
        return size

    def model_encode_images(self, images: Tensor) -> Tensor:
        return self.encode_camera(images).tokens

    def encode_camera(self, images: Tensor) -> VisualTokens:
        vision = self.hf_config.vision_config
        side = images.shape[-1] // vision.patch_size
        patches = to_patches(images, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        grids = torch.tensor([[1, side, side]] * len(images), device=images.device)
        output = self.backbone.get_image_features(pixel_values=patches, image_grid_thw=grids)
        tokens = _per_image(output.pooler_output, len(images))  # (N, n, d)
        levels = getattr(output, "deepstack_features", None) or ()
        layers = tuple(_per_image(level, len(images)) for level in levels)
        merged = side // vision.spatial_merge_size
        return VisualTokens(tokens, layers, (1, merged, merged))

    def positions(self, sequence: TokenSequence) -> dict[str, Any]:
        counted = sequence.mask | (sequence.kinds == seq.ACTION)
        extra: dict[str, Any] = {"position_ids": grid_positions(sequence.kinds, seq.IMAGE, counted, sequence.grids)}
        if sequence.layers:
            extra["visual_pos_masks"] = sequence.kinds == seq.IMAGE
            extra["deepstack_visual_embeds"] = [layer.flatten(0, 1) for layer in sequence.layers]
        return extra


def _per_image(features: Any, count: int) -> Tensor:
    """(N, n, d), whether transformers splits the features of N images or leaves them in one (N * n,
    d)."""
    joined = features if isinstance(features, Tensor) else torch.cat(list(features))
    return joined.unflatten(0, (count, -1))


def to_patches(images: Tensor, patch: int, merge: int, repeats: int) -> Tensor:
    """(N, 3, S, S) to (N * (S / patch)^2, 3 * repeats * patch * patch): the patches of a merged
    token stand together, and a still image fills every step of the temporal patch."""
    rows = images.shape[-1] // (patch * merge)
    x = images[:, None].expand(-1, repeats, -1, -1, -1)  # (N, t, 3, S, S)
    x = x.reshape(len(images), repeats, 3, rows, merge, patch, rows, merge, patch)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # (N, rows, columns, merge, merge, 3, t, patch, patch)
    return x.reshape(-1, 3 * repeats * patch * patch)


def grid_positions(kinds: Tensor, image_kind: int, counted: Tensor, grids: tuple[tuple[int, int, int], ...]) -> Tensor:
    """(3, N, L) int64 positions (time, height, width) of a sequence.

    M-RoPE, arXiv 2409.12191: words count up, an image's tokens span a grid.

    kinds: (N, L), the same number of images in every row, each a run of `image_kind` columns.
    counted: (N, L) bool, the columns that take a position; others stay at 0 and advance nothing.
    grids: (t, h, w) of each image in a row's order.
    """
    positions = torch.zeros(3, *kinds.shape, dtype=torch.int64)
    for row in range(kinds.shape[0]):
        columns = counted[row].nonzero().flatten().tolist()
        images = (kinds[row] == image_kind).tolist()
        remaining = iter(grids)
        position = 0
        i = 0
        while i < len(columns):
            if not images[columns[i]]:
                positions[:, row, columns[i]] = position
                position += 1
                i += 1
                continue
            t, h, w = next(remaining)
            axes = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
            run = columns[i : i + t * h * w]
            positions[:, row, run] = torch.stack([axis.flatten() for axis in axes]) + position
            position += max(h, w)
            i += len(run)
    return positions.to(kinds.device)
