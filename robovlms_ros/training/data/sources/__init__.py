"""Sources of episodes: rosbags, LeRobot datasets, CALVIN folders."""
