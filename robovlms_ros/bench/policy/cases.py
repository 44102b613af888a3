"""Cases of the benchmark: models by family and size, and everything else that a step's cost depends
on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from robovlms_ros.config.policy import PolicyConfig, config_from_mapping
from robovlms_ros.core.schema import require
from robovlms_ros.core.types import NANOSECONDS, Observation

if TYPE_CHECKING:
    from robovlms_ros.models.vla_policy import VLAPolicy

Size = Literal["tiny", "mid", "full"]
BACKBONES = ("kosmos", "paligemma", "llava", "qwen", "smolvlm", "flamingo")
SIZES = ("tiny", "mid", "full")
HEADS = ("lstm", "gpt", "fc")
CAMERAS = ("static", "wrist", "side")
INSTRUCTION = "pick up the red block and put it into the left drawer"
STEP = 0.1  # s between frames of the history, whatever the measured rate is: the stamps are made up
CAMERA_SHAPE = (480, 640, 3)

_VIT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_LLAMA = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16,
          "num_key_value_heads": 16}
# 0.2 to 0.3 billion parameters without the word embedding; vocabularies, patches and heads as in
# the full models.
# LLaVA and SmolVLM look at smaller images than the full ones, so that a step on two processors
# stays near a second.
MID: Mapping[str, Mapping[str, Any]] = {
    "kosmos": {"settings": {
        "text_config": {"embed_dim": 1024, "layers": 12, "ffn_dim": 4096, "attention_heads": 16},
        "vision_config": _VIT,
    }},
    "paligemma": {"model_name": "google/paligemma-3b-pt-224", "settings": {
        "text_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 10,
                        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256},
        "vision_config": _VIT,
    }},
    "llava": {"settings": {"text_config": _LLAMA, "vision_config": {**_VIT, "image_size": 224}}},
    "qwen": {"model_name": "Qwen/Qwen3-VL-2B-Instruct", "settings": {
        "text_config": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 12,
                        "num_attention_heads": 8, "num_key_value_heads": 4},
        "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "depth": 12, "num_heads": 12,
                          "deepstack_visual_indexes": [2, 5, 8], "out_hidden_size": 1024},
    }},
    "smolvlm": {"model_name": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "image_size": 256, "settings": {}},
    "flamingo": {"settings": {
        "text_config": {"d_model": 1024, "n_heads": 8, "n_layers": 8},
        "vision_config": _VIT,
    }},
}
FULL: Mapping[str, str] = {
    "kosmos": "microsoft/kosmos-2-patch14-224",
    "paligemma": "google/paligemma-3b-pt-224",
    "llava": "llava-hf/llava-1.5-7b-hf",
    "qwen": "Qwen/Qwen3-VL-2B-Instruct",
    "smolvlm": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    "flamingo": "openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct",
}
_TINY_HEAD = {"hidden_size": 32}


@dataclass(frozen=True)
class Case:
    """One row's model and work. history: frames that the head sees, W. chunk: steps of an answer.
    history is of type `post`, as in every published RoboVLMs checkpoint. dtype: of the weights."""

    backbone: str
    size: Size = "mid"
    head: str = "lstm"
    cameras: int = 1
    history: int = 16
    chunk: int = 10
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require(self.backbone in BACKBONES, "backbone", self.backbone, f"one of {', '.join(BACKBONES)}")
        require(self.size in SIZES, "size", self.size, f"one of {', '.join(SIZES)}")
        require(self.head in HEADS, "head", self.head, f"one of {', '.join(HEADS)}")
        require(1 <= self.cameras <= len(CAMERAS), "cameras", self.cameras, f"1 to {len(CAMERAS)}")
        require(1 <= self.history <= 1024, "history", self.history, "1 to 1024")
        require(1 <= self.chunk <= 1000, "chunk", self.chunk, "1 to 1000")
        dtypes = ("float32", "bfloat16", "float16")
        require(self.dtype in dtypes, "dtype", self.dtype, f"one of {', '.join(dtypes)}")

    @property
    def title(self) -> str:
        return (f"{self.backbone} {self.size}, {self.head}, {self.cameras} camera{'s' * (self.cameras > 1)}, "
                f"W {self.history}, chunk {self.chunk}")


def config_of(case: Case) -> PolicyConfig:
    """The policy of a case, ready to run: a word-level tokenizer, so that a prompt is as long as a
    real one."""
    vlm: dict[str, Any] = {"precision": case.dtype, "vocabulary": INSTRUCTION.split()}
    if case.size == "tiny":
        vlm["size"] = "tiny"
    elif case.size == "mid":
        vlm |= {"model_name": FULL[case.backbone], **MID[case.backbone]}
    else:
        vlm["model_name"] = FULL[case.backbone]
    head = {"type": case.head, **(_TINY_HEAD if case.size == "tiny" else {})}
    return config_from_mapping({
        "model": {"backbone": case.backbone, "history_length": case.history, "action_chunk_size": case.chunk,
                  "history_step": STEP},
        "action_head": head,
        "vlm": vlm,
        "cameras": list(CAMERAS[:case.cameras]),
        "action": {
            "space": "eef_delta", "frame": "base", "rotation": "euler_xyz_extrinsic", "composition": "chained",
            "step_duration": 0.05, "units": {"translation": 0.02, "rotation": 0.05}, "gripper": {"open_value": 1},
        },
    }, case.title)


class SyntheticFrames:
    """Observations with pictures that are no noise and repeat after `count`; the stamps go on in
    steps of STEP s."""

    def __init__(self, cameras: tuple[str, ...], seed: int = 0, count: int = 5,
                 shape: tuple[int, int, int] = CAMERA_SHAPE):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (count, len(cameras), 6, 8, 3), dtype=np.uint8)
        rows = -(-shape[0] // 6)
        columns = -(-shape[1] // 8)
        self.cameras = cameras
        self.shape = shape
        self._images = coarse.repeat(rows, 2).repeat(columns, 3)[:, :, :shape[0], :shape[1]]

    def __getitem__(self, index: int) -> Observation:
        images = self._images[index % len(self._images)]
        stamp_ns = round((1000 + index) * STEP * NANOSECONDS)
        return Observation(stamp_ns, dict(zip(self.cameras, images, strict=True)), INSTRUCTION)


def verification_frames(policy: "VLAPolicy", count: int) -> list[Observation]:
    """`count` frames that differ strongly, then one with another instruction."""
    frames = SyntheticFrames(policy.config.cameras, seed=1, count=count + 1)
    rows = [frames[index] for index in range(count + 1)]
    words = " ".join(reversed(INSTRUCTION.split()))
    return [*rows[:-1], replace(rows[-1], instruction=words)]
