"""Policy bundles: read, verify, walk through their graphs, and measure. docs/bundle.md describes the format."""

from .bundle import Bundle

__all__ = ["Bundle"]
