"""A training run from its first update to its last: alone, or several seeds in one process."""
