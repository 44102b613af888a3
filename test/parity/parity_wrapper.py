"""Checks of `wrapper/`, and of the published checkpoint's rollout: episodes through our own session and pipeline.

The recorded wrappers preprocess camera images, keep the history, and turn the head's answer into the environment's
action. Here a PolicySession does all of that, with the shipped profile of the data set.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from parity_case import BFLOAT16, TOLERANCE, UNDECIDED, close, filled_state, image_u8, load_case
from parity_vla import configuration, settings_of
from torch import Tensor

from robovlms_ros.checkpoints.checkpoint import fill, load_policy
from robovlms_ros.config.action import GripperConfig
from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.core.rotations import matrix_from_euler, vector_from_matrix
from robovlms_ros.core.types import ActionChunk, Observation
from robovlms_ros.inference.action_pipeline import GripperState, gripper_step
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.tokenization import PromptTemplate, TokenBatch
from robovlms_ros.models.vla_policy import VLAPolicy

STATIC_SIZE, HAND_SIZE, SIMPLER_SIZE = (200, 200), (84, 84), (480, 640)


@torch.no_grad()
def check(case: dict[str, Any], path: Path) -> None:
    if "setup" in case:
        check_simpler(case, path)
    elif "steps" in case:
        check_calvin(case, path)
    elif case and all(isinstance(record, dict) and "gripper_out" in record for record in case.values()):
        check_transforms(case)
    else:
        raise AssertionError(f"unknown kind of wrapper case, with {sorted(case)}")


class StandInPrompt:
    """The recording's tokenizer: the last ten characters of the prompt, one id each, between bos 0 and eos 2."""

    def __init__(self, template: PromptTemplate):
        self.template = template

    def encode(self, instructions: list[str], length: int | None = None) -> TokenBatch:
        rows = [[0, *(5 + ord(c) % 400 for c in self.template.render(text)[-10:]), 2] for text in instructions]
        ids = torch.tensor(rows)
        return TokenBatch(ids, torch.ones_like(ids))


def policy_of(case: dict[str, Any], path: Path, profile: str) -> VLAPolicy:
    """The tiny model of the same family, the head's last layers made larger so that decisions vary."""
    donor = donor_of(case, path)
    config = configuration(
        {**case, "config": {**case["config"], "profile": profile}}, settings_of(donor) if donor else {}
    )
    if config.model.history_type == "pre":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, pre_executes="oldest"))
    policy = VLAPolicy(config)
    shapes = {f"act_head.{key}": list(value.shape) for key, value in policy.head.state_dict().items()}
    if donor:
        shapes |= {k: v for k, v in donor["param_shapes"].items() if not k.startswith("act_head.")}
    else:
        shapes |= {f"backbone.{key}": list(value.shape) for key, value in policy.vlm.backbone.named_parameters()}
        shapes["action_token"] = [policy.vlm.hidden_size]
    tensors = filled_state(shapes)
    tensors["act_head.actions.mlp.6.weight"] *= 6
    tensors["act_head.gripper.mlp.6.weight"] *= 20
    tensors["act_head.gripper.mlp.6.bias"] += case.get("grip_bias", 0.0)
    fill(policy, tensors, path.stem)
    policy.prompt = StandInPrompt(policy.vlm.spec.prompt)
    return policy.eval()


def donor_of(case: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """A model case of the same family, whose weights these episodes used."""
    for other in sorted((path.parent.parent / "vla").glob("*.json")):
        record = load_case(other)
        family, shapes = record.get("config", {}).get("robovlm_name"), record.get("param_shapes", {})
        resampled = any(key.startswith("vision_resampler") for key in shapes)
        if family == case["config"]["robovlm_name"] and "action_token" in shapes and not resampled:
            return record
    return None


class Episode:
    """A session fed one frame per control step, with the head's raw answers kept."""

    def __init__(self, policy: VLAPolicy):
        self.session: PolicySession = PolicySession(policy)
        self.policy = policy
        self.raw: list[HeadOutput] = []
        policy.head.register_forward_hook(lambda module, inputs, output: self.raw.append(output))

    def step(self, t: int, images: dict[str, Any], goal: str) -> ActionChunk:
        assert self.policy.config.model.history_step is not None
        stamp = round((t + 1) * self.policy.config.model.history_step * 1e9)
        return self.session.predict_action_chunk(Observation(stamp, images, goal))

    def check_raw(self, arm: Tensor, logits: Tensor, tolerance: float, what: str) -> None:
        """The recorded head's answer is of the newest frame, or of all frames of an interleaved window."""
        output: HeadOutput = self.raw[-1]
        frames = arm.shape[1]
        close(output.arm[:, -frames:].float(), arm.float(), tolerance, f"{what}: arm")
        close(output.gripper_logits[:, -frames:].float(), logits.float(), tolerance, f"{what}: gripper logits")


def check_image(policy: VLAPolicy, image: Any, expected: Tensor | None, what: str) -> None:
    if expected is not None:
        close(policy.vlm.image_processor(image).to(policy.dtype), expected.to(policy.dtype)[0, -1], 0.0, what)


def check_decision(opening: float, recorded: float, logit: float, tolerance: float, what: str) -> None:
    """recorded is +1 open, -1 close; where the recorded logit is nearer to 0 than logits may differ (in bfloat16 from
    processor to processor) it says nothing."""
    undecided = abs(logit) < max(UNDECIDED, tolerance)
    assert undecided or (opening > 0.5) == (recorded > 0), f"{what}: gripper {opening}, logit {logit}"


def check_calvin(case: dict[str, Any], path: Path) -> None:
    policy = policy_of(case, path, "calvin")
    tolerance = BFLOAT16 if policy.dtype == torch.bfloat16 else TOLERANCE
    episode, current = Episode(policy), None
    for record in case["steps"]:
        if record["ep"] != current:
            episode.session.reset()
            current = record["ep"]
        what = f"episode {record['ep']} step {record['t']}"
        images = calvin_images(policy, record["image_names"])
        check_image(policy, images["static"], record.get("rgb"), f"{what}: static")
        if "wrist" in images:
            check_image(policy, images["wrist"], record.get("hand_rgb"), f"{what}: wrist")
        close(policy.tokenize([record["goal"]])["input_ids"], record["text_ids"], 0.0, f"{what}: ids")
        chunk = episode.step(record["t"], images, record["goal"])
        episode.check_raw(record["raw_arm"], record["raw_gripper_logits"], tolerance, what)
        logit = float(record["raw_gripper_logits"][0, 0 if record["raw_arm"].shape[1] > 1 else -1, 0, 0])
        check_calvin_action(chunk, record["action"], logit, tolerance, what)


def calvin_images(policy: VLAPolicy, names: list[str]) -> dict[str, Any]:
    sizes = (STATIC_SIZE, HAND_SIZE)
    pairs = zip(policy.config.cameras, names, sizes, strict=False)
    return {camera: image_u8(name, *size) for camera, name, size in pairs}


def check_calvin_action(chunk: ActionChunk, action: Tensor, logit: float, tolerance: float, what: str) -> None:
    """Our chunk is in SI units; CALVIN's own are 1/50 m and 1/20 rad."""
    arm = chunk.values[0, :6] / ([0.02] * 3 + [0.05] * 3)
    close(arm, action[:6], tolerance, f"{what}: action")
    check_decision(chunk.values[0, 6], float(action[6]), logit, tolerance, what)


def check_simpler(case: dict[str, Any], path: Path) -> None:
    profile = {"widowx_bridge": "bridge", "google_robot": "google_robot"}[case["setup"]]
    policy = policy_of({**case, "config": {**case["config"], "use_hand_rgb": False}}, path, profile)
    tolerance = BFLOAT16 if policy.dtype == torch.bfloat16 else TOLERANCE
    quantiles = policy.config.action.normalization[-1]
    close(torch.tensor(quantiles.low[:6]), torch.tensor(case["stats"]["q01"][:6]), 0.0, "q01 of the profile")
    close(torch.tensor(quantiles.high[:6]), torch.tensor(case["stats"]["q99"][:6]), 0.0, "q99 of the profile")
    episode, sticky = Episode(policy), GripperState()
    for t, record in enumerate(case["steps"]):
        image = image_u8(record["image_name"], *SIMPLER_SIZE)
        check_image(policy, image, record.get("rgb_tensor"), f"step {t}: image")
        chunk = episode.step(t, {policy.config.cameras[0]: image}, case.get("goal", "pick coke can"))
        episode.check_raw(record["raw_arm"], record["raw_gripper_logits"], tolerance, f"step {t}")
        values, env = chunk.values[0], record["env"]
        close(values[:3], record["raw"]["world_vector"], tolerance, f"step {t}: translation")
        close(values[3:6], record["raw"]["rotation_delta"], tolerance, f"step {t}: rotation")
        rotation = vector_from_matrix(matrix_from_euler(values[3:6]))
        close(rotation, env["rot_axangle"], tolerance, f"step {t}: rotation vector")
        logit = float(record["raw_gripper_logits"].flatten()[0])
        if profile == "bridge":
            check_decision(values[6], float(env["gripper"]), logit, tolerance, f"step {t}")
        else:
            _, sticky = gripper_step(policy.config.action.gripper, int(logit > 0), sticky)
            close(torch.tensor([2.0 * sticky.pulse]), env["gripper"], 0.0, f"step {t}: gripper pulse")


def check_transforms(case: dict[str, Any]) -> None:
    """The gripper's state machines and the axis-angle form, over recorded inputs."""
    rules = {"google_robot": "sticky", "widowx_bridge": "late_close"}
    for setup, record in case.items():
        config, state = GripperConfig(1, rule=rules[setup]), GripperState()
        for t, (row, expected) in enumerate(zip(record["inputs"], record["gripper_out"], strict=True)):
            held, state = gripper_step(config, int(row[6] > 0.5), state)
            got = 2 * state.pulse if rules[setup] == "sticky" else 2 * held - 1
            assert got == float(expected), f"{setup} step {t}: gripper {got}, recorded {float(expected)}"
        rotation = vector_from_matrix(matrix_from_euler(record["inputs"][:, 3:6].numpy()))
        close(rotation, record["rot_axangle"], what=f"{setup}: rotation vectors")


def check_checkpoint(case: dict[str, Any], path: Path) -> None:
    """A checkpoint in the published layout, loaded as it is and run for an episode."""
    checkpoint = checkpoint_of(case, path)
    config = config_from_mapping({**case["config"], "profile": "calvin"}, path.name, path.parent)
    policy = load_policy(checkpoint, config, require_tokenizer=False)
    policy.prompt = StandInPrompt(policy.vlm.spec.prompt)
    episode = Episode(policy)
    for t, names in enumerate(case["image_names"]):
        sizes = [tuple(size) for size in case["sizes"]]
        images = {c: image_u8(n, *s) for c, n, s in zip(policy.config.cameras, names, sizes, strict=False)}
        if t == 0:
            check_image(policy, images["static"], case["rgb0"], "static")
            check_image(policy, images["wrist"], case["hand0"], "wrist")
        chunk = episode.step(t, images, case["goal"])
        episode.check_raw(case["raw_arm"][t], case["raw_gripper_logits"][t], TOLERANCE, f"step {t}")
        logit = float(case["raw_gripper_logits"][t].flatten()[0])
        check_calvin_action(chunk, case["actions"][t], logit, TOLERANCE, f"step {t}")


def checkpoint_of(case: dict[str, Any], path: Path) -> Path:
    """The checkpoint beside the case whose own JSON has the same head."""
    for candidate in sorted(path.parent.glob("*_ckpt*.pt")):
        own = path.parent / f"{candidate.name.partition('_ckpt')[0]}.json"
        if own.is_file() and load_case(own)["act_head"] == case["config"]["act_head"]:
            return candidate
    raise AssertionError(f"{path.name}: no checkpoint with this head beside it")
