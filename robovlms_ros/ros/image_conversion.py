"""cv_bridge's colour conversion, where it is installed and works."""

import logging
from functools import cache

import numpy as np

from robovlms_ros.observations.images import RGB, Converter, convert_with_numpy

CONVERTED = ("bgr8", "rgba8", "bgra8", "mono8")
"""Encodings that every release of cv_bridge converts alike."""

_LOG = logging.getLogger(__name__)


@cache
def pick_converter() -> Converter:
    """(encoding, (H, W, bytes per pixel)) -> (H, W, 3) RGB: cv_bridge's, else the stand-in that
    needs NumPy alone.

    An apt cv_bridge beside a NumPy it was not built for imports and fails at the first image, so it
    is tried first.
    """
    try:
        from cv_bridge.boost.cv_bridge_boost import cvtColor2

        probe = np.zeros((2, 2, 3), np.uint8)
        if cvtColor2(probe, "bgr8", "rgb8").shape != probe.shape:
            raise ImportError("cvtColor2 answers another shape")
    except ImportError as error:
        _LOG.debug("cv_bridge is not used (%s); images are converted with NumPy", error)
        return convert_with_numpy
    except Exception as error:  # whatever a mismatched binary raises, there is a complete stand-in
        _LOG.warning("cv_bridge is installed but does not work here (%s); images are converted with NumPy", error)
        return convert_with_numpy

    def convert(encoding: str, pixels: RGB) -> RGB:
        if encoding not in CONVERTED:
            return convert_with_numpy(encoding, pixels)
        source = pixels.squeeze(-1) if encoding == "mono8" else pixels
        return cvtColor2(np.ascontiguousarray(source), encoding, "rgb8")

    return convert
