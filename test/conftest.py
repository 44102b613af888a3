"""Environment of every test: a ROS graph of this run's own, and threads that do not fight for the processors."""

import os

# Another run on the same machine or network would otherwise answer this run's services. 1 to 101 keep clear of the
# ports that Linux hands out to other programs. Set before the first rclpy.init of this process and its children.
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 101))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("OMP_NUM_THREADS", "1")
