"""onnxruntime execution providers: the CPU by default, others when named and installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.manifest import GRAPHS
from rql_deploy.bundle.sessions import CONTRACT_ID_KEY
from rql_deploy.errors import BundleError, UserError

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}


def open_sessions(bundle: Bundle, provider: str = "cpu") -> dict[str, onnxruntime.InferenceSession]:
    """One session per graph. Raises UserError when the installed onnxruntime lacks the provider."""
    if provider == "cpu":
        return {name: bundle.session(name) for name in GRAPHS}
    if provider not in PROVIDERS:
        raise UserError(f"there is no provider '{provider}': pass {', '.join(PROVIDERS)}")
    return {name: _session(bundle, name, PROVIDERS[provider]) for name in GRAPHS}


def _session(bundle: Bundle, graph: str, provider: str) -> Any:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise UserError(
            f"the installed onnxruntime has no {provider} (it has {', '.join(available)})",
            hint="install a build with it",
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            str(bundle.path / bundle.variants[bundle.variant][graph]),
            options,
            providers=[provider, PROVIDERS["cpu"]],
        )
    except Exception as error:  # onnxruntime raises RuntimeError and its own classes
        raise BundleError(
            f"{provider} cannot load {graph}.onnx ({str(error).splitlines()[0]})",
            hint="serve it with --provider cpu",
        ) from error
    # onnxruntime silently uses the CPU when a driver is missing; decisions would then be slower than planned.
    if provider not in session.get_providers():
        raise UserError(
            f"{provider} could not start (driver or libraries missing): serve with --provider cpu"
        )
    if session.get_modelmeta().custom_metadata_map.get(CONTRACT_ID_KEY) != bundle.contract.contract_id:
        raise BundleError(
            f"{graph}.onnx of bundle {bundle.path} was exported for another contract: export the bundle again"
        )
    return session
