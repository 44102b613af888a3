"""An SO-101 from a LeRobot folder to a moving arm."""
