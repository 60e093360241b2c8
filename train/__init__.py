"""Reversal Q-Learning: the algorithm and the training run."""
