"""Transitions: stores, samplers, normalisation, readers and writers of other formats."""
