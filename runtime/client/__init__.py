"""A robot's side: `RemotePolicy.connect` gives a served policy behind the policy interface. Needs numpy, pyzmq and msgpack only."""

from rql_deploy.runtime.wire.checks import ServerError

from .policy import RemotePolicy

__all__ = ["RemotePolicy", "ServerError"]
