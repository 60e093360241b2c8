"""Messages of ROS 2, and the file that says which topics are observation and action. Needs no ROS."""
