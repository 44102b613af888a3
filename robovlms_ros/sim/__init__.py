"""The simulated arm: scene, controllers, expert, and closed loops in simulated time."""

import os

# Read when mujoco is first imported; OSMesa renders without a display.
os.environ.setdefault("MUJOCO_GL", "osmesa")
