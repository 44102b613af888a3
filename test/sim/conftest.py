"""The simulator is a development dependency: without it these tests are not collected."""

import importlib.util

_present = all(importlib.util.find_spec(name) for name in ("mujoco", "robosuite"))
collect_ignore_glob = [] if _present else ["test_*.py"]
