"""Passport of a policy: hashes of weights, statistics, action convention and controller.

It is a part of `policy_id` in every chunk and status, and so of every bag: NAME@PASSPORT. Parts are
joined by `-` in the order of PARTS. A part is empty where it is not known.
"""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from robovlms_ros.checkpoints.weights import weights_digest
from robovlms_ros.config.policy import PolicyConfig

PARTS = ("weights", "statistics", "action convention", "controller convention")
DIGITS = 8
_NAMES = ("topic", "action", "state_topic", "node", "servo")
"""Fields of a controller's block that name its place in the graph, and no convention."""


def identity(name: str, config: PolicyConfig, weights: Path | None = None) -> str:
    """`policy_id` of a policy. weights: its file. Raises CheckpointError."""
    statistics: dict[str, Any] = {}
    convention: dict[str, Any] = {"steps": config.model.action_chunk_size}
    if config.action is not None:
        convention["action"] = asdict(config.action)
        statistics["action"] = convention["action"].pop("normalization")
    if config.proprioception is not None:
        convention["state"] = asdict(config.proprioception)
        statistics["state"] = [convention["state"].pop(each) for each in ("mean", "std")]
    parts = ["" if weights is None else weights_digest(weights)[:DIGITS], _hash(statistics), _hash(convention), ""]
    return f"{name}@{'-'.join(parts)}"


def with_controller(policy_id: str, robot: Any) -> str:
    """`policy_id` with the controller's part of `robot`; unchanged for one without a passport."""
    parts = _parts(policy_id)
    return f"{policy_id[: policy_id.rindex('-')]}-{_controller(robot)}" if parts else policy_id


def difference(recorded: str, present: str) -> str:
    """A sentence with the parts in which two policies' ids differ; empty where they agree, as far
    as both are known."""
    names = [
        part
        for part, a, b in zip(PARTS, _parts(recorded), _parts(present), strict=False)
        if a and b and a != b
    ]
    if not names:
        return ""
    return f"recorded with {recorded}, which has other {', other '.join(names)} than {present}"


def _parts(policy_id: str) -> list[str]:
    found = policy_id.rpartition("@")[2].split("-") if "@" in policy_id else []
    return found if len(found) == len(PARTS) else []


def _controller(robot: Any) -> str:
    blocks = []
    for block in (robot.controller, robot.gripper):
        given = () if block is None else fields(block)
        blocks.append({f.name: getattr(block, f.name) for f in given if f.name not in _NAMES})
    return _hash([robot.joints, robot.base_frame, robot.eef_frame, blocks])


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
