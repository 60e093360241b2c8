"""Policy bundles: read, verify, run their graphs, and measure. docs/bundle.md describes the format."""

from .bundle import Bundle

__all__ = ["Bundle"]
