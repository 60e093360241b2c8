"""Hot swap: open, check and warm a new bundle in a thread of its own while the server goes on, then offer it to the engine's thread."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import ContractError, UserError
from rql_deploy.runtime.engine.model import Model

from .registry import incompatibilities

_log = logging.getLogger("rql_deploy.reload")
LOWEST_PRIORITY = 19


class Reloader:
    """Reads the bundles' paths again when asked; a bundle that is missing, damaged or incompatible changes nothing."""

    def __init__(
        self,
        paths: Sequence[Path],
        models: Sequence[Model],
        offer: Callable[[str, Model], None],
        *,
        variant: str = "fp32",
        provider: str = "cpu",
    ):
        self._paths, self._models = list(paths), list(models)
        self._offer, self._variant, self._provider = offer, variant, provider
        self._wanted = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Look at the bundles again; safe from a signal handler."""
        self._wanted.set()

    def close(self) -> None:
        """End the thread."""
        self._stopped = True
        self._wanted.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        # Refinement steps come first where both want the same core.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        while self._wanted.wait() and not self._stopped:
            self._wanted.clear()
            for index in range(len(self._paths)):
                self._reload(index)

    def _reload(self, index: int) -> None:
        path, old = self._paths[index], self._models[index]
        try:
            bundle = Bundle.open(path, self._variant)
            if bundle.manifest == old.manifest:
                _log.info("bundle unchanged", extra={"data": {"bundle": old.name, "path": str(path)}})
                return
            if found := incompatibilities(old.contract, bundle.contract):
                raise ContractError(f"{path} is not compatible with the running clients ({'; '.join(found)}): serve it under another name")
            model = Model(bundle, old.name, provider=self._provider)
            model.warm_up()
        except UserError as error:
            _log.error("bundle refused", extra={"data": {"bundle": old.name, "reason": str(error)}})
            return
        self._models[index] = model
        self._offer(old.name, model)
