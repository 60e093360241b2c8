"""`rql-deploy data`, on real files of every format."""

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
from ogbench.utils import load_dataset

from rql_deploy.train.data.readers import open_store
from tests.helpers.commands import ROOT, assert_refused, cli, printed, run_cli
from tests.helpers.data import PLANT, ROBOMIMIC, make_store, opened, stored

TARGETS = {
    "store": "out",
    "ogbench": "out.npz",
    "robomimic": "out.hdf5",
    "lerobot": "out-lerobot",
    "minari": "out-minari",
    "minari-arrow": "out-arrow",
}


def rows_after_success() -> dict[str, Any]:
    """Two fields and bounds other than 1, final observations, and masks that end in the last row: all that
    a store can hold.
    """
    store = make_store()
    rng = np.random.default_rng(5)
    return {"finals": rng.normal(size=(store.episodes, store.plant.observation_dim)).astype(np.float32)}


@pytest.mark.parametrize("first", TARGETS)
@pytest.mark.parametrize("second", ["store", "ogbench", "robomimic", "lerobot"])
def test_rows_come_through_every_format_unchanged(first: str, second: str, tmp_path: Path) -> None:
    source = stored(tmp_path / "source", **rows_after_success())
    there = printed(
        cli("data", "convert", source, "--to", first, "--output", tmp_path / TARGETS[first], "--json")
    )
    back = tmp_path / f"back{Path(TARGETS[second]).suffix}"
    printed(cli("data", "convert", there["dataset"], "--to", second, "--output", back, "--json"))
    original, result = opened(source), opened(back)
    assert result.content_hash == original.content_hash
    assert result.plant == original.plant
    lost = " ".join(there["lost"])
    on_the_way = opened(there["dataset"])
    if on_the_way.finals is None:
        assert "after each episode's last action is not kept" in lost
    else:
        assert np.array_equal(on_the_way.finals, original.finals)  # type: ignore[arg-type]
    if on_the_way.successes is None:
        assert "which episodes succeeded is not kept" in lost
    else:
        assert np.array_equal(on_the_way.successes, original.successes)  # type: ignore[arg-type]


def test_ogbench_loads_what_was_converted(tmp_path: Path) -> None:
    printed(cli("data", "convert", ROBOMIMIC, "--output", tmp_path / "lift.npz", "--json"))
    loaded, store = load_dataset(str(tmp_path / "lift.npz")), opened(ROBOMIMIC)
    assert np.array_equal(loaded["observations"], store.observations)
    assert store.finals is not None
    assert np.array_equal(loaded["next_observations"][store.ends - 1], store.finals)


def test_minari_loads_what_was_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    printed(cli("data", "convert", ROBOMIMIC, "--output", "lift/converted-v0", "--json"))
    episodes = list(minari.load_dataset("lift/converted-v0"))
    assert [len(episode.actions) for episode in episodes] == [31, 29, 30]
    assert episodes[0].observations["object"].shape == (32, 10)


def test_a_public_lerobot_set_keeps_its_rows_in_our_store(tmp_path: Path) -> None:
    source = ROOT / "tests" / "data" / "lerobot" / "v2.1"
    printed(cli("data", "convert", source, "--to", "lerobot", "--output", tmp_path / "new", "--json"))
    old, new = opened(source), opened(tmp_path / "new")
    assert new.content_hash == old.content_hash and new.plant == old.plant
    assert json.loads((tmp_path / "new" / "meta" / "info.json").read_text())["codebase_version"] == "v3.0"


def test_what_training_does_not_read_is_named_when_it_is_left_behind(tmp_path: Path) -> None:
    file = Path(shutil.copy(ROBOMIMIC, tmp_path / "demos.hdf5"))
    with h5py.File(file, "a") as opened_file:
        for demo in opened_file["data"].values():
            rows = len(demo["actions"])
            demo["states"], demo["obs/agentview_image"] = (
                np.zeros((rows, 32)),
                np.zeros((rows, 2, 2, 3), np.uint8),
            )
    lost = printed(cli("data", "convert", file, "--output", tmp_path / "out", "--json"))["lost"]
    assert lost == ["not read by training and so left behind: obs/agentview_image, states"]
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(20, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (20, 5)).astype(np.float32),
    }
    labels = {"rewards": np.arange(20) * 0.1 - 2, "masks": np.ones(20)}
    np.savez(
        tmp_path / "a.npz",
        **arrays,
        **labels,
        terminals=np.arange(20) % 10 == 9,
        qpos=np.zeros((20, 25)),
        qvel=np.zeros(20),
    )
    lost = printed(
        cli("data", "convert", tmp_path / "a.npz", "--to", "minari", "--output", tmp_path / "set", "--json")
    )["lost"]
    assert lost == ["not read by training and so left behind: qpos, qvel"]
    assert printed(cli("data", "inspect", tmp_path / "set", "--json"))["left_out"] == []


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored(tmp_path / "source")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert_refused(
        cli("data", "convert", source, "--output", tmp_path / "out.npz"), "No space left", "nothing is left"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_merging_keeps_the_order_and_refuses_other_plants(tmp_path: Path) -> None:
    a, b = stored(tmp_path / "a"), stored(tmp_path / "b", actions=make_store().actions * 0.5)
    result = printed(cli("data", "merge", a, b, "--output", tmp_path / "both", "--json"))
    assert (result["episodes"], result["rows"]) == (6, 56)
    assert np.array_equal(opened(tmp_path / "both").actions[28:], opened(b).actions)
    assert_refused(cli("data", "merge", a, ROBOMIMIC, "--output", tmp_path / "x"), "cannot be combined")
    assert_refused(cli("data", "merge", a, "--output", tmp_path / "x"), "at least two")
    fields = (msgspec.structs.replace(PLANT.fields[0], unit="mm"), PLANT.fields[1])
    millimetres = stored(tmp_path / "mm", plant=msgspec.structs.replace(PLANT, fields=fields))
    assert_refused(
        cli("data", "merge", a, millimetres, "--output", tmp_path / "x"),
        "'position' is in 'mm' instead of 'm'",
    )
    rewarded = stored(tmp_path / "rewarded", rewards=make_store().rewards + 1)
    assert "so the same outcome counts for more" in cli(
        "data", "merge", a, rewarded, "--output", tmp_path / "mixed"
    ).output.replace("\n", " ")


def test_splitting_divides_whole_episodes(tmp_path: Path) -> None:
    source = stored(tmp_path / "source", **rows_after_success())
    arguments = (
        "data",
        "split",
        source,
        "--fraction",
        0.34,
        "--output",
        tmp_path / "t.npz",
        "--validation",
        tmp_path / "t-val.npz",
        "--json",
    )
    result = printed(cli(*arguments))
    assert (result["episodes"], result["validation_episodes"]) == (2, 1)
    train, held, whole = opened(tmp_path / "t.npz"), opened(tmp_path / "t-val.npz"), opened(source)
    lengths = sorted([*np.diff(train.ends, prepend=0), *np.diff(held.ends, prepend=0)])
    assert lengths == [7, 9, 12]
    both = np.concatenate((train.observations, held.observations))
    assert np.array_equal(np.sort(both[:, 0]), np.sort(whole.observations[:, 0]))
    assert_refused(cli(*arguments), "exists already")
    assert_refused(
        cli("data", "split", source, "--output", tmp_path / "a", "--validation", tmp_path / "b"),
        "leaves one side empty",
    )


def test_what_only_some_of_the_joined_sets_know_is_said_to_be_lost(tmp_path: Path) -> None:
    a, b = stored(tmp_path / "a"), stored(tmp_path / "b", successes=None, actions=make_store().actions * 0.5)
    lost = printed(cli("data", "merge", a, b, "--output", tmp_path / "both", "--json"))["lost"]
    assert lost == ["which episodes succeeded is not kept, since tiny/data-v0 does not say"]


def test_splitting_writes_both_parts_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored(tmp_path / "source")
    split = ("data", "split", source, "--fraction", 0.34)
    assert_refused(
        cli(*split, "--output", tmp_path / "t", "--validation", tmp_path / "t"),
        "cannot be training and validation data at once",
    )
    assert_refused(
        cli(*split, "--output", tmp_path / "t", "--validation", tmp_path / "v.npz"),
        "looks like a file of format ogbench",
    )
    assert_refused(cli(*split, "--output", source / "store.json" / "t", "--validation", tmp_path / "v"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source"]
    told = cli(*split, "--output", tmp_path / "t", "--validation", tmp_path / "v").output
    assert f"data inspect {tmp_path / 't'} --validation {tmp_path / 'v'}" in told


@pytest.mark.parametrize(
    ("form", "name"), [("store", "a.npz"), ("lerobot", "a.npz"), ("minari", "a.hdf5"), ("store", "a.h5")]
)
def test_a_folder_does_not_get_the_name_of_a_file(form: str, name: str, tmp_path: Path) -> None:
    refused = cli("data", "convert", stored(tmp_path / "source"), "--to", form, "--output", tmp_path / name)
    assert_refused(refused, "looks like a file", f"{form} is a folder")


def test_two_fields_that_lerobot_would_call_alike_are_refused(tmp_path: Path) -> None:
    fields = tuple(
        msgspec.structs.replace(spec, name=name)
        for spec, name in zip(make_store().plant.fields, ("observation", "state"), strict=True)
    )
    source = stored(tmp_path / "source", plant=msgspec.structs.replace(make_store().plant, fields=fields))
    assert_refused(
        cli("data", "convert", source, "--to", "lerobot", "--output", tmp_path / "out"),
        "'observation.state': rename one with `rql-deploy data fix",
    )


@pytest.mark.parametrize("name", ["a/b", ".."])
def test_field_names_that_are_paths_do_not_reach_hdf5(name: str, tmp_path: Path) -> None:
    plant = make_store().plant
    source = stored(
        tmp_path / "source",
        plant=msgspec.structs.replace(
            plant, fields=(msgspec.structs.replace(plant.fields[0], name=name), plant.fields[1])
        ),
    )
    for form in ("robomimic", "minari"):
        output = tmp_path / ("out.hdf5" if form == "robomimic" else "out")
        assert_refused(
            cli("data", "convert", source, "--to", form, "--output", output),
            f"no place for an observation field named '{name}'",
        )


@pytest.mark.parametrize("option", [("inspect", "--gamma"), ("split", "--fraction")])
def test_no_number_is_no_number(option: tuple[str, str], tmp_path: Path) -> None:
    more = () if option[0] == "inspect" else ("--output", tmp_path / "a", "--validation", tmp_path / "b")
    assert_refused(
        cli("data", option[0], stored(tmp_path / "source"), option[1], "nan", *more),
        "nan is not a finite number",
    )


def test_a_full_disk_is_noticed_before_hdf5_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    source = stored(tmp_path / "source")
    for form in ("robomimic", "minari"):
        output = tmp_path / ("out.hdf5" if form == "robomimic" else "out")
        assert_refused(
            cli("data", "convert", source, "--to", form, "--output", output),
            "No space left",
            "nothing is left",
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_shards_become_stores_that_stream(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(2):
        printed(
            cli("data", "convert", stored(tmp_path / f"s{i}"), "--output", folder / f"data-{i}.npz", "--json")
        )
    assert_refused(
        cli("data", "convert", folder, "--output", tmp_path / "x.npz"), "can only be converted to stores"
    )
    result = printed(cli("data", "convert", folder, "--output", tmp_path / "stores", "--json"))
    assert result["episodes"] == 6
    assert len(open_store(str(tmp_path / "stores"))) == 56
    page = cli("data", "inspect", folder).output
    assert "the first of 2 shards, which hold 6 episodes, 56 rows together" in page


def test_shards_of_which_one_is_damaged_become_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(2):
        printed(
            cli("data", "convert", stored(tmp_path / f"s{i}"), "--output", folder / f"data-{i}.npz", "--json")
        )
    with np.load(folder / "data-1.npz") as arrays:
        spoiled = dict(arrays)
    spoiled["observations"][3] = np.nan
    np.savez(folder / "data-1.npz", **spoiled)
    assert_refused(cli("data", "convert", folder, "--output", tmp_path / "stores"), "NaN or infinity")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["many", "s0", "s1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", "lift/unknown-v7"), ("no Minari data set 'lift/unknown-v7'",)),
        (("convert", ROBOMIMIC, "--to", "ogbench", "--output", "out.txt"), ("ends in .npz",)),
        (("inspect", f"{ROBOMIMIC}#best"), ("no filter key 'best'", "train")),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments: tuple[object, ...], words: tuple[str, ...]) -> None:
    assert_refused(cli("data", *arguments), *words)


def test_help_teaches() -> None:
    result = run_cli("data", "--help")
    assert result.returncode == 0
    for verb in ("inspect", "convert", "merge", "split", "relabel"):
        assert verb in result.stdout
