"""The benchmark of take-overs: one scene, the scripted expert as policy and as person.

- A person's messages move the simulated arm; the policy commands before and after.
- No frame is lost; the same scene gives the same numbers.
- The steps at both hand-overs are of the size of the policy's own.
- The page has the table and the command that writes it.
"""

import json

import pytest

pytest.importorskip("rclpy")

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def stage(ros):
    from robovlms_ros.bench.handover import HandoverStage

    stage = HandoverStage("")
    yield stage
    stage.close()


def test_a_take_over(stage):
    import numpy as np

    from robovlms_ros.bench.handover import TakeOver

    alone = stage.run("push", 1, None)
    assert alone.success_s is not None and alone.lost == 0 and alone.person_commands == 0
    take_over = TakeOver(1.0, 0.8)
    first = stage.run("push", 1, take_over)
    again = stage.run("push", 1, take_over)
    np.testing.assert_array_equal(first.commands, again.commands)
    assert first.person_commands == pytest.approx(0.8 * 20, abs=1)
    assert first.success_s is not None
    assert first.lost == 0 and first.frames > 30
    assert first.back_s < 0.3, "the policy commands before the person's last motion ends"
    np.testing.assert_array_equal(
        alone.commands[: first.begin_tick], first.commands[: first.begin_tick]
    )
    largest = alone.peaks()[0]
    for tick in (first.begin_tick, first.back_tick):
        assert first.peaks(tick, tick + 500)[0] < 2 * largest


def test_the_command(tmp_path, capsys, ros):
    from robovlms_ros.cli.main import main

    page = tmp_path / "handover.md"
    numbers = tmp_path / "handover.json"
    arguments = ["--take-overs", "1", "--checkpoint", "", "--markdown", str(page)]
    assert main(["bench", "handover", *arguments, "--json", str(numbers)]) in (0, 1)
    found = json.loads(numbers.read_text())
    assert found["take_overs"] == len(found["rows"]) == 1
    assert found["lost_frames"] == 0 and found["person_commands"] > 5
    text = page.read_text(encoding="utf-8")
    assert "bench handover --take-overs 1" in text and "| worst command step" in text
    assert "worst acceleration" in capsys.readouterr().out
    assert main(["bench", "handover", "--take-overs", "0"]) == 1
