"""onnxruntime sessions for a bundle's graphs, and the metadata that ties a graph to its contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rql_deploy.errors import BundleError

if TYPE_CHECKING:
    import onnxruntime

CONTRACT_KEY = "rql_deploy_contract"
"""Metadata entry of every graph: the contract's canonical form."""
CONTRACT_ID_KEY = "rql_deploy_contract_id"
"""Metadata entry of every graph: the contract's id."""
MIN_ONNXRUNTIME = (1, 21)
"""With 1.20 the last bits of V depend on the size of the batch: rows are not independent."""


def session_options(threads: int = 1) -> onnxruntime.SessionOptions:
    """Few threads and no spinning: idle threads that spin starve the control loop beside them.

    Raises BundleError when onnxruntime is missing or too old.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BundleError("onnxruntime is not installed: pip install 'rql-deploy[serve]'") from error
    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < MIN_ONNXRUNTIME:
        least = ".".join(map(str, MIN_ONNXRUNTIME))
        raise BundleError(
            f"onnxruntime {onnxruntime.__version__} is older than {least}, the first that keeps a bundle's "
            f"certificate: pip install -U 'onnxruntime>={least}'"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def open_session(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """A CPU session of one graph file; raises BundleError when onnxruntime cannot load it."""
    options = session_options(threads)
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises bare RuntimeErrors and classes of its own
        reason = str(error).splitlines()[0]
        raise BundleError(f"onnxruntime cannot load {path} ({reason}): export the bundle again") from error
