"""Configuration blocks of a policy and their import from RoboVLMs."""
