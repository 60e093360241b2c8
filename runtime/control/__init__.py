"""On the robot: loops, playback of chunks, the safety filter and the watchdog."""
