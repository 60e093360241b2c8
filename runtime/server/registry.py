"""The bundles a server offers by name, and how one is exchanged under load.

A new bundle is opened, checked and warmed in a thread of its own while the server goes on, then offered to
the engine's thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError, UserError
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.wire.protocol import ProtocolError

_log = logging.getLogger("rql_deploy.reload")
LOWEST_PRIORITY = 19


class Lane:
    """One name: the engine that takes new requests, and those that finish requests of models replaced since."""

    def __init__(self, model: Model):
        self.engine = Engine(model)
        self.retiring: list[Engine] = []
        self.accepted = {model.contract.contract_id}
        """Contracts that clients may have agreed on: this model's, and those of compatible predecessors."""

    @property
    def model(self) -> Model:
        return self.engine.model

    def swap(self, model: Model) -> None:
        """New requests go to `model`; those under way end with the model they began with."""
        if self.engine.busy:
            self.retiring.append(self.engine)
        self.engine = Engine(model)
        self.accepted.add(model.contract.contract_id)


class Lanes:
    """All lanes, and whose turn it is."""

    def __init__(self, models: Iterable[Model]):
        self.by_name: dict[str, Lane] = {}
        for model in models:
            if model.name in self.by_name:
                raise UserError(f"two bundles are called '{model.name}': give one another name, NAME=PATH")
            self.by_name[model.name] = Lane(model)
        if not self.by_name:
            raise UserError("there is no bundle to serve: pass one or more bundle folders")
        self.default = next(iter(self.by_name))
        self._last = 0

    def find(self, name: object) -> Lane:
        """The lane of a request's `bundle`; the first one when it names none."""
        lane = (
            self.by_name.get(self.default if name is None else name) if isinstance(name, str | None) else None
        )
        if lane is None:
            raise ProtocolError("unknown_bundle", f"this server has {', '.join(self.by_name)}")
        return lane

    def agreed(self, name: object, contract: object) -> tuple[Lane, dict[str, str]]:
        """The lane of a request made under a `contract` (an id, or None), and news of its contract for the
        client."""
        lane = self.find(name)
        current = lane.model.contract.contract_id
        if contract is None or contract == current:
            return lane, {}
        if not isinstance(contract, str) or contract not in lane.accepted:
            raise ProtocolError(
                "contract_changed", "this server's contract is not the one agreed on: say hello again"
            )
        return lane, {"contract_id": current}

    def next_busy(self) -> Engine | None:
        """The engine whose turn it is, in rotation over all that have work; None when none has."""
        if len(self.by_name) == 1 and not (lane := self.by_name[self.default]).retiring:
            return lane.engine if lane.engine.busy else None
        engines: list[Engine] = []
        for lane in self.by_name.values():
            if lane.retiring:
                lane.retiring = [engine for engine in lane.retiring if engine.busy]
                engines += lane.retiring
            if lane.engine.busy:
                engines.append(lane.engine)
        if not engines:
            return None
        self._last += 1
        return engines[self._last % len(engines)]


def incompatibilities(old: Contract, new: Contract) -> list[str]:
    """Why `new` cannot take over from `old` under running clients; empty when it can.

    Their robots read the same fields and expect the same chunk; weights, scaling, F and calibration may
    differ.
    """
    found = old.plant.differences(new.plant)
    if old.h != new.h:
        found.append(f"chunks have {new.h} actions instead of {old.h}")
    return found


class Reloader:
    """Reads the bundles' paths again when asked; a bundle that is missing, damaged or incompatible changes
    nothing."""

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
                raise ContractError(
                    f"{path} is not compatible with the running clients ({'; '.join(found)}): serve it under another name"
                )
            model = Model(bundle, old.name, provider=self._provider)
            model.warm_up()
        except UserError as error:
            _log.error("bundle refused", extra={"data": {"bundle": old.name, "reason": str(error)}})
            return
        self._models[index] = model
        self._offer(old.name, model)
