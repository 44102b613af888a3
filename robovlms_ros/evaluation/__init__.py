"""Measuring a policy: on rosbags (`bags`, `replay`, `metrics`, `report`), in the simulated arm, and
its streaming."""
