"""How updates run: eager, compiled, in CUDA graphs, in slices of the batch, on several processes."""
