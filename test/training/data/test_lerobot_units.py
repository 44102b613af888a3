"""LeRobot's degrees and percent of an SO-101 in the radians of its driver.

- Both units, with a driver whose zeros are not the ranges' middles, are within half a tick of the
  motion that was recorded; so are states, an inverted motor, a driver that counts the other way,
  and columns in another order.
- A bag of the driver's radians and the folder of the same motion are the same training data: the
  bag's mapping is that of `robovlms eval` and the node.
- Degrees need no calibration where the driver's zeros are in the middle; the gripper takes its
  whole range then.
- With `zero: middle` the gripper is closed at 0 percent, whatever its ticks.
- The measured states' grid of ticks contradicts the wrong unit and the calibration of another
  arm; numbers on no grid contradict nothing.
- Errors name value, place, what is allowed and the remedy: a missing motor, an empty range, ticks
  that are none, a missing file, other joint names, percent without a calibration, a scale beside
  units, another action space.
- --inspect shows the range of each joint beside the limits, and names a joint beyond them;
  training on it is refused.
- The preflight names planning limits beyond the calibrated range, and the driver's zeros.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("pyarrow")
pytest.importorskip("av")
pytest.importorskip("pinocchio")

from robovlms_ros.bench.so101.episode import (
    CALIBRATION,
    CAMERA,
    CLOSED,
    DRIVER_ZERO,
    INSTRUCTION,
    OPEN,
    RATE,
    as_recorded,
    scripted_episode,
    write_folder,
    write_robot,
)
from robovlms_ros.cli.main import main
from robovlms_ros.control.lerobot_units import recorded_units
from robovlms_ros.control.preflight import check_calibration
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.training.data.checks import check_data, require_trainable
from robovlms_ros.training.data.episodes import DataError
from robovlms_ros.training.data.sources.tick_grid import percent_width, seen_units
from robovlms_ros.training.runs import open_data, read_run, robot_of

HALF_A_TICK = np.pi / 4096 + 1e-6
UNITS = ("percent", "degrees")


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """A folder with the robot's YAML, its calibration, and an episode in each unit."""
    folder = tmp_path_factory.mktemp("so101")
    robot = load_robot(write_robot(folder))
    for units in UNITS:
        write_folder(folder / units, robot, units)
    return folder


def run_of(robot, units, **block):
    run = read_run(share_directory() / "config/train/so101.yaml")
    return replace(run, data={"lerobot": {"robot": str(robot), "units": units, **block}})


def read(folder, units, robot=None, **block):
    run = run_of(robot or folder / "my_so101.yaml", units, **block)
    return open_data([folder / units], run, lambda line: None)[0]


def changed_robot(arm, tmp_path, change, calibration=None):
    """The arm's YAML, changed, with a calibration file of its own."""
    robot = yaml.safe_load((arm / "my_so101.yaml").read_text())
    change(robot)
    table = json.loads((arm / "my_arm.json").read_text())
    if calibration is not None:
        calibration(table)
    (tmp_path / "my_arm.json").write_text(json.dumps(table))
    path = tmp_path / "my_so101.yaml"
    path.write_text(yaml.safe_dump(robot))
    return path


def keep(robot):
    pass


@pytest.mark.parametrize("units", UNITS)
def test_recorded_numbers_are_the_drivers_radians(arm, units):
    source = read(arm, units)
    arrays = source.arrays(0)
    episode = scripted_episode()
    pose = next(note for note in source.notes if "first frame's state" in note)
    assert "shoulder_lift -1.000, elbow_flex 1.000" in pose
    assert np.abs(arrays.actions[:, :5] - episode.commanded[:, :5]).max() < HALF_A_TICK
    assert np.abs(arrays.proprioception[:, :5] - episode.measured[:, :5]).max() < HALF_A_TICK
    jaw = np.clip((episode.commanded[:, 5] - CLOSED) / (OPEN - CLOSED), 0.0, 1.0)
    assert np.abs(arrays.actions[:, 5] - jaw).max() < 2e-3
    assert arrays.actions[:, 5].min() < 0.01 and arrays.actions[:, 5].max() > 0.99


def test_an_inverted_motor_and_a_driver_that_counts_the_other_way(arm, tmp_path):
    def invert(table):
        table["elbow_flex"]["drive_mode"] = 1

    def turn(robot):
        robot["lerobot"]["sign"] = [1, -1, 1, 1, 1, 1]

    straight = load_robot(arm / "my_so101.yaml")
    bent = load_robot(changed_robot(arm, tmp_path, turn, invert))
    for units, inverted in (
        ("percent", -1.0),
        ("degrees", 1.0),
    ):  # LeRobot's degrees ignore drive_mode
        a = recorded_units(straight, units)
        b = recorded_units(bent, units)
        assert np.allclose(b.scale, a.scale * [1, -1, inverted, 1, 1])
        assert np.allclose(b.offset, a.offset * [1, -1, 1, 1, 1])


def test_degrees_without_a_calibration_are_about_the_middle(arm):
    source = read(arm, "degrees", "so101")
    actions = source.arrays(0).actions
    middles = np.array([sum(ends) / 2 for ends in CALIBRATION.values()])[:5]
    shift = (middles - DRIVER_ZERO) * 2 * np.pi / 4096
    assert np.abs(actions[:, :5] + shift - scripted_episode().commanded[:, :5]).max() < HALF_A_TICK
    jaw = as_recorded(scripted_episode().commanded, "degrees")[:, 5] / 100
    assert np.abs(actions[:, 5] - jaw).max() < 1e-4
    assert any("no calibration needed" in note for note in source.notes)


def test_the_gripper_is_closed_at_its_lower_end_with_the_zero_in_the_middle(arm, tmp_path):
    def middle(robot):
        robot["lerobot"]["zero"] = "middle"

    numbers = recorded_units(load_robot(changed_robot(arm, tmp_path, middle)), "percent")
    low, high = CALIBRATION["gripper"]
    assert numbers.gripper_closed == pytest.approx(0.0, abs=1e-9)
    assert numbers.gripper_open == pytest.approx(
        100 * (OPEN - CLOSED) * 4096 / (2 * np.pi) / (high - low)
    )
    assert np.allclose(numbers.offset, 0.0)


def test_columns_are_found_by_name(arm, tmp_path):
    import pyarrow.parquet as pq

    folder = tmp_path / "percent"
    write_folder(folder, load_robot(arm / "my_so101.yaml"), "percent")
    info = json.loads((folder / "meta/info.json").read_text())
    order = [5, 2, 0, 4, 1, 3]
    for feature in ("action", "observation.state"):
        names = info["features"][feature]["names"]
        info["features"][feature]["names"] = {
            "motors": [names[i] for i in order]
        }  # as version 2 writes it
    (folder / "meta/info.json").write_text(json.dumps(info))
    for path in folder.glob("data/*/*.parquet"):
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            for feature in ("action", "observation.state"):
                row[feature] = [row[feature][i] for i in order]
        import pyarrow as pa

        pq.write_table(pa.Table.from_pylist(rows), path)
    mixed = read(tmp_path, "percent", arm / "my_so101.yaml").arrays(0)
    plain = read(arm, "percent").arrays(0)
    assert np.array_equal(mixed.actions, plain.actions)
    assert np.array_equal(mixed.proprioception, plain.proprioception)


def test_the_wrong_unit_is_refused_by_the_grid_of_ticks(arm):
    for units, folder, text in (
        ("degrees", "percent", "elbow_flex are percent of a range of 2207 ticks"),
        ("percent", "degrees", "elbow_flex are degrees"),
    ):
        source = open_data([arm / folder], run_of(arm / "my_so101.yaml", units), lambda line: None)[
            0
        ]
        flaw = next(flaw for flaw in source.flaws if flaw.kind == "calibration")
        assert flaw.refuse and text in flaw.text and f"set units: {folder}" in flaw.remedy
    assert not read(arm, "percent").flaws and not read(arm, "degrees").flaws


def test_the_calibration_of_another_arm_is_refused(arm, tmp_path):
    def other(table):
        table["elbow_flex"]["range_max"] -= 60
        table["gripper"]["range_max"] += 100

    robot = changed_robot(arm, tmp_path, keep, other)
    flaw = next(flaw for flaw in read(arm, "percent", robot).flaws if flaw.kind == "calibration")
    assert flaw.refuse and "calibrated since" in flaw.remedy
    assert "elbow_flex are percent of a range of 2207 ticks, not of 2147" in flaw.text
    assert "gripper are percent of a range of 1386 ticks, not of 1486" in flaw.text


def test_states_without_names_are_not_compared(arm, tmp_path):
    folder = tmp_path / "percent"
    write_folder(folder, load_robot(arm / "my_so101.yaml"), "percent")
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["observation.state"]["names"] = None
    (folder / "meta/info.json").write_text(json.dumps(info))
    run = run_of(arm / "my_so101.yaml", "percent")
    with pytest.raises(DataError, match=r"'observation.state' has no column 'shoulder_pan.pos'"):
        open_data([folder], run, lambda line: None)
    blind = replace(run, config=replace(run.config, proprioception=None))
    source = open_data([folder], blind, lambda line: None)[0]
    assert any("were not compared with the units" in note for note in source.notes)
    columns = {"joint_positions": [9, 1, 2, 3, 4], "gripper": [5]}
    with pytest.raises(ConfigError, match=r"joint_positions = \[9, 1, 2, 3, 4\]: .* has 6 columns"):
        read(tmp_path, "percent", arm / "my_so101.yaml", proprioception=columns).arrays(0)


def test_numbers_on_no_grid_have_no_unit():
    rng = np.random.default_rng(0)
    states = rng.uniform(-90, 90, (300, 6))
    assert percent_width(states[:, 0], jaw=False) is None
    assert seen_units(states, [*CALIBRATION]) == ""
    assert (
        seen_units(
            as_recorded(np.cumsum(rng.uniform(0, 0.01, (300, 6)), axis=0), "degrees"),
            [*CALIBRATION],
        )
        == "degrees"
    )


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (
            lambda t: t.pop("elbow_flex"),
            r"my_arm.json: motor 'elbow_flex' is missing; the file has shoulder_pan, .*must "
            r"hold every motor.*Calibrate the arm again.*`lerobot.motors`",
        ),
        (
            lambda t: t.update(elbow=t.pop("elbow_flex")),
            r"motor 'elbow_flex' is missing.*Did you mean 'elbow'\?",
        ),
        (
            lambda t: t["wrist_flex"].update(range_max=851),
            r"'wrist_flex' has range_min = 851 and range_max = 851: range_min "
            r"must be below range_max. Calibrate",
        ),
        (
            lambda t: t["gripper"].update(range_min=5000),
            r"range_min of 'gripper' = 5000: must be a whole number from 0 to "
            "4095",
        ),
        (
            lambda t: t["gripper"].update(range_min="low"),
            r"range_min of 'gripper' = 'low': must be a whole number",
        ),
        (
            lambda t: t["shoulder_pan"].update(drive_mode=2),
            r"drive_mode of 'shoulder_pan' = 2: must be 0 or 1",
        ),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(arm, tmp_path, calibration, message):
    path = changed_robot(arm, tmp_path, keep, calibration)
    with pytest.raises(ConfigError, match=message):
        load_robot(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["lerobot"].update(calibration="other.json"), r"other.json: cannot be read"),
        (
            lambda r: r["lerobot"].update(zero=[2048, 2048]),
            r"lerobot.zero has 2 values: must have 1 or 6",
        ),
        (
            lambda r: r["lerobot"].update(zero=[9000]),
            r"lerobot.zero = .*9000.*must be `middle`, or ticks from 0 to 4095",
        ),
        (lambda r: r["lerobot"].update(sign=[0]), r"lerobot.sign = .*must be 1 or -1"),
        (
            lambda r: r["lerobot"].update(motors=["a", "b"]),
            r"lerobot.motors has 2 values: must have 0 or 6",
        ),
        (
            lambda r: r.update(lerobot={"zero": [2048]}),
            r"lerobot.zero = .*`middle` without `calibration`",
        ),
        (
            lambda r: r["lerobot"].update(calibraton="x"),
            r"unknown key 'calibraton'.*Did you mean 'calibration'",
        ),
    ],
)
def test_a_block_that_does_not_fit_is_refused(arm, tmp_path, change, message):
    path = changed_robot(arm, tmp_path, change)
    with pytest.raises(ConfigError, match=message):
        load_robot(path)


def test_declarations_that_do_not_fit_are_refused(arm, tmp_path):
    with pytest.raises(
        ConfigError, match=r"robot 'so101': lerobot.calibration is missing.*~/.cache/huggingface"
    ):
        read(arm, "percent", "so101")
    with pytest.raises(
        ConfigError, match=r"data.lerobot.scale and units = 'percent' declare the same twice"
    ):
        read(arm, "percent", scale=[0.01])
    with pytest.raises(
        ConfigError, match=r"data.lerobot.gripper_open and units = 'percent' declare the same twice"
    ):
        read(arm, "percent", gripper_open=50.0)
    renamed = changed_robot(
        arm,
        tmp_path,
        lambda r: r.update(joints=[f"{j}_joint" for j in r["joints"]]),
        lambda t: t.update({f"{j}_joint": entry for j, entry in list(t.items())}),
    )
    with pytest.raises(
        DataError, match=r"'action' has no column 'shoulder_pan_joint.pos'.*`lerobot.motors`"
    ):
        read(arm, "percent", renamed)
    named = changed_robot(
        arm,
        tmp_path,
        lambda r: (
            r.update(joints=[f"{j}_joint" for j in r["joints"]]),
            r["lerobot"].update(motors=[*CALIBRATION]),
        ),
    )
    assert np.array_equal(
        read(arm, "percent", named).arrays(0).actions, read(arm, "percent").arrays(0).actions
    )


def test_inspection_shows_ranges_beside_limits(arm, tmp_path, capsys):
    config = tmp_path / "train.yaml"
    shipped = share_directory() / "config/train/so101.yaml"
    block = {"robot": str(arm / "my_so101.yaml"), "units": "percent"}
    config.write_text(yaml.safe_dump({"base": str(shipped), "data": {"lerobot": block}}))
    command = [
        "train",
        "--config",
        str(config),
        "--data",
        str(arm / "percent"),
        "--inspect",
        "--output",
    ]
    assert main([*command, str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    row = next(line.split() for line in text.splitlines() if line.startswith("shoulder_lift "))
    assert np.allclose([float(x) for x in row[1:]], [-1.0, -0.12, -1.74, 1.74], atol=5e-3)
    page = (tmp_path / "out/inspection.html").read_text()
    assert "planning limits" in page and "shoulder_lift" in page


def test_a_wrong_sign_leaves_the_limits_and_is_named(arm, tmp_path):
    def turn(robot):
        robot["lerobot"]["sign"] = [1, 1, -1, 1, 1, 1]
        robot["limits"]["position_lower"][2] = -0.5

    run = run_of(changed_robot(arm, tmp_path, turn), "percent")
    source, _ = open_data([arm / "percent"], run, lambda line: None)
    flaws, summary = check_data(source, run.config, robot=robot_of(run))
    assert [flaw.kind for flaw in flaws if flaw.refuse] == ["limits"]
    assert summary.ranges[2].excess > 0.4
    with pytest.raises(
        DataError,
        match=r"'elbow_flex' goes from -\d.* the limits of robot 'so101' are -0.500 to 1.69",
    ):
        require_trainable(flaws)


def test_the_preflight_compares_limits_with_the_calibrated_range(arm, tmp_path):
    found = check_calibration(load_robot(arm / "my_so101.yaml"))
    assert found.level == "warning" and "report 0 rad at tick shoulder_pan 2048" in found.text
    assert "shoulder_lift (limits -1.740 to 1.740, calibrated -1.813 to 1.706 rad)" in found.text
    assert "shoulder_pan (" not in found.text

    def tighten(robot):
        robot["limits"]["position_upper"][1] = 1.7
        robot["limits"]["position_upper"][2] = 1.6

    assert check_calibration(load_robot(changed_robot(arm, tmp_path, tighten))).level == "ok"
    assert check_calibration(load_robot("so101")) is None


def test_the_shipped_robot_and_configuration_fit_each_other():
    run = read_run(share_directory() / "config/train/so101.yaml")
    robot = robot_of(run)
    assert run.config.action.names == robot.motor_joints
    assert run.config.action.robot == robot.name
    assert Path(robot.description_path).is_file()


def write_bag(bags, path):
    """The scripted episode as a bag of the driver: radians, a leader's set points, 30 Hz."""
    episode = scripted_episode()
    kind = "sensor_msgs/msg/JointState"
    with bags.Script(path) as bag:
        bag.text("/instruction", bags.BEGIN, INSTRUCTION)
        for t in range(len(episode.commanded)):
            now = bags.BEGIN + t * NANOSECONDS // RATE
            for topic, rows in (
                ("/joint_states", episode.measured),
                ("/leader/joint_states", episode.commanded),
            ):
                bag._write(
                    topic,
                    kind,
                    now,
                    header=bag._header(now),
                    name=[*CALIBRATION],
                    position=rows[t],
                    velocity=np.empty(0),
                    effort=np.empty(0),
                )
            bag.image(f"/{CAMERA}/image_raw", now)
    return path


def test_a_bag_of_the_driver_and_a_folder_of_lerobot_are_the_same_data(arm, bags, tmp_path):
    run = run_of(arm / "my_so101.yaml", "percent")
    block = {"robot": str(arm / "my_so101.yaml")}
    topics = {"commands": "/leader/joint_states"}
    run = replace(run, data={**run.data, "bag": {**block, "topics": topics}})
    bag = write_bag(bags, tmp_path / "bag")
    driver = open_data([bag], run, lambda line: None)[0].arrays(0)
    folder = open_data([arm / "percent"], run, lambda line: None)[0].arrays(0)
    count = len(driver)
    assert count > 250
    assert np.abs(driver.actions[:, :5] - folder.actions[:count, :5]).max() < HALF_A_TICK
    assert np.abs(driver.proprioception[:, :5] - folder.proprioception[:count, :5]).max() < 2e-3
    assert np.array_equal(driver.actions[:, 5] > 0.5, folder.actions[:count, 5] > 0.5)
    assert driver.instruction == folder.instruction
