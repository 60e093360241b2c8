"""The bundles a server offers by name, and how one is exchanged under load."""

from __future__ import annotations

from collections.abc import Iterable

from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.wire.protocol import ProtocolError


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
        lane = self.by_name.get(self.default if name is None else name) if isinstance(name, str | None) else None
        if lane is None:
            raise ProtocolError("unknown_bundle", f"this server has {', '.join(self.by_name)}")
        return lane

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

    Their robots read the same fields and expect the same chunk; weights, scaling, F and calibration may differ.
    """
    found = old.plant.differences(new.plant)
    if old.h != new.h:
        found.append(f"chunks have {new.h} actions instead of {old.h}")
    return found
