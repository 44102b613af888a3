"""Answers of the present code against recorded ones, which a refactoring must not change.

- policy: chunks of every shipped checkpoint over consecutive frames, by the reference path and by
  every optimised part that a processor runs.
- backbones: tiny policies of every family, head and history.
- motion: plans, verdicts with reasons, trajectories and stops of four robots, on recorded chunks
  at 10 Hz with a jittering latency.
- report: a simulated bag and the report of `robovlms eval` on it.
- rendered: the simulated cameras, coarsely.
- wire: bytes of the messages of the ROS layer, messages of the controller adapters.
- training: losses of the general engine and of the simulated arm's trainer.

Numbers agree within 1e-6 * max(1, |v|) unless `golden_areas.LOOSE` has another tolerance. With
ROBOVLMS_GOLDEN_EXACT=1 they agree to the bit, which only a machine like the recording one fulfils.
`record.py` records.
"""

import os

import pytest
from golden_areas import AREAS, LOOSE, NEEDS
from golden_store import ANSWERS, SHOWN, differences, flatten, load

EXACT = os.environ.get("ROBOVLMS_GOLDEN_EXACT", "") not in ("", "0")
LARGEST = 500_000
"""Bytes of all answers together."""


@pytest.mark.parametrize("area", AREAS)
def test_answers_are_the_recorded_ones(area: str) -> None:
    for package in NEEDS.get(area, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    loose = {
        pattern.partition("/")[2]: value
        for pattern, value in LOOSE.items()
        if pattern.startswith(f"{area}/")
    }
    found = differences(load(area), dict(flatten(AREAS[area]())), EXACT, loose)
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:SHOWN])


def test_answers_stay_small() -> None:
    files = list(ANSWERS.iterdir())
    assert {path.stem for path in files} == set(AREAS)
    assert {path.suffix for path in files} == {".npz", ".json"}
    assert sum(path.stat().st_size for path in files) < LARGEST
