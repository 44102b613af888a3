"""Commands of another program, by the reference in a trajectory controller's state.

- Labels are the set point at its stamp, linear between messages; nothing is known across a gap.
- The reference is taken where the robot's controller is a trajectory controller, before the topic
  of trajectories, which lacks the goals of an action; the YAML takes the topic instead.
- The field's older name is read; a state without the robot's joints is left, one without a
  definition is named.
- A gripper's controller gives the gripper's commands where its own topic was silent.
"""

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin

from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.training.data.episodes import DataError
from robovlms_ros.training.data.open_sources import open_sources

ARM = "/panda_arm_controller/controller_state"
GRIPPER = "/gripper_controller/controller_state"
TRAJECTORIES = "/panda_arm_controller/joint_trajectory"


@pytest.fixture
def write(bags, controller_states, tmp_path):
    """Writes the usual bag without commands, and a state of `topic` at 50 Hz."""

    def make(
        name="bag",
        topic=ARM,
        field="reference",
        joints=tuple(bags.JOINTS),
        positions=bags.told,
        pause=(0.0, 0.0),
        also=None,
        **options,
    ):
        def states(bag, tick, now):
            seconds = (now - bags.BEGIN) / NANOSECONDS
            if tick % 2 == 0 and not pause[0] < seconds < pause[1]:
                message = controller_states.of(bag.store, field).message(
                    bag._header(now), joints, positions(now)
                )
                bag._write(topic, controller_states.KIND, now + 3_000_000, **vars(message))
            if also is not None:
                also(bag, tick, now)

        return bags.write(tmp_path / name, commands=False, also=states, **options)

    return make


def opened(bags, path, **topics):
    return open_sources([path], bags.config(), {"bag": {"robot": "panda", "topics": topics}})


@pytest.mark.parametrize("field", ["reference", "desired"])
def test_a_label_is_the_set_point_at_its_stamp(bags, write, field):
    source = opened(bags, write(field=field))
    assert any(f"recorded commands: {ARM} (detected)" in note for note in source.notes)
    arrays = source.arrays(0)
    for stamp, chunk, known in zip(arrays.stamps_ns, arrays.chunks, arrays.known, strict=True):
        expected = [bags.told(int(stamp) + (k + 1) * bags.STEP_NS) for k in range(bags.HORIZON)]
        assert np.allclose(chunk[known, :7], np.array(expected)[known], atol=1e-5)
    assert arrays.known[:50].all() and not arrays.known[-1, 1:].any()


def test_nothing_is_known_across_a_gap(bags, write):
    source = opened(bags, write(pause=(1.0, 1.7)))
    known = {
        int(stamp): flags[0]
        for i in range(len(source))
        for stamp, flags in zip(source.arrays(i).stamps_ns, source.arrays(i).known, strict=True)
    }
    last_before = bags.BEGIN + 18 * bags.STEP_NS
    assert known[last_before] and known[bags.BEGIN + 34 * bags.STEP_NS]
    assert not any(known.get(last_before + k * bags.STEP_NS) for k in range(2, 15))


def test_goals_of_an_action_count_beside_trajectories(bags, write):
    def one_trajectory(bag, tick, now):
        if tick == 10:  # of another program, and not what the arm did later
            bag.trajectory(now, [now + bags.STEP_NS], np.array([bags.HOME]))

    path = write(also=one_trajectory)
    source = opened(bags, path)
    assert source.length(0) > 50
    assert any(
        f"`topics: {{commands: {TRAJECTORIES}}}` takes them instead" in note
        for note in source.notes
    )
    by_trajectories = opened(bags, path, commands=TRAJECTORIES)
    assert by_trajectories.length(0) < 30
    assert np.allclose(by_trajectories.arrays(0).actions[2:, :7], bags.HOME)


def test_a_state_of_other_joints_is_not_the_arms(bags, write):
    def trajectories(bag, tick, now):
        if tick % 20 == 0:
            times = [now + k * bags.STEP_NS for k in range(1, 25)]
            bag.trajectory(now, times, np.stack([bags.told(t) for t in times]))

    path = write(
        topic="/left/controller_state",
        joints=("left_1",),
        positions=lambda now: [0.0],
        also=trajectories,
    )
    assert any(
        f"recorded commands: {TRAJECTORIES} (detected)" in note for note in opened(bags, path).notes
    )


def test_a_state_without_a_definition_is_named(bags, write):
    import sqlite3

    path = write(plugin=StoragePlugin.SQLITE3)
    with sqlite3.connect(next(path.glob("*.db3"))) as database:
        database.execute("delete from message_definitions")
    with pytest.raises(
        DataError,
        match=rf"no topic with commands.*{ARM} cannot be read: the bag holds no definition",
    ):
        opened(bags, path)
    assert opened(bags, path, commands="motion").length(0) > 50


def test_the_grippers_controller_where_its_topic_is_silent(bags, write, controller_states):
    def opening(now):
        return min((now - bags.BEGIN) / NANOSECONDS, 1.0)  # a stroke of 1 s

    def gripper(bag, tick, now):
        if tick % 2 == 0:
            message = controller_states.of(bag.store).message(
                bag._header(now), ["panda_finger_joint1"], [0.04 * opening(now)]
            )
            bag._write(GRIPPER, controller_states.KIND, now, **vars(message))

    source = opened(bags, write(also=gripper))
    assert any(f"gripper commands: {GRIPPER} (detected)" in note for note in source.notes)
    assert any(f"recorded commands: {ARM} (detected)" in note for note in source.notes)
    arrays = source.arrays(0)
    openings = [opening(int(stamp) + bags.STEP_NS) for stamp in arrays.stamps_ns]
    assert np.allclose(arrays.actions[:, 7], openings, atol=0.021)
