"""The models that a server offers by name, and the swap of one under load.

A new bundle is opened, checked and warmed up in a thread of its own; then its model is handed to the server's
thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rql_deploy.assumptions import replacement_conflicts
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError, UserError
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.shares import Client
from rql_deploy.runtime.wire.arrays import Layout
from rql_deploy.runtime.wire.checks import ProtocolError

_log = logging.getLogger("rql_deploy.reload")
LOWEST_PRIORITY = 19


class ModelSlot:
    """The engine of one name, and engines of replaced models that finish their requests."""

    def __init__(self, model: Model):
        self.engine = Engine(model)
        self.retiring: list[Engine] = []
        self.accepted = {model.contract.contract_id: Layout.of(model.contract.plant)}
        """By id, the contracts that clients may still use, with how each lays out an observation: this
        model's, and those of the compatible models it replaced."""

    @property
    def model(self) -> Model:
        """The model that computes now."""
        return self.engine.model

    def swap(self, model: Model) -> None:
        """Send new requests to `model`; running ones finish with the old model."""
        if self.engine.busy:
            self.retiring.append(self.engine)
        self.engine = Engine(model)
        layout = Layout.of(model.contract.plant)
        # An observation of another contract must have all that this model reads.
        same = {id: other for id, other in self.accepted.items() if set(other.fields) == set(layout.fields)}
        self.accepted = same | {model.contract.contract_id: layout}


class ModelRegistry:
    """All models of a server by name; decides which engine runs next."""

    def __init__(self, models: Iterable[Model]):
        self.by_name: dict[str, ModelSlot] = {}
        for model in models:
            if model.name in self.by_name:
                raise UserError(
                    f"two bundles are called '{model.name}'", hint="give one another name, NAME=PATH"
                )
            self.by_name[model.name] = ModelSlot(model)
        if not self.by_name:
            raise UserError("there is no bundle to serve", hint="pass one or more bundle folders")
        self.default = next(iter(self.by_name))
        self._last = 0

    def find(self, name: str | None) -> ModelSlot:
        """The slot of a request's `bundle`; the first one when it names none."""
        slot = self.by_name.get(self.default if name is None else name)
        if slot is None:
            raise ProtocolError("unknown_bundle", f"this server has {', '.join(self.by_name)}")
        return slot

    def find_for_contract(self, name: str | None, contract: str) -> tuple[ModelSlot, Layout, str | None]:
        """The slot for a request under that contract id, its layout, and the new id if it has changed."""
        slot = self.by_name.get(self.default if name is None else name) or self.find(name)
        layout = slot.accepted.get(contract)
        if layout is None:
            raise ProtocolError(
                "contract_changed", "this server's contract is not the one agreed on: say hello again"
            )
        current = slot.engine.model.contract.contract_id
        return slot, layout, None if contract == current else current

    def drop_gone(self, gone: Callable[[Client], bool]) -> list[tuple[Client, int]]:
        """Forget what waits for clients that are `gone`; how many requests it was of each."""
        engines = [engine for slot in self.by_name.values() for engine in (slot.engine, *slot.retiring)]
        return [
            (client, engine.drop(client)) for engine in engines for client in filter(gone, engine.clients)
        ]

    def next_busy(self) -> Engine | None:
        """The engine that runs next, in rotation over all with work; None when there is no work."""
        if len(self.by_name) == 1 and not (slot := self.by_name[self.default]).retiring:
            return slot.engine if slot.engine.load else None
        engines: list[Engine] = []
        for slot in self.by_name.values():
            if slot.retiring:
                slot.retiring = [engine for engine in slot.retiring if engine.busy]
                engines += slot.retiring
            if slot.engine.busy:
                engines.append(slot.engine)
        if not engines:
            return None
        self._last += 1
        return engines[self._last % len(engines)]


def incompatibilities(old: Contract, new: Contract) -> list[str]:
    """Why `new` cannot replace `old` while clients are connected; empty when it can.

    Fields, actions, rate and h must be the same; weights, scaling, F and calibration may differ, and bounds
    that were guessed from data.
    """
    found = replacement_conflicts(old.plant, new.plant)
    if old.h != new.h:
        found.append(f"chunks have {new.h} actions instead of {old.h}")
    return found


class Reloader:
    """Loads the bundles again on request; a missing, damaged or incompatible one is logged and ignored."""

    def __init__(
        self,
        paths: Sequence[Path],
        models: Sequence[Model],
        schedule_swap: Callable[[str, Model], None],
        *,
        variant: str = "fp32",
        provider: str = "cpu",
        watch: float | None = None,
    ):
        """With `watch`, look every so many seconds whether a bundle has changed."""
        self._watch, self._stamps = watch, [_stamp(path) for path in paths]
        self._paths, self._models = list(paths), list(models)
        self._schedule_swap, self._variant, self._provider = schedule_swap, variant, provider
        self._wanted = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Load the bundles again; safe to call from a signal handler."""
        self._wanted.set()

    def close(self) -> None:
        """End the thread."""
        self._stopped = True
        self._wanted.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        # Where both need the same core, refinement steps go first.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        while True:
            asked = self._wanted.wait(self._watch)
            if self._stopped:
                return
            self._wanted.clear()
            for index, path in enumerate(self._paths):
                stamp = _stamp(path)
                if asked or stamp != self._stamps[index]:
                    self._stamps[index] = stamp
                    self._reload(index)

    def _reload(self, index: int) -> None:
        path, old = self._paths[index], self._models[index]
        try:
            # Of a link its present target: it may name another bundle before all files are read.
            bundle = Bundle.open(path.resolve(), self._variant)
            if bundle.manifest == old.manifest:
                _log.info("bundle unchanged", extra={"data": {"bundle": old.name, "path": str(path)}})
                return
            if found := incompatibilities(old.contract, bundle.contract):
                raise ContractError(
                    f"{path} is not compatible with the running clients ({'; '.join(found)})",
                    hint="serve it under another name",
                )
            model = Model(bundle, old.name, provider=self._provider)
            model.warm_up()
        except Exception as error:  # whatever lies at the path, the thread goes on and the old bundle serves
            kind = error.kind if isinstance(error, UserError) else type(error).__name__
            data = {"bundle": old.name, "path": str(path), "kind": kind, "reason": str(error)}
            _log.error("bundle refused", extra={"data": data})
            return
        self._models[index] = model
        self._schedule_swap(old.name, model)


def _stamp(path: Path) -> tuple[Any, ...]:
    """Differs when another bundle, or a rewritten one, lies at the path, and while one is being copied there.

    A bundle that is refused because not all of it is there yet is so looked at again.
    """
    try:
        whole = path.resolve()
        files = sorted(whole.iterdir()) if whole.is_dir() else [whole]
        states = [(file.name, file.stat()) for file in files]
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError
        return ()
    return whole, *((name, state.st_mtime_ns, state.st_size, state.st_ino) for name, state in states)
