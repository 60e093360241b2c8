"""Both clients with one interface, so that a test can hold them to the same behaviour."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from rql_deploy.policy import Decision
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.client.aio import AsyncRemotePolicy

T = TypeVar("T")


class AwaitedPolicy:
    """An `AsyncRemotePolicy` with an event loop of its own, used one call at a time."""

    def __init__(self, *args: Any, **options: Any):
        self._loop = asyncio.new_event_loop()
        try:
            self._policy = self._run(AsyncRemotePolicy.connect(*args, **options))
        except BaseException:
            self._loop.close()
            raise

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(coroutine)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def act(self, observation: Mapping[str, Any], **options: Any) -> Decision:
        return self._run(self._policy.act(observation, **options))

    def act_many(self, observations: Mapping[str, Any], **options: Any) -> list[Decision]:
        return self._run(self._policy.act_many(observations, **options))

    def stream(self, observation: Mapping[str, Any], **options: Any) -> Iterator[Decision]:
        decisions = self._policy.stream(observation, **options)
        try:
            while True:
                try:
                    yield self._run(decisions.__anext__())  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return
        finally:
            self._run(decisions.aclose())  # type: ignore[attr-defined]

    def reset(self) -> None:
        self._run(self._policy.reset())

    def stats(self) -> dict[str, Any]:
        return self._run(self._policy.stats())

    def close(self) -> None:
        self._run(self._policy.close())
        self._loop.close()

    def __enter__(self) -> AwaitedPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


CLIENTS: dict[str, Callable[..., Any]] = {"blocking": RemotePolicy.connect, "asyncio": AwaitedPolicy}
"""How each client connects."""
