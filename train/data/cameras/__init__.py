"""Frames of cameras: decoded once from any format into a memory-mapped cache, one uint8 picture a row."""
