"""Golden answers of the simulated bag, its evaluation, and the simulated cameras."""

import tempfile
from pathlib import Path
from typing import Any

import api
import golden_inputs as inputs
import numpy as np
from golden_inputs import MILLISECOND, ONE, OTHER, Answers
from golden_store import DIGEST, digest
from numpy.typing import NDArray


def report() -> Answers:
    """Messages of a simulated bag, and `robovlms eval` on it with a shipped checkpoint."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcomes = api.record_bag(folder / "bag", [(7, ONE), (8, OTHER)], 1.6, draw)
        answers: Answers = {"outcomes": outcomes, "bag": bag_answers(folder / "bag")}
        options = [
            "--checkpoint",
            "demo",
            "--latency",
            "0.05",
            "0.2",
            "--threshold",
            "max_against_hold=0.9",
            "--other-instruction",
            OTHER,
            "--no-annotate",
        ]
        code, found, table = api.evaluate(folder / "bag", folder / "report", options)
        for bag in found["bags"]:
            bag["bag"] = Path(bag["bag"]).name
        for evaluated in found["policies"].values():
            del evaluated["inference_ms"]
            thin_samples(evaluated)
        answers["code"] = code
        answers["report"] = found
        answers["table"] = [line.replace(str(folder), "") for line in table.splitlines()[::6]]
    return answers


def thin_samples(evaluated: Answers) -> None:
    """Keep every tenth of a policy's samples for the plots, without their images."""
    evaluated["track"] = evaluated["track"][::10]
    evaluated["fans"] = evaluated["fans"][::20]
    for moment in evaluated["worst"]:
        moment.pop("image", None)
    evaluated["worst"] = evaluated["worst"][:2]


def draw(time_ns: int, camera: str) -> NDArray[np.uint8]:
    """The image of a camera at a time."""
    return inputs.image(time_ns // MILLISECOND + (camera == "wrist"))


def bag_answers(path: Path) -> Answers:
    """Counts and times of every topic; joint states and commands in part."""
    logged: dict[str, list[int]] = {}
    states: list[Any] = []
    lengths: list[int] = []
    targets: list[Any] = []
    for topic, log_ns, message in api.bag_messages(path):
        logged.setdefault(topic, []).append(log_ns)
        if topic.endswith("joint_states"):
            states.append([*message.position, *message.velocity])
        elif topic.endswith("joint_trajectory"):
            lengths.append(len(message.points))
            if len(message.joint_names) > 1:
                targets.append(message.points[-1].positions)
    return {
        "topics": {
            topic: [len(times), times[0], times[-1]] for topic, times in sorted(logged.items())
        },
        "states": np.array(states)[::20],
        "lengths": lengths,
        "targets": np.stack(targets)[::4],
    }


def rendered() -> Answers:
    """Both cameras of a scene of each simulated world, as the means of blocks of 12 x 12 pixels."""
    answers: Answers = {}
    for name, tabletop, seed in (("easy", False, 7), ("tabletop", True, 3)):
        for camera, image in api.rendered(tabletop, seed).items():
            blocks = image.reshape(8, 12, 8, 12, 3).astype(np.float64).mean(axis=(1, 3))
            answers[f"{name}_{camera}"] = {"blocks": blocks.round(2), DIGEST: digest(image)}
    return answers
