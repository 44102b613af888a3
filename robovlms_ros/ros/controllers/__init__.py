"""Adapters from trajectories to what an installed controller takes; which one is chosen in the
robot's YAML."""
