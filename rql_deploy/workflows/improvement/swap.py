"""See that a server takes a new bundle. It reads the link by itself (`serve --watch`), or at SIGHUP."""

from __future__ import annotations

import time
from pathlib import Path

from rql_deploy.errors import UserError

SWAP_SECONDS = 30.0
"""How long a server is waited for."""
POLL_SECONDS = 0.25


def confirm_swap(
    endpoint: str, contract_id: str, keys: Path | None = None, *, seconds: float | None = None
) -> str:
    """Half a sentence: that the server at `endpoint` serves this contract now, or what keeps it from it.

    Nothing is lost when it is away or refuses: the bundle is in its place, and is served when it is read.
    """
    from ..monitor import ServerMonitor

    seconds = SWAP_SECONDS if seconds is None else seconds
    expiry = time.monotonic() + seconds
    away = ""
    try:
        with ServerMonitor(endpoint, keys=keys) as monitor:
            while time.monotonic() < expiry:
                try:
                    found = monitor.read()
                except UserError as error:
                    away = str(error)
                else:
                    away = ""
                    if any(entry["contract_id"] == contract_id for entry in found["bundles"].values()):
                        return f"the server at {endpoint} has taken it, after {found['swaps']} swaps so far"
                time.sleep(POLL_SECONDS)
    except UserError as error:
        away = str(error)
    if away:
        return f"{away}; it is in its place, and served as soon as the server starts"
    return (
        f"the server at {endpoint} has not taken it within {seconds:g} s: serve with --watch, or send it "
        "SIGHUP; its log says so if it refuses the bundle"
    )
