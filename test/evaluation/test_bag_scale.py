"""Long bags.

- the memory of an evaluation does not grow with the bag's length: ten times the length, the same peak;
- every image is decoded once, however many policies and what-ifs look at it.
"""

import tracemalloc

import pytest
from rosbags.rosbag2 import CompressionMode

from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.evaluation.replay.evaluate import evaluate_bag
from robovlms_ros.evaluation.replay.loop import Subject

IMAGE = 96


def write(tools, path, seconds):
    """One camera at 20 Hz, joint states at 20 Hz: 27 kB of pixels a frame."""
    with tools.BagWriter(path, compression=CompressionMode.STORAGE) as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for tick in range(int(seconds * 20)):
            now = tools.BEGIN_NS + tick * NANOSECONDS // 20
            bag.joints(now)
            bag.image("/static/image_raw", now, size=IMAGE)
    return path


class Forgetful:
    """A session that keeps nothing."""

    def __init__(self, tools):
        self._inner = tools.FakeSession(tools.follow(1))

    def reset(self):
        pass

    def predict_block(self, observations, wanted):
        chunks = self._inner.predict_block(observations, wanted)
        self._inner.seen.clear()
        return chunks


def peak(path, tools, setting, output):
    output.mkdir()
    tracemalloc.start()
    try:
        result = evaluate_bag(path, [Subject("a", lambda: Forgetful(tools))],
                              setting(("static",), annotate=True, block=16), output)
        return tracemalloc.get_traced_memory()[1], result["images"]
    finally:
        tracemalloc.stop()


def test_memory_is_flat_in_the_bags_length(tools, setting, tmp_path):
    evaluate_bag(write(tools, tmp_path / "first", 0.5), [Subject("a", lambda: Forgetful(tools))], setting(("static",)))
    short, few = peak(write(tools, tmp_path / "short", 3.0), tools, setting, tmp_path / "a")
    long, many = peak(write(tools, tmp_path / "long", 30.0), tools, setting, tmp_path / "b")
    assert (few, many) == (60, 600)
    pixels = (many - few) * IMAGE * IMAGE * 3
    peaks = f"{short / 1e6:.1f} MB, then {long / 1e6:.1f} MB, with {pixels / 1e6:.1f} MB more pixels"
    assert long - short < pixels / 5, peaks


@pytest.mark.parametrize("policies", [1, 3])
def test_every_image_is_decoded_once(tools, setting, tmp_path, monkeypatch, policies):
    from PIL import Image

    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.instruction("go", tools.BEGIN_NS)
        for i in range(30):
            now = tools.BEGIN_NS + i * NANOSECONDS // 20
            bag.joints(now)
            bag.compressed("/static/image_raw/compressed", now)
            bag.compressed("/wrist/image_raw/compressed", now)
    opened = []
    real = Image.open

    def counting(*arguments, **options):
        opened.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(Image, "open", counting)
    subjects = [Subject(f"p{i}", lambda: Forgetful(tools)) for i in range(policies)]
    config = setting(sensitivity=True, other_instruction="stop", dropped=0.2, annotate=True, latencies=(0.05, 0.3))
    result = evaluate_bag(tmp_path / "bag", subjects, config, tmp_path)
    assert result["images"] == 30 and len(opened) == 60
    assert all(part["chunks"] == 30 and len(part["sensitivity"]) == 4 for part in result["results"].values())
