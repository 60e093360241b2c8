"""What `rql-deploy data` does: look at data sets, convert, join, divide, relabel, correct and label them."""

from .commands import DataReport, convert, inspect_data, merge, relabel, split

__all__ = ["DataReport", "convert", "inspect_data", "merge", "relabel", "split"]
