"""Read and verify a policy bundle: the directory (or a .zip of it) that a robot team is handed. docs/bundle.md describes it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.contract import Contract
from rql_deploy.errors import BundleError

if TYPE_CHECKING:
    import onnxruntime

GRAPHS = ("encode", "refine", "policy", "value")
CONTRACT, MANIFEST, CERTIFICATE, CASES, README = (
    "contract.json",
    "manifest.json",
    "certificate.json",
    "certificate_cases.npz",
    "README.md",
)
CONTRACT_KEY = "rql_deploy_contract"
CONTRACT_ID_KEY = "rql_deploy_contract_id"
FORMAT = 2
"""Of the manifest. Format 1 (which this reads too) knew the float32 variant only."""
FLOAT32_FILES = {"fp32": {graph: f"{graph}.onnx" for graph in GRAPHS}}
MAX_ZIP_BYTES = 4 << 30


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those its manifest names."""

    path: Path
    contract: Contract
    manifest: dict[str, Any]
    variant: str = "fp32"
    """Which precision `session` opens."""
    # Keeps an unpacked .zip alive for as long as the bundle is.
    _unpacked: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, path: Path | str, variant: str = "fp32") -> Bundle:
        """Open a bundle directory or .zip and check every file against the manifest.

        Raises BundleError, in one sentence, when a file is missing, edited or of another schema, or when there is no such variant.
        """
        path, unpacked = Path(path), None
        if path.is_file() and zipfile.is_zipfile(path):
            unpacked = _unpack(path)
            path = Path(unpacked.name)
        if not path.is_dir():
            raise BundleError(
                f"there is no bundle at {path}: pass the folder that `rql-deploy export --output` wrote"
            )
        manifest = _read_manifest(path)
        for name, digest in manifest["files"].items():
            file = path / name
            if not file.is_file():
                raise BundleError(f"bundle {path} lacks {name}: copy it again or export it again")
            if file_hash(file) != digest:
                raise BundleError(
                    f"{name} of bundle {path} is not the file its manifest describes (truncated or edited): "
                    "copy it again or export it again"
                )
        contract = Contract.from_json((path / CONTRACT).read_text())
        if contract.contract_id != manifest["contract_id"]:
            raise BundleError(
                f"the contract of bundle {path} is not the one its manifest names: copy it again or export it again"
            )
        if odd := [field.name for field in contract.plant.fields if field.dtype != "float32"]:
            raise BundleError(
                f"bundle {path} has a field '{odd[0]}' that is not float32, which no policy network here reads"
            )
        bundle = cls(path, contract, manifest, variant, unpacked)
        if variant not in bundle.variants:
            raise BundleError(
                f"bundle {path} has no variant '{variant}' (there is {', '.join(bundle.variants)}): "
                f"pass another, or export with --precision {variant}"
            )
        return bundle

    @property
    def variants(self) -> dict[str, dict[str, str]]:
        """Graph files by variant (precision) and graph; `fp32` is always there."""
        if self.manifest["format"] == 1:
            return FLOAT32_FILES
        return {name: dict(files) for name, files in self.manifest["variants"].items()}

    def session(
        self, graph: str, variant: str | None = None, threads: int = 1
    ) -> onnxruntime.InferenceSession:
        """An onnxruntime session of one graph (`encode`, `refine`, `policy`, `value`), set for control work; checks its contract."""
        name = self.variants[variant or self.variant][graph]
        session = open_session(self.path / name, threads)
        embedded = session.get_modelmeta().custom_metadata_map.get(CONTRACT_ID_KEY)
        if embedded != self.contract.contract_id:
            raise BundleError(
                f"{name} of bundle {self.path} was exported for another contract: export the bundle again"
            )
        return session

    def certificate(self) -> dict[str, Any]:
        """The certificate made at export."""
        try:
            certificate: dict[str, Any] = json.loads((self.path / CERTIFICATE).read_text())
            _ = max(float(entry["max_error"]) for entry in certificate["checks"]), certificate["tolerance"]
            return certificate
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{CERTIFICATE} of bundle {self.path} cannot be read ({error}): export the bundle again"
            ) from error


def session_options(threads: int = 1) -> onnxruntime.SessionOptions:
    """Few threads and no spinning: idle threads that spin starve the control loop beside them."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BundleError("onnxruntime is not installed: pip install 'rql-deploy[serve]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def open_session(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """A CPU session of one graph file."""
    options = session_options(threads)
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises bare RuntimeErrors and classes of its own
        raise BundleError(
            f"onnxruntime cannot load {path} ({str(error).splitlines()[0]}): export the bundle again"
        ) from error


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(
    folder: Path, contract: Contract, variants: Mapping[str, Mapping[str, str]] = FLOAT32_FILES
) -> None:
    """Hash every file of a finished bundle folder into its manifest."""
    files = {file.name: file_hash(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    manifest = {"format": FORMAT, "contract_id": contract.contract_id, "files": files, "variants": variants}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = manifest["files"]
        if manifest["format"] not in range(1, FORMAT + 1):
            raise BundleError(
                f"bundle {path} has format {manifest['format']!r}, this rql-deploy reads 1 to {FORMAT}: "
                "export it again, or update rql-deploy if the bundle is newer"
            )
        variants = FLOAT32_FILES if manifest["format"] == 1 else manifest["variants"]
        graphs = {file for graph_files in variants.values() for file in (graph_files[g] for g in GRAPHS)}
        required = {CONTRACT, CERTIFICATE, CASES, *graphs, *FLOAT32_FILES["fp32"].values()}
        if variants.get("fp32") != FLOAT32_FILES["fp32"]:
            raise ValueError("its float32 variant is not made of the float32 graphs")
        for variant, graph_files in variants.items():
            if any(
                graph_files[graph] not in (f"{graph}.onnx", f"{graph}.{variant}.onnx") for graph in GRAPHS
            ):
                raise ValueError(f"variant {variant} has graphs in each other's places")
        if (
            not isinstance(manifest["contract_id"], str)
            or not required <= files.keys()
            or any("/" in name or name.startswith(".") for name in files)
        ):
            raise ValueError("it does not list the files of a bundle")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{path} is not a policy bundle ({MANIFEST}: {error}): pass the folder that `rql-deploy export --output` wrote"
        ) from error
    return dict(manifest)


def _unpack(path: Path) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="rql-deploy-bundle-")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_ZIP_BYTES:
                raise BundleError(
                    f"{path} unpacks to more than {MAX_ZIP_BYTES >> 30} GiB: that is not a policy bundle"
                )
            archive.extractall(folder.name)
    except (zipfile.BadZipFile, OSError) as error:
        raise BundleError(f"{path} cannot be unpacked ({error}): copy it again") from error
    # A zip of the folder itself holds everything one level down.
    inner = list(Path(folder.name).iterdir())
    if len(inner) == 1 and inner[0].is_dir():
        for file in list(inner[0].iterdir()):
            file.rename(Path(folder.name) / file.name)
        with contextlib.suppress(OSError):
            inner[0].rmdir()
    return folder
