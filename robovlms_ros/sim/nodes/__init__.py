"""ROS nodes of the simulated arm."""
