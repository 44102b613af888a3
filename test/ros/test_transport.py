"""The Fast DDS profile for large images: the middleware reads it without complaint and makes its shared memory as large
as the profile says; without it the memory is smaller than one raw image of 640 x 480.
"""

import os
import re
import subprocess
import sys

import pytest

from robovlms_ros.core.resources import share_directory

pytestmark = pytest.mark.ros

RAW_IMAGE = 640 * 480 * 3
PROFILE = share_directory() / "config" / "fastdds.xml"
SIZES = """
import os, rclpy
before = set(os.listdir("/dev/shm"))
rclpy.init()
node = rclpy.create_node("listener")
paths = ["/dev/shm/" + name for name in set(os.listdir("/dev/shm")) - before if name.startswith("fast")]
print(max(os.stat(path).st_size for path in paths if os.path.exists(path)))
"""


@pytest.mark.parametrize("with_profile", [True, False])
def test_shared_memory_holds_an_image(with_profile):
    environment = dict(os.environ, RMW_IMPLEMENTATION="rmw_fastrtps_cpp")
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        environment.pop(name, None)
        if with_profile:
            environment[name] = str(PROFILE)
    done = subprocess.run([sys.executable, "-c", SIZES], env=environment, capture_output=True, text=True, check=True)
    assert "XML" not in done.stderr
    size, asked = int(done.stdout), int(re.findall(r"<segment_size>(\d+)<", PROFILE.read_text(encoding="utf-8"))[0])
    assert asked > 30 * RAW_IMAGE
    assert size >= asked if with_profile else size < RAW_IMAGE
