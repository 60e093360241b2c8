"""Improve a served policy with what its robots did, generation by generation (docs/improvement.md)."""
