"""Find the validation data of a data set, and compare the two."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import UserError

if TYPE_CHECKING:
    from rql_deploy.train.data.readers.options import ReadOptions
    from rql_deploy.train.data.store import TransitionStore


def compare_with_validation(
    store: TransitionStore,
    data: str,
    validation: str | None,
    relabel: str | None,
    warnings: list[str],
    options: ReadOptions | None = None,
) -> dict[str, Any] | None:
    """Figures of the validation data of `data`: the one given, or the one that its format names; None where
    there is none.

    Adds what is wrong with it to `warnings`. Raises UserError where validation data was given and cannot be
    read.
    """
    from rql_deploy.train.data.report import compare_validation, validation_warnings

    from .sources import open_data

    name = validation or _beside(data)
    if name is None:
        keys = _filter_keys(data)
        return (
            {"name": f"within it, by filter keys {', '.join(keys)}: pass {data}#{keys[0]}"} if keys else None
        )
    try:
        opened = open_data(name, relabel, may_lack_rewards=True, options=options).sample
        opened.validate_shapes()
    except UserError as error:
        if validation:
            raise
        warnings.append(f"the validation data cannot be read: {error}")
        return {"name": name}
    found = compare_validation(store, opened)
    warnings += validation_warnings(name, found)
    return {"name": name, **found}


def _beside(data: str) -> str | None:
    """`X-val.npz` beside `X.npz` (OGBench), the filter key `valid` beside `train` (robomimic)."""
    from rql_deploy.train.data.readers.robomimic import filter_keys, split_filter_key

    path, key = split_filter_key(data)
    file = Path(path)
    if file.suffix == ".npz":
        sibling = file.with_name(f"{file.stem}-val.npz")
        return str(sibling) if sibling.exists() else None
    return f"{path}#valid" if key == "train" and "valid" in filter_keys(file) else None


def _filter_keys(data: str) -> list[str]:
    """The filter keys of a robomimic file, named without one."""
    from rql_deploy.train.data.readers.hdf5 import hdf5_kind, is_hdf5
    from rql_deploy.train.data.readers.robomimic import filter_keys

    file = Path(data)
    return filter_keys(file) if is_hdf5(file) and hdf5_kind(file) == "robomimic" else []
