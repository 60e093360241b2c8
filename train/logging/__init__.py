"""What a run tells: figures, pages, diagnostics."""
