"""Sources of episodes: rosbags, LeRobot v3 datasets, CALVIN folders."""
