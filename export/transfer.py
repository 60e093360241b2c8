"""Copy bundles to and from folders and Hugging Face repositories (`hf://OWNER/NAME[@REVISION]`)."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.manifest import MANIFEST
from rql_deploy.errors import UserError
from rql_deploy.folders import new_folder

SCHEME = "hf://"
_REPOSITORY = re.compile(r"^hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?$")


def push(bundle: Path, target: str) -> Bundle:
    """Verify a bundle and copy it to a new folder or to a repository; returns the bundle.

    Raises UserError when the bundle is damaged, the folder exists or the hub refuses; needs the `hub` extra
    for repositories.
    """
    opened = Bundle.open(bundle)
    files = [*opened.manifest.files, MANIFEST]
    if not target.startswith(SCHEME):
        with new_folder(Path(target)) as staging:
            for name in files:
                shutil.copyfile(opened.path / name, staging / name)
        return opened
    from huggingface_hub import CommitOperationAdd, HfApi

    name, revision = _repository(target)
    with _hub_errors(target):
        api = HfApi()
        api.create_repo(name, exist_ok=True, private=True)
        operations = [
            CommitOperationAdd(path_in_repo=file, path_or_fileobj=str(opened.path / file)) for file in files
        ]
        message = f"Bundle of contract {opened.contract.contract_id[:12]}"
        api.create_commit(name, operations, commit_message=message, revision=revision)
    return opened


def pull(source: str, output: Path) -> Bundle:
    """Copy a bundle from a folder, a .zip or a repository to the new folder `output`, and verify it.

    Only the files that its manifest names are taken. Raises UserError when there is none, or when it is
    damaged; nothing is left then.
    """
    with new_folder(output) as staging:
        if source.startswith(SCHEME):
            _download(source, staging)
            opened = Bundle.open(staging)
        else:
            origin = Bundle.open(Path(source))
            for name in (*origin.manifest.files, MANIFEST):
                shutil.copyfile(origin.path / name, staging / name)
            opened = Bundle.open(staging)
        for entry in staging.iterdir():
            if entry.name not in opened.manifest.files and entry.name != MANIFEST:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return Bundle.open(output)


def _download(source: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    name, revision = _repository(source)
    with _hub_errors(source):
        snapshot_download(
            name,
            revision=revision,
            local_dir=folder,
            allow_patterns=["*.json", "*.onnx", "*.npz", "README.md"],
        )


def _repository(text: str) -> tuple[str, str | None]:
    match = _REPOSITORY.match(text)
    if match is None:
        raise UserError(f"'{text}' is not a repository: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return match["name"], match["revision"]


@contextlib.contextmanager
def _hub_errors(where: str) -> Iterator[None]:
    """Turn what the hub's library raises into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # HTTP libraries' own classes, which change with the hub library's version
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{where} cannot be reached or refuses ({reason}): "
            "check the name, the network and `hf auth login`"
        ) from error
