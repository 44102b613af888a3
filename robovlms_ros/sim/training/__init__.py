"""Demonstrations and training in the simulator."""
