"""What `--map`, `--task-index` and `--camera` mean where several data sets are read with the same words."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from rql_deploy.cameras import parse_cameras
from rql_deploy.errors import UserError
from rql_deploy.train.data.folder import write_store
from rql_deploy.train.data.readers import open_stores
from rql_deploy.train.data.readers.options import KeyMap, ReadOptions
from rql_deploy.train.data.shards import with_plant
from tests.helpers.data import make_picture_store, make_store
from tests.helpers.pictures import TOP, write_lerobot


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RQL_DEPLOY_CACHE", str(tmp_path / "cache"))


def test_a_field_is_left_out_of_those_sets_that_have_it(tmp_path: Path) -> None:
    store = make_store()
    write_store(store, tmp_path / "whole")
    bare = msgspec.structs.replace(store.plant, fields=store.plant.fields[1:])
    write_store(with_plant(store, bare), tmp_path / "bare")
    both = [str(tmp_path / "whole"), str(tmp_path / "bare")]
    options = ReadOptions(KeyMap.parse(["observation.position="]))
    joined = open_stores(both, options=options)
    assert [field.name for field in joined.plant.fields] == ["opening"]
    with pytest.raises(UserError, match=r"does not have.*did you mean position"):
        open_stores(both, options=ReadOptions(KeyMap.parse(["observation.positoin="])))


def test_words_for_a_file_of_another_program_are_not_for_a_store_beside_it(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set")
    options = ReadOptions(
        KeyMap.parse(["action=action", "observation.state="]), (0,), parse_cameras(["top:16x32:rgb"])
    )
    write_store(open_stores([str(folder)], options=options).sample, tmp_path / "imported")
    joined = open_stores([str(folder), str(tmp_path / "imported")], options=options).sample
    frames = joined.images[TOP].take(np.arange(len(joined)))
    assert len(joined) == 48 and joined.plant.fields == ()
    np.testing.assert_array_equal(frames[:24], frames[24:])


def test_one_store_takes_no_words_for_files_of_other_programs(tmp_path: Path) -> None:
    write_store(make_picture_store(), tmp_path / "data")
    for options, words in (
        (ReadOptions(KeyMap.parse(["action=cmd"])), "names keys of other programs' files"),
        (ReadOptions(tasks=(0,)), "--task-index selects language tasks"),
    ):
        for names in ([str(tmp_path / "data")], [str(tmp_path / "data")] * 2):
            with pytest.raises(UserError, match=words):
                open_stores(names, options=options)
