"""ROS messages into the package's values: duck-typed, so that a live node and a bag reader share one translation."""
