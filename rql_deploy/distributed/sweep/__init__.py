"""Sweeps: tasks x settings x seeds as jobs that are never run twice, on local processes or a Ray cluster."""
