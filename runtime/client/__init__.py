"""A robot's side: `RemotePolicy.connect` gives a served policy behind the policy interface.

It needs numpy, pyzmq and msgspec only.
"""

from rql_deploy.runtime.wire.checks import ServerError

from .policy import RemotePolicy

connect = RemotePolicy.connect

__all__ = ["RemotePolicy", "ServerError", "connect"]
