"""Reading and writing rosbag2 without ROS: storages, message types, which topic is what."""
