"""How updates run: eager, compiled, as CUDA graphs, in batch slices on threads, in several processes."""
