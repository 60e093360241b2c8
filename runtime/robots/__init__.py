"""Robots that the loop drives: any that speaks ROS 2, without ROS, and LeRobot's."""
