"""A node of ROS 2 that drives a robot with a policy served by rql-deploy."""
