"""The base of every backbone: images, words and state of a robot in, action features out (arXiv
2412.14058)."""

import contextlib
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.models.backbones import sequence as seq
from robovlms_ros.models.backbones.hf_config import build_hf_config
from robovlms_ros.models.backbones.meta_parameters import parameters_on_meta
from robovlms_ros.models.backbones.sequence import TokenBlock, TokenSequence, VisualTokens
from robovlms_ros.models.backbones.spec import BackboneError, BackboneSpec
from robovlms_ros.models.perceiver import PerceiverResampler

REQUIRED = {
    "image_processor": "a callable from (H, W, 3) uint8 to (3, S, S) float",
    "hidden_size": "a whole number above 0",
    "word_embedding": "an nn.Embedding of width hidden_size",
    "text_tower": "an nn.Module",
    "vision_tower": "an nn.Module",
    "model": "an nn.Module",
}
SOURCES = {
    "all": (seq.TEXT, seq.MARGIN, seq.IMAGE, seq.WRAP, seq.STATE, seq.PAD),
    "text": (seq.TEXT, seq.STATE, seq.PAD),
    "vision": (seq.IMAGE, seq.WRAP),
}


def part(path: str) -> Any:
    """The property of a backbone's module at `path` in the transformers model."""
    names = path.split(".")

    def find(vlm: "BaseRoboVLM") -> nn.Module:
        module: Any = vlm.backbone
        for name in names:
            module = getattr(module, name)
        return module

    return property(find)


class BaseRoboVLM(nn.Module):
    """A VLM as a robot policy's backbone. A subclass gives `spec` and the attributes in REQUIRED.

    config: the policy's. vocab_size: of the tokenizer, where it decides the model's. folder: where
    the pretrained VLM's files lie. Weights are random until a checkpoint is loaded; `empty` leaves
    the VLM's own without memory until then.
    """

    spec: ClassVar[BackboneSpec]

    def __init__(
        self, config: PolicyConfig, vocab_size: int | None = None, folder: Path | None = None, empty: bool = False
    ):
        super().__init__()
        self.config = config
        history = config.model.history_type
        if self.spec.fusion == "cross_attention" and history in ("pre", "video"):
            raise BackboneError(
                f"model.history_type '{history}' with backbone '{self.spec.name}': its words attend to one medium, so "
                "a sequence holds one frame. Use history_type 'post' or 'one_step'."
            )
        self.hf_config = self.build_config(vocab_size, folder)
        with parameters_on_meta() if empty else contextlib.nullcontext():
            self.backbone = self.build_model()
        if config.action_head.action_space != "discrete":
            _drop_output_embeddings(self.backbone)
        self.validate()
        width = self.hidden_size
        if config.action_head.action_space == "continuous":
            self.action_token = nn.Parameter(torch.zeros(width))
        if config.vlm.resampler:
            self.vision_resampler = PerceiverResampler(width)
        if config.proprioception is not None:
            self.state_embedding = nn.Linear(config.proprioception.size, width)

    # What a subclass answers
    # -----------------------------------------------------------------------------------------

    @staticmethod
    def complete_config(data: dict[str, Any]) -> None:
        """Fill in entries of the transformers configuration `data` that follow from others."""

    @staticmethod
    def adapt_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors with those taken apart or put together that renaming alone does
        not cover."""
        return tensors

    def build_config(self, vocab_size: int | None, folder: Path | None) -> Any:
        """The transformers configuration."""
        return build_hf_config(self.spec, self.config.vlm, vocab_size, folder, self.complete_config)

    def build_model(self) -> nn.Module:
        """The transformers model of `self.hf_config`."""
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_config(self.hf_config, attn_implementation=self.attention)

    @property
    def attention(self) -> Any:
        """transformers' attn_implementation: a name, or one per sub-configuration."""
        return self.config.vlm.attention

    @property
    def model(self) -> nn.Module:
        return self.backbone

    @property
    def image_processor(self) -> Any:
        from robovlms_ros.models.image_processor import ImageProcessor

        return ImageProcessor(self.image_size, self.spec.image_mean, self.spec.image_std)

    @property
    def image_size(self) -> int:
        """Pixels on a side of the square image that the vision tower takes."""
        size = self.hf_config.vision_config.image_size
        return int(size if isinstance(size, int) else size[0])

    @property
    def hidden_size(self) -> int:
        return int(self.hf_config.get_text_config().hidden_size)

    @property
    def input_scale(self) -> float:
        """Factor of the spliced embeddings before `text_tower`, where the tower does not scale them
        itself."""
        return 1.0

    @property
    def vision_depth(self) -> int | None:
        """Number of vision layers whose output is read; None where all are."""
        return None

    def model_encode_images(self, images: Tensor) -> Tensor:
        """images (N, 3, S, S) to visual tokens (N, n, d) in the scale of unscaled word
        embeddings."""
        features = self.backbone.get_image_features(pixel_values=images)  # type: ignore[operator]
        features = getattr(features, "pooler_output", features)
        return torch.stack(list(features)) if isinstance(features, list | tuple) else features

    def encode_camera(self, images: Tensor) -> VisualTokens:
        """One camera's frames (N, 3, S, S); overridden where a family has per-layer features or a
        token grid."""
        return VisualTokens(self.model_encode_images(images))

    def positions(self, sequence: TokenSequence) -> dict[str, Any]:
        """Extra arguments of `text_tower` that depend on the sequence's layout: multi-axis
        positions, DeepStack."""
        return {}

    def run_text_tower(self, sequence: TokenSequence, tower: nn.Module | None = None, **kwargs: Any) -> Any:
        """The language model over the sequence; returns transformers' output with
        `last_hidden_state` (N, L, d).

        tower: replaces `text_tower`. Further arguments go to it and override the sequence's.
        """
        scale = self.input_scale
        embeds = sequence.embeds
        if scale != 1.0:
            # Rounded as a tensor of the sequence's precision would be, without a tensor that has to
            # reach the device.
            embeds = embeds * torch.tensor(scale, dtype=embeds.dtype).item()
        if "position_ids" not in kwargs:
            kwargs = {**self.positions(sequence), **kwargs}
        if "attention_mask" not in kwargs:
            kwargs["attention_mask"] = sequence.mask.long()
        kwargs.setdefault("use_cache", False)
        return (self.text_tower if tower is None else tower)(inputs_embeds=embeds, **kwargs)

    # What is the same for all
    # ----------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise BackboneError naming every required attribute that is missing or of the wrong
        kind."""
        faults = []
        for name, kind in REQUIRED.items():
            try:
                value = getattr(self, name)
            except (AttributeError, NotImplementedError) as error:
                faults.append(f"{name} is missing, must be {kind} ({error})")
                continue
            if not self._right_kind(name, value):
                faults.append(f"{name} is {type(value).__name__}, must be {kind}")
        encode = getattr(type(self), "model_encode_images", None)
        if not callable(encode):
            faults.append(f"model_encode_images is {type(encode).__name__}, must be a method")
        if faults:
            raise BackboneError(f"{type(self).__name__}: {len(faults)} attributes do not fit: {'; '.join(faults)}.")

    def _right_kind(self, name: str, value: Any) -> bool:
        if name == "image_processor":
            return callable(value)
        if name == "hidden_size":
            return isinstance(value, int) and value > 0
        if name == "word_embedding":
            return isinstance(value, nn.Embedding) and value.embedding_dim == getattr(self, "hidden_size", None)
        return isinstance(value, nn.Module)

    def embed_text(self, input_ids: Tensor) -> Tensor:
        """Unscaled word embeddings (..., d); some families' embedding layers scale by
        themselves."""
        return functional.embedding(input_ids, self.word_embedding.weight)

    def encode_frames(self, images: dict[str, Tensor]) -> dict[str, VisualTokens]:
        """Camera -> (N, 3, S, S) to camera -> visual tokens, each frame through the vision tower
        once."""
        wanted = self.config.cameras
        if set(images) != set(wanted):
            raise BackboneError(f"images of cameras {sorted(images)}: the policy takes exactly {sorted(wanted)}.")
        return {name: self.encode_images(images[name]) for name in wanted}

    def encode_images(self, images: Tensor) -> VisualTokens:
        """Visual tokens of frames (N, 3, S, S), of one camera or several, resampled by
        `vision_resampler` if set."""
        visual = self.encode_camera(images)
        return VisualTokens(self.vision_resampler(visual.tokens)) if self.config.vlm.resampler else visual

    def forward_features(
        self,
        visual: dict[str, VisualTokens],
        input_ids: Tensor,
        attention_mask: Tensor,
        state: Tensor | None = None,
        window: int = 1,
    ) -> Tensor:
        """Action features of B windows.

        visual: per camera, B * window frames, the window's frames adjacent and oldest first.
            input_ids, attention_mask:
        (B, L). state: (B, window, P). Returns (B, T, tokens, d): T is the window, or 1 with
        history_type `video`; tokens is `latent`, or with action_space `down_sample` all columns
        that token_source names.
        """
        head = self.config.action_head
        sequence = self.build_sequence(visual, input_ids, attention_mask, state, window)
        hidden = self.run_text_tower(sequence).last_hidden_state  # (N, L, d)
        if head.action_space == "continuous":
            chosen = sequence.select(hidden, (seq.ACTION,))
        else:
            chosen = sequence.select(seq.without_pads(hidden, sequence), SOURCES[head.token_source])
        frames = 1 if self.config.model.history_type == "video" else window
        return chosen.reshape(input_ids.shape[0], frames, -1, hidden.shape[-1])

    def build_sequence(
        self,
        visual: dict[str, VisualTokens],
        input_ids: Tensor,
        attention_mask: Tensor,
        state: Tensor | None = None,
        window: int = 1,
    ) -> TokenSequence:
        """The spliced sequence of `forward_features`: (B * window, L) for post, (B, L) for pre and
        video."""
        history = self.config.model.history_type
        head = self.config.action_head
        if history == "video":
            visual = {name: seq.frames_adjacent(tokens, window) for name, tokens in visual.items()}
            state = None if state is None else state[:, -1:]
        repeats = 1 if history == "video" else window
        ids, mask = (x.repeat_interleave(repeats, dim=0) for x in (input_ids, attention_mask))
        row_end = self.config.model.padding == "row_end"
        spec = self.spec
        sequence = seq.text_block(self.embed_text(ids), mask, spec.bos_offset, spec.eos_offset, row_end)
        sequence = self._splice_images(sequence, visual, window if history == "video" else 1)
        before_end = sequence.embeds.shape[1] - spec.eos_offset
        if self.config.proprioception is not None:
            if state is None:
                raise BackboneError("the policy takes proprioception: give the state (B, window, values).")
            embedded = self.state_embedding(state.flatten(0, 1).to(self.state_embedding.weight.dtype))
            sequence = seq.insert(sequence, TokenBlock(embedded[:, None], seq.STATE), before_end)
            before_end += 1
        if head.action_space == "continuous":
            tokens = self.action_token.expand(len(sequence.embeds), head.latent, -1)
            sequence = seq.insert(sequence, TokenBlock(tokens, seq.ACTION, not head.fill_zero), before_end)
        if history == "pre" and window > 1:
            sequence = seq.fold_time(sequence, window)
        return seq.pads_last(sequence) if row_end else sequence

    def _splice_images(
        self, sequence: TokenSequence, visual: dict[str, VisualTokens], frames: int
    ) -> TokenSequence:
        """Each camera at bos_offset, so the last one comes first; or, with cross attention, beside
        the sequence."""
        ordered = [visual[name] for name in self.config.cameras]
        if self.spec.fusion == "cross_attention":
            # (N, 1, cameras * tokens, d)
            media = torch.cat([v.tokens for v in ordered], dim=1)[:, None]
            return TokenSequence(sequence.embeds, sequence.mask, sequence.kinds, media=media)
        prefix, suffix = (self._wrap_tokens(n, sequence) for n in (self.spec.image_prefix, self.spec.image_suffix))
        for tokens in ordered:
            for frame in reversed(tokens.tokens.chunk(frames, dim=1)):
                for block in (TokenBlock(suffix, seq.WRAP), TokenBlock(frame, seq.IMAGE), TokenBlock(prefix, seq.WRAP)):
                    if block.embeds.shape[1]:
                        sequence = seq.insert(sequence, block, self.spec.bos_offset)
        newest_first = ordered[::-1]
        layers = tuple(torch.cat(group, dim=1) for group in zip(*(v.layers for v in newest_first), strict=True))
        grids = tuple(v.grid for v in newest_first for _ in range(frames) if v.grid is not None)
        return TokenSequence(sequence.embeds, sequence.mask, sequence.kinds, layers, grids)

    def _wrap_tokens(self, names: tuple[str, ...], sequence: TokenSequence) -> Tensor:
        """(N, k, d) word embeddings of the token ids that the configuration gives under `names`."""
        given = [getattr(self.hf_config, name, None) for name in names]
        ids = torch.tensor([int(i) for i in given if i is not None], device=sequence.embeds.device)
        return self.embed_text(ids.long()).expand(len(sequence.embeds), -1, -1)


def _drop_output_embeddings(model: nn.Module) -> None:
    """Remove the output matrix.

    Only the discrete action space predicts tokens. Elsewhere an untied output matrix would be dead
    memory.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        for name, child in module.named_children():
            if child is head:
                setattr(module, name, nn.Identity())
