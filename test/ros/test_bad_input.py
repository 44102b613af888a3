"""Bad input to a running node, over the real middleware. Whatever comes in wrong: the arm is commanded to a smooth stop
that its controller accepts, then nothing more; the status says what is wrong; the node goes on when the cause is gone.
"""

import math

import numpy as np
import pytest

pytestmark = pytest.mark.ros


def edit(**changes):
    """A quirk that overwrites fields of a message."""
    def apply(message):
        for name, value in changes.items():
            setattr(message, name, value)
        return message
    return apply


def edit_joints(change):
    def apply(message):
        names, positions = list(message.name), list(message.position)
        change(names, positions)
        message.name, message.position, message.velocity = names, positions, []
        return message
    return apply


def drop_joint(names, positions):
    index = names.index("panda_joint4")
    del names[index], positions[index]


def spoil_joint(names, positions):
    positions[names.index("panda_joint2")] = math.nan


CASES = {
    "unsupported encoding": ("static", edit(encoding="16UC1"), "depth image"),
    "lying encoding": ("static", edit(encoding="rgba8"), "shorter than a row"),
    "step smaller than the row": ("wrist", edit(step=95), "step = 95"),
    "truncated data": ("wrist", lambda m: edit(data=m.data[:-1])(m), "truncated"),
    "zero size": ("static", edit(width=0, height=0), "empty"),
    "camera stops": ("wrist", lambda message: None, "camera wrist stopped"),
    "joint states stop": ("joint_states", lambda message: None, "joint_states"),
    "joint missing": ("joint_states", edit_joints(drop_joint), "'panda_joint4' is missing"),
    "nan in joint states": ("joint_states", edit_joints(spoil_joint), "'panda_joint2' is nan"),
}


@pytest.mark.parametrize("case", CASES)
def test_holds_says_why_and_recovers(live, case):
    topic, quirk, says = CASES[case]
    live.run()
    live.arm.quirks[topic] = quirk
    try:
        live.held("holding", says)
        live.wait_for(lambda: says in live.listener.status.last_stop, live.listener.said)
    finally:
        live.arm.quirks.clear()
    live.listener.wait_state("running")
    assert not live.arm.rejected


def pad_rows(message):
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    message.step += 8
    message.data = np.pad(rows, ((0, 0), (0, 8))).tobytes()
    return message


def test_step_larger_than_the_row_is_accepted(live):
    live.run()
    live.arm.quirks["static"] = pad_rows
    try:
        chunks = len(live.listener.chunks)
        live.wait_for(lambda: len(live.listener.chunks) > chunks + 3, "chunks from padded images")
        live.listener.wait_state("running")
    finally:
        live.arm.quirks.clear()


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), ("  ", "is empty"), ("lift " * 2000, "9999 characters")])
def test_bad_instruction(live, text, says):
    live.run()
    live.listener.instruct(text)
    live.held("holding", says)
    live.run()


def test_instruction_of_unknown_words(live):
    live.run()
    live.listener.instruct("fold the laundry")
    live.held("holding", "fold")
    live.run()


def test_a_jpeg_that_does_not_decode(make_graph):
    graph = make_graph(camera__wrist__transport="compressed")
    graph.activate()
    graph.run()
    graph.arm.quirks["jpeg"] = lambda message: edit(data=message.data[: len(message.data) // 2])(message)
    graph.held("holding", "does not decode")
    graph.arm.quirks.clear()
    graph.listener.wait_state("running")


def test_a_gripper_joint_that_nobody_publishes_is_named(make_graph, tmp_path):
    """A policy that takes the gripper's opening, beside a driver that leaves the joint out."""
    from ros_graph import TINY

    from robovlms_ros.checkpoints.checkpoint import build_policy, save_policy
    from robovlms_ros.config.policy import config_from_mapping

    config = config_from_mapping({**TINY, "proprioception": {"names": ["gripper"]}})
    graph = make_graph(checkpoint=str(save_policy(build_policy(config, seed=3), tmp_path / "gripper")))
    joint = graph.arm.robot.gripper.joint

    def without(message):
        message.name, message.position, message.velocity = message.name[:-1], message.position[:-1], []
        return message

    graph.arm.quirks["joint_states"] = without
    graph.activate()
    graph.listener.instruct("lift the red cube")
    text = f"joint '{joint}' is in no message on /{graph.namespace}/joint_states, and the policy takes the gripper's"
    graph.listener.wait_state("waiting", text)
    assert not graph.arm.commands
    graph.arm.quirks.clear()
    graph.run()
