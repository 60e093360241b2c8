"""Readers of foreign formats.

The files in tests/data come from lerobot 0.3.3 and 0.4.4 and from robomimic 0.3.0 on robosuite.
"""

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.commands import ROOT

DATA = ROOT / "tests" / "data"
ROBOMIMIC = DATA / "robomimic_low_dim.hdf5"
LEROBOT = [DATA / "lerobot" / version for version in ("v2.1", "v3.0")]


def opened(path: object) -> TransitionStore:
    store = open_store(str(path))
    assert isinstance(store, TransitionStore)
    return store


@pytest.fixture
def robomimic(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROBOMIMIC, tmp_path / "demos.hdf5"))


@pytest.fixture(params=LEROBOT, ids=lambda path: path.name)
def lerobot(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "pick"))


def test_a_file_that_robomimic_extracted_is_read_row_by_row() -> None:
    store = opened(ROBOMIMIC)
    with h5py.File(ROBOMIMIC) as file:
        demos = [file[f"data/demo_{i}"] for i in (1, 2, 3)]
        assert store.ends.tolist() == np.cumsum([len(demo["actions"]) for demo in demos]).tolist()
        assert np.array_equal(
            store.actions, np.concatenate([demo["actions"][:] for demo in demos]).astype(np.float32)
        )
        # Fields stand side by side in the plant's order; the object comes first.
        assert store.plant.fields[0].name == "object"
        assert np.array_equal(
            store.observations[:, :10],
            np.concatenate([demo["obs/object"][:] for demo in demos]).astype(np.float32),
        )
        assert store.finals is not None
        assert np.array_equal(store.finals[1, :10], demos[1]["next_obs/object"][-1].astype(np.float32))
        environment = json.loads(file["data"].attrs["env_args"])
    assert store.plant.task == "robosuite:Lift" and store.plant.control_rate == 20.0
    assert store.plant.environment["env_args"] == environment
    assert set(store.plant.action_low) == {-1.0} and set(store.plant.action_high) == {1.0}
    assert store.successes is not None and store.successes.all()
    # The task ends where the reward is 1, in each demonstration's last row.
    assert np.flatnonzero(store.masks == 0).tolist() == (store.ends - 1).tolist()


def test_a_filter_key_picks_its_demonstrations() -> None:
    train, valid = opened(f"{ROBOMIMIC}#train"), opened(f"{ROBOMIMIC}#valid")
    assert (train.episodes, valid.episodes) == (2, 1)
    with pytest.raises(UserError, match="no filter key 'trian': did you mean train"):
        open_store(f"{ROBOMIMIC}#trian")


def test_a_failed_demonstration_whose_end_is_marked_done_still_goes_on(robomimic: Path) -> None:
    with h5py.File(robomimic, "a") as file:
        file["data/demo_2/rewards"][:] = 0
    store = opened(robomimic)
    assert store.successes is not None and store.successes.tolist() == [True, False, True]
    assert store.masks[store.ends[1] - 1] == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda f: f.__delitem__("data/demo_1/obs"),
            "demo_1 holds .* but no observations.*dataset_states_to_obs",
        ),
        (lambda f: f.__delitem__("data/demo_2/actions"), "demo_2 lacks 'actions'"),
        (lambda f: f.__delitem__("data/demo_2/obs/object"), "demo_2 lacks obs/object"),
        (lambda f: [f.__delitem__(f"data/demo_{i}") for i in (1, 2, 3)], "no demonstrations"),
        (
            lambda f: (
                f.__delitem__("data/demo_2/rewards"),
                f["data/demo_2"].create_dataset("rewards", data=[1.0]),
            ),
            "1 rewards for",
        ),
        (
            lambda f: (
                f.__delitem__("data/demo_3/actions"),
                f["data/demo_3"].create_dataset("actions", data=np.zeros((0, 7))),
            ),
            "has no rows",
        ),
        (
            lambda f: (
                f.__delitem__("data/demo_2/actions"),
                f["data/demo_2"].create_dataset("actions", data=np.zeros((29, 6))),
            ),
            "6 dimensions",
        ),
        (
            lambda f: f["data"].__setitem__("demo_9", h5py.ExternalLink("absent.hdf5", "/data/demo_0")),
            "demo_9 is a link to what is not there",
        ),
    ],
)
def test_a_robomimic_file_that_does_not_fit_is_named_in_one_sentence(
    spoil: Any, words: str, robomimic: Path
) -> None:
    with h5py.File(robomimic, "a") as file:
        spoil(file)
    with pytest.raises(UserError, match=words) as refused:
        open_store(str(robomimic))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_a_truncated_robomimic_file_is_damage(share: float, robomimic: Path) -> None:
    robomimic.write_bytes(robomimic.read_bytes()[: int(share * robomimic.stat().st_size)])
    with pytest.raises(UserError, match=r"demos.hdf5 is damaged"):
        open_store(str(robomimic))


def test_a_missing_hdf5_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        open_store(str(tmp_path / "nothing.hdf5"))


def test_both_layouts_of_lerobot_hold_the_rows_that_were_recorded(lerobot: Path) -> None:
    # What tests/data/lerobot was recorded from, frame by frame.
    rng = np.random.default_rng(0)
    rows = [(rng.normal(size=4), rng.normal(size=2), rng.uniform(-2, 2, 3)) for _ in range(20)]
    store = opened(lerobot)
    assert store.ends.tolist() == [6, 15, 20]
    assert np.allclose(store.observations, [np.concatenate(row[:2]) for row in rows])
    assert np.allclose(store.actions, [row[2] for row in rows])
    assert [field.name for field in store.plant.fields] == [
        "observation.state",
        "observation.environment_state",
    ]
    assert [action.name for action in store.plant.actions] == ["dx", "dy", "grip"]
    assert store.plant.control_rate == 10 and store.plant.task == "so100"
    assert np.flatnonzero(store.rewards).tolist() == [5, 19]
    assert np.flatnonzero(store.masks == 0).tolist() == [5, 19]
    assert store.successes is not None and store.successes.tolist() == [True, False, True]
    store.check_actions()


def edited(folder: Path, change: Any) -> None:
    info = json.loads((folder / "meta" / "info.json").read_text())
    change(info)
    (folder / "meta" / "info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda info: info.update(codebase_version="v9.9"), "version v9.9"),
        (lambda info: info.update(total_frames=99), "holds 20 rows, .* says 99"),
        (lambda info: info["features"].pop("action"), "no feature 'action'"),
        (lambda info: info["features"].update(action=None), "is damaged"),
        (
            lambda info: info["features"].update({"observation.force": {"dtype": "float32", "shape": [3]}}),
            "lacks the column",
        ),
        (
            lambda info: [info["features"].pop(f"observation.{k}") for k in ("state", "environment_state")],
            "only images or videos",
        ),
    ],
)
def test_a_lerobot_folder_that_does_not_fit_is_named_in_one_sentence(
    change: Any, words: str, lerobot: Path
) -> None:
    edited(lerobot, change)
    with pytest.raises(UserError, match=words) as refused:
        open_store(str(lerobot))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_parquet_file_is_damage(share: float, lerobot: Path) -> None:
    file = sorted((lerobot / "data").glob("**/*.parquet"))[-1]
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(UserError, match="is damaged"):
        open_store(str(lerobot))


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(name=name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'rql-deploy\[arrow\]'"):
        open_store(str(LEROBOT[0]))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", ["arrow", "parquet"])
def test_minaris_own_arrow_files_hold_what_its_hdf5_files_hold(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    box = gymnasium.spaces.Box(-np.inf, np.inf, (2, 2))
    space = gymnasium.spaces.Dict({"grid": box, "arm": gymnasium.spaces.Box(-np.inf, np.inf, (3,))})
    buffers = [
        EpisodeBuffer(
            id=i,
            observations={
                "grid": rng.normal(size=(n + 1, 2, 2)).astype(np.float32),
                "arm": rng.normal(size=(n + 1, 3)).astype(np.float32),
            },
            actions=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
            rewards=list(rng.normal(size=n)),
            terminations=[False] * n,
            truncations=[False] * (n - 1) + [True],
            infos={"success": np.arange(n + 1) >= 4 + 3 * i},
        )
        for i, n in enumerate((6, 5, 8))
    ]
    stores = []
    for form in ("hdf5", layout):
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / form))
        minari.create_dataset_from_buffers(
            "tiny/columns-v0",
            buffers,
            observation_space=space,
            action_space=gymnasium.spaces.Box(-1, 1, (2,)),
            data_format=form,
        )
        stores.append(opened("tiny/columns-v0"))
    first, second = stores
    assert first.content_hash == second.content_hash
    assert second.successes is not None and second.successes.tolist() == [True, False, False]
    assert (
        first.finals is not None and second.finals is not None and np.array_equal(first.finals, second.finals)
    )
    file = next((tmp_path / layout).glob(f"**/1/*.{layout}"))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match="is damaged"):
        open_store("tiny/columns-v0")


def test_episodes_may_run_across_blocks_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rql_deploy.train.data.readers import lerobot as reader
    from rql_deploy.train.data.writers import lerobot as writer
    from rql_deploy.train.data.writers import write

    whole = opened(LEROBOT[1])
    monkeypatch.setattr(writer, "ROWS_PER_FILE", 10)
    monkeypatch.setattr(writer, "ROWS_PER_GROUP", 3)
    monkeypatch.setattr(reader, "BLOCK_ROWS", 4)
    write(whole, tmp_path / "many", "lerobot")
    assert len(list((tmp_path / "many" / "data").glob("**/*.parquet"))) == 3
    assert opened(tmp_path / "many").content_hash == whole.content_hash
    assert opened(LEROBOT[0]).content_hash == whole.content_hash
