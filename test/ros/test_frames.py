"""Several cameras' images are paired by stamp: each reference image once, in time's order, with the nearest image of
every other camera within the tolerance; whatever has no partner is dropped and counted.
"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from robovlms_ros.observations.camera_sync import FrameSync, SyncedFrame

MS = 1_000_000


def frame(milliseconds, value=0):
    return SyncedFrame(milliseconds * MS, np.full((1, 1, 3), value, np.uint8))


def test_one_camera_passes_through():
    sync = FrameSync(("s",), 0.02)
    assert [s.stamp_ns for t in (10, 20, 20, 15) for s in sync.add("s", frame(t))] == [10 * MS, 20 * MS]


def test_waits_for_the_partner_in_either_order():
    sync = FrameSync(("s", "w"), 0.02)
    assert sync.add("s", frame(100)) == []
    (first,) = sync.add("w", frame(100, 1))
    assert first.stamp_ns == 100 * MS and first.images["w"][0, 0, 0] == 1
    assert sync.add("w", frame(150, 2)) == []
    (second,) = sync.add("s", frame(150))
    assert second.images["w"][0, 0, 0] == 2 and list(second.images) == ["s", "w"]


def test_takes_the_nearest():
    sync = FrameSync(("s", "w"), 0.02)
    for t, value in ((90, 1), (104, 2), (115, 3)):
        sync.add("w", frame(t, value))
    (only,) = sync.add("s", frame(105))
    assert only.images["w"][0, 0, 0] == 2


def test_drops_what_a_camera_has_passed():
    sync = FrameSync(("s", "w"), 0.02)
    sync.add("s", frame(100))
    sync.add("w", frame(130))
    assert sync.dropped == 1
    (only,) = sync.add("s", frame(140))
    assert only.stamp_ns == 140 * MS


def test_clear_lets_time_go_back():
    sync = FrameSync(("s",), 0.02)
    sync.add("s", frame(1000))
    sync.clear()
    assert sync.last_stamp("s") is None
    assert len(sync.add("s", frame(10))) == 1


@given(st.lists(st.tuples(st.sampled_from(["s", "w"]), st.integers(1, 400)), max_size=60))
def test_whatever_arrives(arrivals):
    sync = FrameSync(("s", "w"), 0.02)
    sets = [s for camera, t in arrivals for s in sync.add(camera, frame(t, t % 256))]
    stamps = [s.stamp_ns for s in sets]
    assert stamps == sorted(set(stamps))
    for s in sets:
        near = [t for camera, t in arrivals if camera == "w" and abs(t * MS - s.stamp_ns) <= 20 * MS]
        assert s.images["w"][0, 0, 0] in {t % 256 for t in near}
