"""The streaming benchmark measures what was measured with the real controller's code.

- the usual ways of sending chunks give the means that Jazzy's own trajectory code gave, within 10 %; so does `fade`;
- so it is with the newest controllers, on which the default is as smooth, also while the controller
  is switched;
- the default strategy keeps its thresholds, and its commands are the same whatever the controller's pre-state is;
- a chunk shorter than its latency starves; jitter moves the arm no more than without;
- the JSON holds every row's measures; the exit code is 1 when a threshold is missed.
"""

import json

import numpy as np
import pytest

from robovlms_ros.bench import streaming
from robovlms_ros.bench.stream_senders import DEFAULT, SENDERS
from robovlms_ros.bench.streaming import (
    CONTROLLERS,
    JAZZY,
    MASTER,
    QUICK,
    REFERENCE,
    StreamCondition,
    changing_condition,
    controller_conditions,
    measure,
    missed,
    simulate,
)
from robovlms_ros.cli.main import main

# Measured with ros2_controllers' trajectory.cpp (Jazzy), 50 seeds: mean worst step (mrad per tick) and mean RMS
# (mrad), with default parameters and with interpolate_from_desired_state.
REAL = {
    "one_point_per_tick": ((110.3, 23.5), (110.3, 23.5)),
    "whole_chunk_now": ((44.8, 136.0), (11.6, 132.3)),
    "whole_chunk_stamped": ((76.3, 20.6), (76.3, 20.6)),
    "future_steps": ((47.4, 23.3), (6.1, 19.7)),
}


@pytest.mark.parametrize("desired", [False, True])
@pytest.mark.parametrize("strategy", REAL)
def test_the_usual_ways_measure_as_with_the_real_code(strategy, desired):
    row = measure(strategy, StreamCondition(0.15, 30, 30, desired))
    np.testing.assert_allclose((row.worst_step_mean, row.rms), REAL[strategy][desired], rtol=0.1)


# The same, 50 seeds, constant latency, on builds that blend (ros2_controllers 94e74de35, and with
# #2573).
NEWEST = {
    ("whole_chunk_now", MASTER): (6.0, 132.3),
    ("whole_chunk_now", "master, upsampling"): (8.5, 132.4),
    ("whole_chunk_now", "with #2573"): (7.2, 132.3),
    ("whole_chunk_stamped", MASTER): (6.0, 132.3),
    ("whole_chunk_stamped", "master, upsampling"): (8.5, 132.4),
    ("whole_chunk_stamped", "with #2573"): (8.5, 132.4),
}


@pytest.mark.parametrize("strategy, controller", NEWEST)
def test_the_usual_ways_measure_as_with_the_newest_code(strategy, controller):
    row = measure(strategy, controller_conditions(controller)[0])
    measured = (row.worst_step_mean, row.rms)
    np.testing.assert_allclose(measured, NEWEST[strategy, controller], rtol=0.1)


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_the_default_is_as_smooth_on_every_build(controller):
    for condition in controller_conditions(controller):
        row = measure(DEFAULT, condition, 6)
        assert row.worst_step[0] < 3.0 and row.worst_step[1] < 3.3 and row.rms < 10


def test_what_suits_one_build_steps_on_the_other(monkeypatch):
    monkeypatch.setitem(CONTROLLERS, JAZZY, CONTROLLERS[MASTER])
    monkeypatch.setattr(streaming._Transport, "change", lambda *_: None)
    assert measure(DEFAULT, controller_conditions(JAZZY)[1], 5).worst_step[0] > 20


def test_a_switched_controller_costs_no_step():
    row = measure(DEFAULT, changing_condition(QUICK), 10)
    assert row.worst_step_max < streaming.CHANGE_LIMIT


# The trial's own best: self-splice with an offset that fades out, which `fade` is.
FADE = {0.15: (3.17, 12.95), 0.3: (2.97, 17.7)}


@pytest.mark.parametrize("latency", FADE)
def test_the_fade_measures_as_the_trial_that_the_thresholds_come_from(latency):
    row = measure("fade", StreamCondition(latency, 30, 30))
    np.testing.assert_allclose((row.worst_step_mean, row.rms), FADE[latency], rtol=0.1)


def test_the_default_keeps_its_thresholds_and_beats_every_other_strategy():
    rows = [measure(strategy, REFERENCE) for strategy in SENDERS]
    default = next(row for row in rows if row.default)
    assert missed(rows) == []
    assert default.worst_step[0] < 2.8 and default.rms < 10
    assert all(default.worst_step[0] < row.worst_step[0] for row in rows if not row.default)
    assert default.starved == 0


def test_the_default_never_meets_the_controllers_pre_state():
    default = simulate(DEFAULT, REFERENCE, range(5))[0]
    desired = simulate(DEFAULT, StreamCondition(0.15, 30, 30, True), range(5))[0]
    np.testing.assert_allclose(default[100:], desired[100:], rtol=0, atol=1e-9)


def test_a_chunk_shorter_than_its_latency_starves():
    assert measure("blend", StreamCondition(0.3, 10, 30), 3).starved > 0.5
    assert measure("blend", StreamCondition(0.3, 30, 30), 3).starved == 0


def test_jitter_does_not_make_the_default_step():
    row = measure("blend", StreamCondition(0.15, 30, 30, jitter=0.1), 10)
    assert row.worst_step[1] < 3.8 and row.starved == 0


def test_command_line_writes_rows_and_fails_on_a_missed_threshold(tmp_path, monkeypatch, capsys):
    arguments = ["bench", "stream", "--seeds", "3", "--reference-only", "--json", str(tmp_path / "out.json")]
    assert main(arguments) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["pass"] is True and [row["strategy"] for row in content["rows"]] == list(SENDERS)
    row = content["rows"][-1]
    assert row["default"] is True and (row["latency_ms"], row["chunk"], row["rate_hz"]) == (150, 30, 30)
    assert row["interpolate_from_desired_state"] is False
    assert {"median", "p95"} <= set(row["worst_step_mrad"])
    assert {"rms_mrad_mean", "max_acc", "max_jerk", "starved_fraction"} <= set(row)
    monkeypatch.setitem(streaming.LIMITS, "mean RMS", 0.1)
    assert main(arguments) == 1
    assert "mean RMS" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["pass"] is False
