"""A robot's side: `RemotePolicy.connect` gives a served policy behind the policy interface. Needs numpy, pyzmq and msgpack only."""

from .policy import RemotePolicy
from .session import ServerError

__all__ = ["RemotePolicy", "ServerError"]
