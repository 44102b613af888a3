"""Golden answers of the ROS layer: messages on the wire, made of fixed values."""

from typing import Any

import api
import golden_inputs as inputs
import numpy as np
from golden_inputs import MILLISECOND, SECOND, STEP, Answers

CHUNK: Answers = {
    "stamp_ns": 12 * SECOND + 345_678_901,
    "values": np.arange(21.0).reshape(3, 7) / 7.0 - 1.0,
    "spec": ["eef_delta", "tool", "euler_xyz_extrinsic", "from_observation", STEP],
    "names": ["x", "y", "z", "rx", "ry", "rz", "gripper"],
    "instruction": "lift the red cube, bitte schön",
    "policy_id": "paligemma lstm golden",
    "sequence": 41,
    "timing": [12 * SECOND, 12 * SECOND + 5, 13 * SECOND + 999_999_999],
}
STATUS: Answers = {
    "state": "holding",
    "detail": "the image of wrist is 0.7 s old",
    "instruction": "lift\tthe red cube",
    "policy_id": "paligemma lstm golden",
    "path": "fast",
    "dry_run": False,
    "history": (3, 4),
    "history_every": 2,
    "chunks": 123,
    "refusals": 4,
    "authority": 0.35,
    "clamps": 9,
    "last_clamp": "panda_joint1 too fast",
    "last_refusal": "a jump of 0.4 rad",
    "last_refusal_ns": 11 * SECOND + 7,
    "last_stop": "paused",
    "last_stop_ns": 10 * SECOND + 1,
    "reaction": [0.11, 0.12, 0.3, 0.09],
    "inference": [0.05, 0.06, 0.07],
    "watched": {"camera static": "", "camera wrist": "no image for 0.7 s", "joint states": ""},
}
ADAPTERS: dict[str, Answers] = {
    "trajectory": {
        "controller": {"type": "joint_trajectory", "topic": "arm"},
        "gripper": {
            "type": "one_joint_trajectory",
            "topic": "hand",
            "joint": "finger",
            "open_position": 0.04,
            "closed_position": 0.0,
        },
    },
    "forward": {
        "controller": {"type": "forward_position", "topic": "arm", "rate": 50.0},
        "gripper": {
            "type": "float64_multi_array",
            "topic": "hand",
            "joint": "finger",
            "open_position": 0.04,
            "closed_position": 0.0,
        },
    },
    "pose": {
        "controller": {"type": "cartesian_pose", "topic": "arm", "rate": 50.0},
        "gripper": {
            "type": "float64_multi_array",
            "topic": "hand",
            "joint": "finger",
            "open_position": 0.04,
            "closed_position": 0.0,
        },
    },
}


def sent_command() -> Answers:
    """A straight move of every joint by 0.1 rad that begins 20 ms after one second."""
    shares = np.linspace(0.0, 1.0, 6)
    smooth = shares**2 * (3.0 - 2.0 * shares)
    speeds = 0.6 * shares * (1.0 - shares)
    return {
        "stamp_ns": SECOND + 20 * MILLISECOND,
        "joints": [f"panda_joint{i}" for i in range(1, 8)],
        "times": shares,
        "positions": inputs.HOME + 0.1 * smooth[:, None],
        "velocities": np.tile(speeds[:, None], (1, 7)),
    }


def wire() -> Answers:
    """Bytes of the ROS layer's messages, and messages of controller adapters; needs rclpy."""
    import rclpy

    answers: Answers = {}
    for name, message in api.messages(CHUNK, sent_command(), STATUS).items():
        kind, data = api.serialized(message)
        answers[name] = {"type": kind, "bytes": np.frombuffer(api.canonical(kind, data), np.uint8)}
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node("golden", context=context)
        for name, blocks in ADAPTERS.items():
            sent = api.adapter_messages(
                node, blocks, sent_command(), SECOND, 100 * MILLISECOND, 14, [1.0, 1.0, 0.0]
            )
            answers[name] = {topic: adapter_answer(given) for topic, given in sent.items()}
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    return answers


def adapter_answer(sent: list[Any]) -> Answers:
    """The messages of one topic, field by field."""
    return {"type": type(sent[0]).__name__, "sent": [plain(message) for message in sent]}


def plain(value: Any) -> Any:
    """A message, or a value inside one, as JSON holds it."""
    if hasattr(value, "get_fields_and_field_types"):
        return {name: plain(getattr(value, name)) for name in value.get_fields_and_field_types()}
    if isinstance(value, str | int | float):
        return value
    return [plain(part) for part in value]
