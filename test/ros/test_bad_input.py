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
        live.listener.wait_state("holding", says)
        assert says in live.listener.status.last_stop
        last = live.arm.commands[-1][1]
        assert live.is_quiet()
        assert live.arm.commands[-1][1] is last, "the stop is the last thing that was sent"
        assert np.allclose(last.points[-1].velocities, 0.0)
        assert np.ptp([p.positions for p in last.points[-2:]], axis=0).max() < 0.01
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
    chunks = len(live.listener.chunks)
    live.wait_for(lambda: len(live.listener.chunks) > chunks + 3, "chunks from padded images")
    live.listener.wait_state("running")
    live.arm.quirks.clear()


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), ("  ", "is empty"), ("lift " * 2000, "9999 characters")])
def test_bad_instruction(live, text, says):
    live.run()
    live.listener.instruct(text)
    live.listener.wait_state("holding", says)
    assert live.is_quiet()
    live.run()


def test_instruction_of_unknown_words(live):
    live.run()
    live.listener.instruct("fold the laundry")
    live.listener.wait_state("holding", "fold")
    assert live.is_quiet()
    live.run()


def test_a_jpeg_that_does_not_decode(make_graph):
    graph = make_graph(camera__wrist__transport="compressed")
    graph.activate()
    graph.run()
    graph.arm.quirks["jpeg"] = lambda message: edit(data=message.data[: len(message.data) // 2])(message)
    graph.listener.wait_state("holding", "does not decode")
    assert graph.is_quiet()
    graph.arm.quirks.clear()
    graph.listener.wait_state("running")
