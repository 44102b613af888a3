"""Where episodes come from: rosbags, LeRobot v3 datasets, CALVIN folders."""
