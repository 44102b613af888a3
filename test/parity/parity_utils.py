"""Checks of `utils/`: each top-level key of a case is one kind of record with a check of its own."""

from typing import Any

import numpy as np
import torch
from parity_case import LOSS, close, filled_state, image_u8

from robovlms_ros.config.action import NormalizationConfig
from robovlms_ros.core import rotations
from robovlms_ros.inference.action_pipeline import MuLaw, normalization_step
from robovlms_ros.models import tokenization
from robovlms_ros.models.image_processor import ImageProcessor
from robovlms_ros.models.perceiver import GatedCrossAttention, PerceiverResampler
from robovlms_ros.training.data.augment import random_shift
from robovlms_ros.training.data.windows import action_chunks, episode_windows
from robovlms_ros.training.engine.schedule import half_cosine


def check(case: dict[str, Any]) -> None:
    if case and all(key.isdigit() for key in case):
        check_half_cosine(case)
        return
    for key, record in case.items():
        checks[kind_of(key)](record, key)


def kind_of(key: str) -> str:
    kinds = [kind for kind in checks if key == kind or (kind.endswith("_for_") and key.startswith(kind))]
    if not kinds:
        raise AssertionError(f"unknown kind of record '{key}'; known: {', '.join(checks)}")
    return kinds[0]


def check_half_cosine(case: dict[str, Any]) -> None:
    for step, factor in case.items():
        close(half_cosine(int(step), 50, 1000, 0.01), factor, LOSS, f"learning rate at step {step}")


def min_max(record: dict[str, Any], dims: int) -> Any:
    mask = (True,) * (dims - 1) + (not record["keep_last"],)
    return normalization_step(NormalizationConfig("min_max", (record["lo"],), (record["hi"],), mask=mask), dims)


def check_normalize(records: list[dict[str, Any]], key: str) -> None:
    for record in records:
        x = record["x"].double().numpy()
        step = min_max(record, x.shape[-1])
        close(step.encode(x) if key == "normalize" else step.decode(x), record["y"], what=key)


def check_mu_law(records: list[dict[str, Any]], key: str) -> None:
    for record in records:
        x, step = record["x"].double().numpy(), MuLaw(record["mu"])
        close(step.encode(x)[:-1], record["y"][:-1], what="mu-law")
        close(step.decode(x)[:-1], record["inv"][:-1], what="inverse mu-law")
        close(record["y"][-1], x[-1], what="the last dimension is kept")


def check_regularize(record: dict[str, Any], key: str) -> None:
    x = record["x"].double().numpy()
    mask = (True,) * (len(x) - 1) + (False,)
    step = normalization_step(
        NormalizationConfig("mean_std", mean=(record["mean"],), std=(record["std"],), mask=mask), len(x)
    )
    close(step.encode(x), record["y"], what="regularize")
    close(step.decode(x), record["inv"], what="its inverse")


def check_chunked_episode(records: list[dict[str, Any]], key: str) -> None:
    for record in records:
        kwargs, (frames, mask) = record["kw"], record["out"]
        first, length = int(frames.min()), int(frames.max() - frames.min()) + 1
        indices, exists = episode_windows(
            length, kwargs["window_size"], kwargs["fwd_pred_next_n"], kwargs["left_pad"], kwargs["window_sample"]
        )
        close(indices + first, frames, 0.0, f"frames of {kwargs}")
        close(exists, mask, 0.0, f"mask of {kwargs}")


def check_tensor_chunk(record: dict[str, Any], key: str) -> None:
    close(action_chunks(record["x"], record["n"]), record["y"], 0.0, key)


def check_chunk_data(record: dict[str, Any], key: str) -> None:
    close(action_chunks(record["x"], record["chunk"])[:, : record["window_size"]], record["y"], 0.0, key)


def check_prompts(records: dict[str, Any], key: str) -> None:
    instruction = key.removeprefix("prompts_for_").strip("'")
    for family, record in records.items():
        template, kwargs = tokenization.TEMPLATES.get(family, tokenization.DEFAULT_TEMPLATE), record["kwargs"]
        assert template.render(instruction, record["eos"]) == record["text"], family
        assert template.max_length == kwargs["max_length"], family
        assert template.add_special_tokens == kwargs.get("add_special_tokens", True), family


def check_discrete_prompts(records: dict[str, str], key: str) -> None:
    for name, expected in records.items():
        closing = {} if expected.endswith("</s>") else {"closing": ""}
        assert tokenization.discrete_template(11, **closing).render("pick up the cube", "</s>") == expected, name


def check_preprocess(records: dict[str, Any], key: str) -> None:
    for name, record in records.items():
        pixels = ImageProcessor(224)(image_u8(record["u8_name"], record["h"], record["w"]))
        close(pixels[None, :, ::16, ::16], record["out_sub"], 0.0, f"{name}: every 16th pixel")
        close(pixels[:, 100], record["out_row"], 0.0, f"{name}: row 100")
        close(pixels.double().sum(), record["out_sum"], 1e-6, f"{name}: sum")
        close(pixels.double().abs().sum(), record["out_abs"], 1e-6, f"{name}: sum of sizes")


def check_shift(record: dict[str, Any], key: str) -> None:
    torch.manual_seed(record["seed"])
    close(random_shift(record["x"], record["pad"], shared="Single" in key), record["y"], what=key)


def check_euler(record: dict[str, Any], key: str) -> None:
    close(rotations.matrix_from_euler(record["euler"]), record["rotm"], what="matrix")
    close(rotations.euler_from_matrix(record["rotm"]), record["back"], what="angles")


def check_axis_angle(record: dict[str, Any], key: str) -> None:
    close(rotations.vector_from_matrix(rotations.matrix_from_euler(record["euler"])), record["axangle"], what=key)


def check_world_to_tcp(record: dict[str, Any], key: str) -> None:
    """CALVIN's relative actions from the world's axes into the tool's (`tcp_rel`), in 0.01 rad."""
    action = record["action"].double().numpy()
    angles = record["robot_obs"].double().numpy()[..., 3:6]
    tool = rotations.matrix_from_euler(angles, intrinsic=True)
    turned = rotations.matrix_from_euler(angles + 0.01 * action[..., 3:6], intrinsic=True)
    relative = rotations.euler_from_matrix(np.linalg.solve(turned, tool), intrinsic=True)
    position = (np.swapaxes(tool, -1, -2) @ action[..., :3, None])[..., 0]
    wrapped = (relative + np.pi) % (2 * np.pi) - np.pi
    got = np.concatenate([position, wrapped / 0.01, action[..., 6:]], axis=-1)
    close(got, record["out"], what=key)


def check_perceiver(record: dict[str, Any], key: str) -> None:
    module = PerceiverResampler(**record["kwargs"])
    module.load_state_dict(filled_state(record["shapes"], record["fill_prefix"]))
    close(module(record["x"].flatten(2, 3)), record["y"], what=key)


@torch.no_grad()
def check_gated(record: dict[str, Any], key: str) -> None:
    module = GatedCrossAttention(**record["kwargs"])
    module.load_state_dict(filled_state(record["shapes"], record["fill_prefix"]))
    module.attn_gate.fill_(record["gates"][0])
    module.ff_gate.fill_(record["gates"][1])
    close(module(record["x"], record["media"], record["media_locations"]), record["y"], what="with locations")
    close(module(record["x"], record["media"]), record["y_noloc"], what="without locations")


checks = {
    "normalize": check_normalize,
    "unnormalize": check_normalize,
    "mu_law": check_mu_law,
    "regularize": check_regularize,
    "get_chunked_episode": check_chunked_episode,
    "get_tensor_chunk": check_tensor_chunk,
    "generate_chunck_data": check_chunk_data,
    "prompts_for_": check_prompts,
    "discrete_prompts": check_discrete_prompts,
    "image_preprocess_224": check_preprocess,
    "RandomShiftsAug": check_shift,
    "RandomShiftsSingleAug": check_shift,
    "euler_zyx": check_euler,
    "euler2axangle_sxyz": check_axis_angle,
    "world_to_tcp": check_world_to_tcp,
    "perceiver": check_perceiver,
    "gated_cross_attention": check_gated,
}
