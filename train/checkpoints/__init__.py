"""What a run leaves: its folder, its checkpoints, and networks that start from them."""
