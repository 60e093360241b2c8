"""Readers of offline data: each turns one format into a `TransitionStore`."""
