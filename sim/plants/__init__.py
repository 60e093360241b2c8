"""robosuite, OGBench, gymnasium and the arm behind the plant interface."""
