"""Bundles that are packed, linked, and exchanged while they are read."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from rql_deploy.bundle import bundle as bundle_module
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.manifest import Manifest, read_manifest
from rql_deploy.errors import BundleError
from tests.helpers.commands import assert_refused, cli


def packed(
    bundle: Path, file: Path, prefix: str = "", *others: str, method: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for one in bundle.iterdir():
            archive.write(one, prefix + one.name)
        for other in others:
            archive.writestr(other, b"Mac OS X")
    return file


@pytest.mark.parametrize("prefix", ["", "tiny/"])
def test_a_packed_bundle_is_the_bundle_although_a_mac_packed_it(
    prefix: str, bundle: Path, tmp_path: Path
) -> None:
    file = packed(bundle, tmp_path / "b.zip", prefix, "__MACOSX/tiny/._contract.json", "__MACOSX/._tiny")
    assert Bundle.open(file).contract == Bundle.open(bundle).contract


def test_a_packed_bundle_that_cannot_be_unpacked_is_refused_in_a_sentence(
    bundle: Path, tmp_path: Path
) -> None:
    file = packed(bundle, tmp_path / "b.zip", method=zipfile.ZIP_DEFLATED)
    whole = file.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for name, offset, value in (
        ("encrypted", directory + 8, b"\x01"),
        ("unknown method", directory + 10, b"\x63"),
        ("damaged", 60, bytes(40)),
    ):
        file.write_bytes(whole[:offset] + value + whole[offset + len(value) :])
        (tmp_path / f"{name}.zip").write_bytes(file.read_bytes())
        refused = cli("inspect", tmp_path / f"{name}.zip")
        assert_refused(refused, f"{name}.zip cannot be unpacked", "copy it again")


def test_a_link_that_is_moved_while_a_bundle_is_opened_gives_one_bundle(
    bundle: Path, picture_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "live"
    link.symlink_to(bundle)

    def exchange(folder: Path) -> Manifest:
        manifest = read_manifest(folder)
        link.unlink()
        link.symlink_to(picture_bundle)
        return manifest

    with monkeypatch.context() as patch:
        patch.setattr(bundle_module, "read_manifest", exchange)
        opened = Bundle.open(link)
    assert opened.contract == Bundle.open(bundle).contract
    opened.session("encode")
    assert Bundle.open(link).contract == Bundle.open(picture_bundle).contract
    link.unlink()
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(BundleError, match="there is no bundle at"):
        Bundle.open(link)


def test_a_bundle_in_a_folder_with_spaces_and_accents_is_read(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "mein Bündel #1")
    assert Bundle.open(tmp_path / "mein Bündel #1").contract == Bundle.open(bundle).contract
