"""Data made with demonstrators, in worker processes."""
