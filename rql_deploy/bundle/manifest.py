"""The manifest of a bundle: its files, their hashes, and the graphs of each variant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rql_deploy.contract import Contract
from rql_deploy.errors import BundleError
from rql_deploy.folders import file_hash
from rql_deploy.structs import Record, convert, to_plain

GRAPHS = ("encode", "refine", "policy", "value")
CONTRACT, MANIFEST, CERTIFICATE = "contract.json", "manifest.json", "certificate.json"
CASES, README = "certificate_cases.npz", "README.md"
FORMAT = 2
"""Of new manifests. Format 1, which is read too, knew the float32 variant only."""
FLOAT32_FILES: Mapping[str, Mapping[str, str]] = {"fp32": {graph: f"{graph}.onnx" for graph in GRAPHS}}
HASH_BLOCK = 1 << 20


class Manifest(Record, frozen=True):
    """manifest.json."""

    format: int
    """Of this file; a reader refuses a format it does not know."""
    contract_id: str
    """sha256 of the contract's canonical form."""
    files: Mapping[str, str]
    """sha256 of every other file of the bundle, by name."""
    variants: Mapping[str, Mapping[str, str] | tuple[str, ...]]
    """By precision (`fp32`, `int8`, ...): the file of each graph. Format 1 has a list of files here."""

    def graph_files(self) -> dict[str, dict[str, str]]:
        """Graph files by variant (precision) and graph; `fp32` is always there."""
        variants = FLOAT32_FILES if self.format == 1 else self.variants
        return {name: dict(files) for name, files in variants.items() if isinstance(files, Mapping)}

    def faults(self) -> list[str]:
        """What types cannot say: files that are missing, graphs in each other's places."""
        variants, found = self.graph_files(), []
        if len(variants) < len(self.variants) or any(
            set(files) != set(GRAPHS) for files in variants.values()
        ):
            return [f"each variant needs a file for {', '.join(GRAPHS)}"]
        if variants.get("fp32") != FLOAT32_FILES["fp32"]:
            found.append("its float32 variant is not made of the float32 graphs")
        for variant, files in variants.items():
            if any(files[graph] not in (f"{graph}.onnx", f"{graph}.{variant}.onnx") for graph in GRAPHS):
                found.append(f"variant {variant} has graphs in each other's places")
        required = {
            CONTRACT,
            CERTIFICATE,
            CASES,
            *(name for files in variants.values() for name in files.values()),
        }
        if missing := sorted(required - self.files.keys()):
            found.append(f"it does not list {missing[0]}")
        if outside := [name for name in self.files if "/" in name or name.startswith(".")]:
            found.append(f"it lists {outside[0]!r}, which is not a file name in a bundle")
        return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle folder; raises BundleError when it is missing, damaged or too new."""
    advice = "pass the folder that `rql-deploy export --output` wrote"
    file = folder / MANIFEST
    try:
        if file.exists() and not file.is_file():
            raise ValueError("not a file")  # a named pipe would hold its reader for ever
        data = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{folder} is not a policy bundle ({MANIFEST}: {error}): {advice}") from error
    version = data.get("format") if isinstance(data, dict) else None
    if isinstance(version, int) and version not in range(1, FORMAT + 1):
        raise BundleError(
            f"bundle {folder} has format {version}, this rql-deploy reads 1 to {FORMAT}: "
            "export it again, or update rql-deploy if the bundle is newer"
        )
    try:
        manifest = convert(data, Manifest, MANIFEST, BundleError)
        if faults := manifest.faults():
            raise BundleError(f"{MANIFEST}: {faults[0]}")
    except BundleError as error:
        raise BundleError(f"{folder} is not a policy bundle ({error}): {advice}") from None
    return manifest


def write_manifest(
    folder: Path, contract: Contract, variants: Mapping[str, Mapping[str, str]] = FLOAT32_FILES
) -> None:
    """Hash every file of a finished bundle folder into its manifest."""
    files = {file.name: file_hash(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    manifest = Manifest(FORMAT, contract.contract_id, files, variants)
    (folder / MANIFEST).write_text(json.dumps(to_plain(manifest), indent=1))
