"""Read and verify a policy bundle: the directory (or a .zip of it) that a robot team is handed.

docs/bundle.md describes the format.
"""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rql_deploy.contract import Contract
from rql_deploy.errors import BundleError
from rql_deploy.folders import file_hash, near_paths

from .certificate import Certificate, read_certificate
from .manifest import CONTRACT, MANIFEST, README, Manifest, read_manifest
from .sessions import CONTRACT_ID_KEY, open_session

if TYPE_CHECKING:
    import onnxruntime

MAX_ZIP_BYTES = 4 << 30
COPY_AGAIN = "copy it again or export it again"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those its manifest names."""

    path: Path
    contract: Contract
    manifest: Manifest
    variant: str = "fp32"
    """Which precision `session` opens."""
    # Keeps an unpacked .zip alive for as long as the bundle is.
    _unpacked: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, path: Path | str, variant: str = "fp32") -> Bundle:
        """Open a bundle directory or .zip and check every file but its README against the manifest.

        Raises BundleError, in one sentence, when a file is missing, edited or of another format, or when
        there is no such variant.
        """
        path, unpacked = Path(path), None
        if path.is_file() and zipfile.is_zipfile(path):
            unpacked = _unpack(path)
            path = Path(unpacked.name)
        elif path.is_symlink():
            # What it names now, to the last file that is read: it may name another bundle at any moment.
            path = path.resolve()
        if not path.is_dir():
            raise BundleError(
                f"there is no bundle at {path}: pass the folder that `rql-deploy export --output` "
                f"wrote{near_paths(path)}"
            )
        manifest = read_manifest(path)
        for name, digest in manifest.files.items():
            file = path / name
            if not file.is_file():
                raise BundleError(f"bundle {path} lacks {name}: {COPY_AGAIN}")
            # The model card is for people, who may write more into it; nothing reads it.
            if name != README and file_hash(file) != digest:
                raise BundleError(
                    f"{name} of bundle {path} is not the file its manifest describes (truncated or edited): "
                    f"{COPY_AGAIN}"
                )
        contract = Contract.from_json((path / CONTRACT).read_text())
        if contract.contract_id != manifest.contract_id:
            raise BundleError(
                f"the contract of bundle {path} is not the one its manifest names: {COPY_AGAIN}"
            )
        if odd := [field.name for field in contract.plant.fields if field.dtype != "float32"]:
            raise BundleError(
                f"bundle {path} has a field '{odd[0]}' that is not float32, "
                "which no policy network here reads"
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
        return self.manifest.graph_files()

    def session(
        self, graph: str, variant: str | None = None, threads: int = 1
    ) -> onnxruntime.InferenceSession:
        """An onnxruntime session of one graph (`encode`, `refine`, `policy`, `value`), set for control work.

        Raises BundleError when the graph was exported for another contract.
        """
        name = self.variants[variant or self.variant][graph]
        session = open_session(self.path / name, threads)
        embedded = session.get_modelmeta().custom_metadata_map.get(CONTRACT_ID_KEY)
        if embedded != self.contract.contract_id:
            raise BundleError(
                f"{name} of bundle {self.path} was exported for another contract: export the bundle again"
            )
        return session

    def certificate(self) -> Certificate:
        """The certificate made at export."""
        return read_certificate(self.path)


def _unpack(path: Path) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="rql-deploy-bundle-")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_ZIP_BYTES:
                most = MAX_ZIP_BYTES >> 30
                raise BundleError(f"{path} unpacks to more than {most} GiB: that is not a policy bundle")
            archive.extractall(folder.name)
    # What is damaged, encrypted or packed in a way that Python does not know has errors of all kinds.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path} cannot be unpacked ({error}): copy it again") from error
    # A zip of the folder itself holds everything one level down, beside which a Mac puts a folder of its own.
    root = Path(folder.name)
    inner = [entry for entry in root.iterdir() if (entry / MANIFEST).is_file()]
    if len(inner) == 1 and not (root / MANIFEST).exists():
        for file in list(inner[0].iterdir()):
            file.rename(root / file.name)
        with contextlib.suppress(OSError):
            inner[0].rmdir()
    return folder
