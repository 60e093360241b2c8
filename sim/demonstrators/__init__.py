"""Scripted demonstrators: programs that solve a task from its observation, with adjustable noise."""
