"""Rosbags that cannot be trained on: refused with the place and a remedy.

- No command topic, cameras that are apart, a camera slower than the steps, no instruction: refused when opened.
- Commands that are not finite and clock jumps are flaws that forbid training.
- What is no data at all, and names that nobody knows.
"""

from typing import Any

import numpy as np
import pytest

from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.training.data.episodes import DataError
from robovlms_ros.training.data.open_sources import open_sources


@pytest.mark.parametrize(("written", "cameras", "message"), [
    ({"commands": False}, ("static",), "no topic with commands"),
    ({"cameras": ("static", "wrist"), "offset": 25_000_000}, ("static", "wrist"), "not synchronised.*25 ms"),
    ({"rate": 10}, ("static",), "ran at 10 Hz"),
    ({"instruction": None}, ("static",), "instruction"),
])
def test_refused_with_the_reason(bags, tmp_path, written, cameras, message):
    path = bags.write(tmp_path / "bag", 2.0, **written)
    with pytest.raises(DataError, match=message) as error:
        open_sources([path], bags.config(cameras=cameras), bags.MAPPING)
    assert str(path) in str(error.value)


def test_a_gripper_that_the_joint_states_name_otherwise(bags, tmp_path):
    """Unknown parts of the actions are named, with the joint that the robot's YAML expects."""
    import yaml

    from robovlms_ros.core.resources import find
    from robovlms_ros.core.schema import read_mapping

    panda = find("panda", "config/robots")
    other = read_mapping(panda)
    other["gripper"]["joint"] = "robotiq_85_left_knuckle_joint"
    other["description"]["file"] = str(panda.parent / "panda.urdf")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    path = bags.write(tmp_path / "bag", 2.0)
    mapping = {"bag": {**bags.MAPPING["bag"], "robot": str(tmp_path / "other.yaml")}}
    says = "no joint state names the gripper's joint 'robotiq_85_left_knuckle_joint'.*gripper.joint"
    with pytest.raises(DataError, match=says):
        open_sources([path], bags.config(), mapping)
    says = r"data\.bag\.robot: 'nowhere' is neither.*path of your robot's YAML"
    with pytest.raises(ConfigError, match=says):
        open_sources([path], bags.config(), {"bag": {**bags.MAPPING["bag"], "robot": "nowhere"}})


def test_flaws_that_forbid_training(bags, tmp_path):
    def also(bag: Any, tick: int, now: int) -> None:
        if tick == 52:
            bag.joints(now, np.append(np.full(7, np.nan), 0.0), "/leader/joint_states")

    source = open_sources([bags.write(tmp_path / "nan", also=also)], bags.config(), bags.MAPPING)
    assert [flaw.kind for flaw in source.flaws if flaw.refuse] == ["nan"]
    assert "0.52 s" in source.flaws[0].text
    with bags.Script(tmp_path / "jump") as bag:
        bag.text("/instruction", bags.BEGIN, "lift the cube")
        for begin in (bags.BEGIN, bags.BEGIN - 60 * NANOSECONDS):
            for tick in range(200):
                now = begin + tick * NANOSECONDS // 100
                bag.joints(now, np.append(bags.told(now), 0.0))
                if tick % 5 == 0:
                    bag.joints(now, np.append(bags.told(now), 0.0), "/leader/joint_states")
                    bag.image("/static/image_raw", now)
    source = open_sources([tmp_path / "jump"], bags.config(), bags.MAPPING)
    assert len(source) == 2 and [flaw.kind for flaw in source.flaws if flaw.refuse] == ["clock"]


def test_what_is_not_data_or_not_known(bags, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither a rosbag"):
        open_sources([tmp_path / "empty"], bags.config(), bags.MAPPING)
    with pytest.raises(DataError, match="does not exist"):
        open_sources([tmp_path / "nothing"], bags.config(), bags.MAPPING)
    path = bags.write(tmp_path / "bag", 1.0)
    with pytest.raises(ConfigError, match=r"data.bag: unknown key 'robots'.*'robot'"):
        open_sources([path], bags.config(), {"bag": {"robots": "panda"}})
    with pytest.raises(ConfigError, match=r"data.bag.robot is missing"):
        open_sources([path], bags.config())
    with pytest.raises(DataError, match="exclude"):
        open_sources([path], bags.config(), {**bags.MAPPING, "exclude": ["another"]})
    with pytest.raises(DataError, match="no episode is left"):
        open_sources([path], bags.config(), {**bags.MAPPING, "exclude": [f"{path}, episode 0"]})
