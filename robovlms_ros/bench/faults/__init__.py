"""Faults injected through the ROS graph."""
