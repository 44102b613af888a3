"""Closed-loop results.

- Wilson intervals equal SciPy's.
- Episodes become one row per instruction and condition, with counts.
- From 20 episodes on a threshold is met or missed by the counts; with fewer it is missed only when the 95 % interval
  excludes it.
- The JSON report has the documented keys and its verdict follows from the rows.
- Failures are counted by reason and instruction; blanked episodes are to fail and do not count.
"""

import json

import pytest
from scipy.stats import binomtest

from robovlms_ros.core.statistics import percentile, wilson_interval
from robovlms_ros.sim.closed_loop import (
    EpisodeResult,
    failure_table,
    failures,
    report,
    summarise,
    table,
)

RED = "lift the red cube"


def episodes(success: int, n: int, condition: str = "named", wrong: int = 0) -> list[EpisodeResult]:
    times = [2.0 + seed if seed < success else None for seed in range(n)]
    return [EpisodeResult(RED, condition, seed, seed < success, seed >= n - wrong, time, 10)
            for seed, time in enumerate(times)]


@pytest.mark.parametrize(("successes", "trials"), [(159, 160), (19, 20), (0, 20), (20, 20), (1, 2)])
def test_wilson_interval_equals_scipy(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_tried_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert percentile([], 50) is None


def test_rows_count_per_instruction_and_condition() -> None:
    rows = summarise([*episodes(18, 20, wrong=1), *episodes(0, 4, "blanked")])
    assert [(row.condition, row.n, row.success, row.wrong, row.chunks) for row in rows] == [
        ("named", 20, 18, 1, 200), ("blanked", 4, 0, 0, 40)]
    assert rows[0].time_to_success_p50 == pytest.approx(2.0 + 8.5)
    assert rows[1].time_to_success_p50 is None


@pytest.mark.parametrize(
    ("group", "missed"),
    [
        (episodes(18, 20), False),
        (episodes(17, 20), True),
        (episodes(20, 20, wrong=1), False),
        (episodes(20, 20, wrong=2), True),
        (episodes(4, 20, "blanked"), False),
        (episodes(5, 20, "blanked"), True),
        (episodes(1, 2), False),  # 1 of 2 is compatible with 90 %
        (episodes(0, 2), True),
    ],
)
def test_thresholds(group: list[EpisodeResult], missed: bool) -> None:
    rows = summarise(group)
    assert bool(rows[0].missed) == missed
    assert report(rows, {})["pass"] == (not missed)


def test_report_is_json_with_the_documented_keys() -> None:
    document = json.loads(json.dumps(report(summarise(episodes(20, 20)), {"reaction_ms": {"p50": 80.0, "p99": 120.0}})))
    assert {"rows", "reaction_ms", "pass"} <= set(document)
    assert {"instruction", "n", "success", "wrong", "ci95", "time_to_success_p50"} <= set(document["rows"][0])


def test_table_has_a_line_per_row() -> None:
    lines = table(summarise([*episodes(20, 20), *episodes(0, 2, "blanked")])).splitlines()
    assert len(lines) == 4
    assert "20/20" in lines[2] and "blanked" in lines[3]


def test_failures_are_counted_by_reason_and_instruction() -> None:
    def failed(instruction: str, why: str, condition: str = "named") -> EpisodeResult:
        return EpisodeResult(instruction, condition, 0, False, False, None, 1, why=why)

    group = [failed("lift", "dropped"), failed("stack", "dropped"), failed("stack", "too slow"),
             failed("stack", "never reached", "blanked"), *episodes(3, 3)]
    counts = failures(group)
    assert counts == {"dropped": {"lift": 1, "stack": 1}, "too slow": {"stack": 1}}
    assert list(counts) == ["dropped", "too slow"]
    lines = failure_table(counts).splitlines()
    assert [line.split() for line in lines[2:]] == [["dropped", "1", "1", "2"], ["too", "slow", "-", "1", "1"]]
    assert failure_table(failures(episodes(3, 3))) == ""
