"""What is served, what is kept, and what a crash leaves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import UserError
from rql_deploy.workflows.improvement.generations import Generation, Generations, write_json
from rql_deploy.workflows.improvement.loop import rollback
from tests.helpers.commands import assert_refused, cli


def forbidden(_: Path) -> None:
    raise AssertionError("there is a bundle already")


def add(generations: Generations, number: int, bundle: Path, *, parent: int, serve: bool = True) -> None:
    generations.begin(
        Generation(number, parent, "run", ("a",), 3, 1),
        lambda folder: shutil.copytree(bundle, folder / "bundle") and None,
    )
    if serve:
        generations.serve(number)


def test_a_bundle_that_is_served_already_becomes_the_first_generation(bundle: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    shutil.copytree(bundle, live)
    generations = Generations(live)
    generations.begin_first(tmp_path / "run", forbidden)
    assert live.is_symlink() and generations.served() == 0
    assert Bundle.open(live).manifest == Bundle.open(bundle).manifest
    # A relative link: the folder may be moved or mounted elsewhere.
    assert not os.path.isabs(os.readlink(live))
    generations.begin_first(tmp_path / "run", forbidden)
    assert generations.numbers() == [0]


def test_a_folder_in_the_place_of_the_link_is_neither_served_nor_lost(bundle: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    generations = Generations(live)
    generations.begin_first(tmp_path / "run", lambda target: shutil.copytree(bundle, target) and None)
    live.unlink()
    shutil.copytree(bundle, live)
    with pytest.raises(UserError, match=r"live is a folder, and no more the link .*: move the folder away"):
        generations.begin_first(tmp_path / "run", forbidden)
    assert live.is_dir() and not live.is_symlink()
    live.rename(tmp_path / "away")
    generations.begin_first(tmp_path / "run", forbidden)
    assert generations.served() == 0


def test_a_file_in_the_place_of_the_link_is_not_replaced(tmp_path: Path) -> None:
    packed = tmp_path / "bundle.zip"
    packed.write_text("packed")
    with pytest.raises(UserError, match="is a file: pass the folder of a bundle"):
        Generations(packed).begin_first(tmp_path / "run", forbidden)
    assert packed.read_text() == "packed"


def test_without_a_bundle_the_run_is_exported(bundle: Path, tmp_path: Path) -> None:
    generations = Generations(tmp_path / "live")
    generations.begin_first(tmp_path / "run", lambda target: shutil.copytree(bundle, target) and None)
    assert Bundle.open(tmp_path / "live").contract == Bundle.open(bundle).contract


@pytest.mark.parametrize("crash", ["before the copy", "half a copy", "moved away"])
def test_a_crash_while_the_first_generation_is_made_loses_nothing(
    bundle: Path, tmp_path: Path, crash: str
) -> None:
    live = tmp_path / "live"
    shutil.copytree(bundle, live)
    generations = Generations(live)
    generations.folder.mkdir()
    generations.begin(Generation(0, 0, "run"), lambda _: None)
    if crash == "half a copy":
        (generations.path(0) / ".bundle.partial").mkdir()
    elif crash == "moved away":
        shutil.copytree(live, generations.bundle(0))
        live.rename(generations.path(0) / "before_improvement")
    generations.begin_first(tmp_path / "run", forbidden)
    assert Bundle.open(live).manifest == Bundle.open(bundle).manifest
    assert generations.served() == 0


def test_rollback_goes_to_what_was_served_before_and_keeps_the_other(bundle: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    shutil.copytree(bundle, live)
    generations = Generations(live)
    generations.begin_first(tmp_path / "run", forbidden)
    with pytest.raises(UserError, match="generation 0 is served, and it is the first"):
        rollback(live)
    add(generations, 1, bundle, parent=0)
    add(generations, 2, bundle, parent=1, serve=False)
    add(generations, 3, bundle, parent=1)
    told = cli("rollback", live)
    assert told.exit_code == 0, told.output
    assert "is generation 1 again, instead of 3" in told.output
    assert f"rql-deploy rollback {live} --to 3" in told.output
    assert generations.served() == 1 and generations.was_served(3)
    assert (generations.folder / "README.md").read_text().count("| served |") == 1
    assert rollback(live) == (1, 0)
    assert rollback(live, 3) == (0, 3)
    assert_refused(cli("rollback", live, "--to", 9), "there is no generation 9", "which has 0, 1, 2, 3")
    assert_refused(cli("rollback", tmp_path / "nothing"), "is not a link into", "improve --serve-as")


def test_damage_is_one_sentence(bundle: Path, tmp_path: Path) -> None:
    generations = Generations(tmp_path / "live")
    generations.begin_first(tmp_path / "run", lambda target: shutil.copytree(bundle, target) and None)
    add(generations, 1, bundle, parent=0)
    (generations.path(1) / "generation.json").write_text("{")
    assert_refused(cli("rollback", tmp_path / "live"), "generation.json is damaged")
    (generations.path(1) / "gate.json").write_text("[")
    with pytest.raises(UserError, match="remove it, to compare again"):
        generations.gate(1)
    shutil.rmtree(generations.bundle(1))
    with pytest.raises(UserError, match="generation 1 has no bundle"):
        generations.serve(1)


def test_a_file_that_cannot_be_written_keeps_the_old_one(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text().split() == ["{", '"a":', "1", "}"]
