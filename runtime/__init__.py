"""Policies at work: the wire, clients, the engine and the server around it, control loops on the robot."""
