"""Episodes in which a person took over.

- A correction begins with the person's first command after the take-over: the policy's last plan
  goes on until then. It ends with the hand-over.
- Labels while the person drives are the commands that were sent.
- Frames have the weights of the configuration, the window's loss follows them.
- Labels by the policy's own chunks are refused for a bag with a take-over.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from robovlms_ros.config.training import CorrectionsConfig
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.heads.discrete import ActionTokenizer
from robovlms_ros.training.data.episodes import DataError
from robovlms_ros.training.data.open_sources import open_sources
from robovlms_ros.training.data.windows import WindowDataset, frame_weights
from robovlms_ros.training.engine.batches import Collate
from robovlms_ros.training.engine.objective import action_loss, token_loss

TAKEN = 1.0
FIRST = 1.3
BACK = 2.0
"""s: the take-over, the person's first command, the hand-over."""


def take_over(bags, path, chunks: bool = False, human: bool = False):
    """A bag in which the arm's commands pause from the take-over to the person's first command.

    human: the person's messages to the node are recorded, and a stop goes before the first one."""

    def also(bag, tick, now):
        second = tick / 100
        for source, at in (("policy", 0.0), ("human", TAKEN), ("policy", BACK)):
            if second == at:
                fields = {"POLICY": "policy", "HUMAN": "human", "HOLD": "hold", "reason": ""}
                bag._write(
                    "/vla_node/control_source",
                    "robovlms_ros/msg/ControlSource",
                    now,
                    source=source,
                    header=bag._header(now),
                    since=bag._header(now).stamp,
                    **fields,
                )
        if human and (second == FIRST or TAKEN > second > 0.5):
            bag.joints(now, bags.HOME, "/vla_node/human/joint_states")
        if tick % 5 == 0 and (human or not TAKEN <= second < FIRST):
            bag.joints(now, np.append(bags.told(now), 0.04), "/vla_node/commands")
        if chunks and tick == 0:
            bag._write(
                "/vla_node/action_chunk", "robovlms_ros/msg/ActionChunk", now, **chunk(bag, now)
            )

    return bags.write(path, commands=False, also=also)


def chunk(bag, now):
    stamp = bag._header(now).stamp
    return {
        "header": bag._header(now),
        "instruction": "lift the cube",
        "policy_id": "old@1-2-3-4",
        "sequence": 0,
        "step_duration": 0.05,
        "action_space": "joint_position",
        "frame": "base",
        "rotation": "rotation_vector",
        "composition": "chained",
        "dimension_names": [f"n{i}" for i in range(8)],
        "horizon": 1,
        "values": np.zeros(8),
        "image_time": stamp,
        "inference_start": stamp,
        "inference_end": stamp,
    }


def mapping(topic: str = "/vla_node/commands"):
    return {"bag": {"robot": "panda", "topics": {"commands": topic}}}


def test_a_correction_begins_with_the_first_command(bags, tmp_path):
    source = open_sources([take_over(bags, tmp_path / "bag")], bags.config(), mapping())
    arrays = source.arrays(0)
    seconds = (arrays.stamps_ns - bags.BEGIN) / NANOSECONDS
    person = arrays.takeover == 0
    assert np.array_equal(person, (seconds >= FIRST) & (seconds < BACK))
    assert np.allclose(arrays.takeover[seconds < FIRST], FIRST - seconds[seconds < FIRST])
    assert np.isinf(arrays.takeover[seconds >= BACK]).all()
    commanded = np.stack([bags.told(int(stamp)) for stamp in arrays.stamps_ns[person]])
    assert np.allclose(arrays.actions[person][:, :7], commanded)


def test_a_stop_before_the_first_command_is_no_correction(bags, tmp_path):
    bag = take_over(bags, tmp_path / "bag", human=True)
    for commands in ("/vla_node/commands", "motion"):
        arrays = open_sources([bag], bags.config(), mapping(commands)).arrays(0)
        seconds = (arrays.stamps_ns - bags.BEGIN) / NANOSECONDS
        assert np.array_equal(arrays.takeover == 0, (seconds >= FIRST) & (seconds < BACK))


def test_frames_have_their_weights(bags, tmp_path):
    config = bags.config(training={"corrections": {"person": 4.0, "before": 0.5, "seconds": 0.4}})
    source = open_sources([take_over(bags, tmp_path / "bag")], config, mapping())
    data = WindowDataset(source, [0], config)
    weights = np.array([data[i]["weight"][-1] for i in range(len(data))])
    arrays = source.arrays(0)
    assert np.array_equal(weights, frame_weights(arrays, config.training.corrections)[1:])
    assert weights.tolist().count(0.5) == 8 and set(weights) == {0.5, 1.0, 4.0}
    assert set(frame_weights(replace(arrays, takeover=None), CorrectionsConfig())) == {1.0}
    batch = Collate(config, 28)([data[0], data[len(data) - 1]])
    assert batch["weight"].shape == (2, 2) and batch["weight"].dtype == torch.float32


def test_chunks_of_the_policy_are_no_labels_of_a_person(bags, tmp_path):
    bag = take_over(bags, tmp_path / "bag", chunks=True)
    with pytest.raises(
        DataError, match="a person took over, and data.bag.topics.commands names the policy's"
    ):
        open_sources([bag], bags.config(), mapping("/vla_node/action_chunk"))


def test_the_policy_of_a_bag_is_known(bags, tmp_path):
    bag = take_over(bags, tmp_path / "bag", chunks=True)
    assert list(open_sources([bag], bags.config(), mapping()).policies) == ["old@1-2-3-4"]


def test_the_loss_follows_the_weights():
    generator = torch.Generator().manual_seed(0)
    output = HeadOutput(
        torch.randn(2, 3, 4, 6, generator=generator), torch.randn(2, 3, 4, 1, generator=generator)
    )
    arm = torch.zeros(2, 3, 4, 6)
    gripper = torch.zeros(2, 3, 4)
    weight = torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    rows = [
        action_loss(
            HeadOutput(output.arm[:, i : i + 1], output.gripper_logits[:, i : i + 1]),
            arm[:, i : i + 1],
            gripper[:, i : i + 1],
        ).steps.mean(dim=(1, 2))
        for i in range(3)
    ]
    wanted = (torch.stack(rows, dim=1) * weight).mean()
    assert torch.allclose(action_loss(output, arm, gripper, weight=weight).arm, wanted)
    plain = action_loss(output, arm, gripper)
    assert torch.equal(action_loss(output, arm, gripper, weight=torch.ones(2, 3)).arm, plain.arm)


def test_tokens_follow_the_weights():
    tokens = ActionTokenizer(100, 5, 32)
    labels = torch.full((2, 8), -100)
    labels[:, 1:] = torch.from_numpy(tokens.encode(np.zeros(7)))
    logits = torch.randn(2, 8, 100, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([[2.0], [0.0]]).expand(2, 8)
    alone = token_loss(logits[:1], labels[:1], tokens).cross_entropy
    assert torch.allclose(token_loss(logits, labels, tokens, weight=weight).cross_entropy, alone)


def test_weights_are_checked():
    with pytest.raises(ConfigError, match=r"training.corrections.before = -1: must be 0 to 100"):
        CorrectionsConfig(before=-1)
