"""Names of keys and dimensions, language tasks, and numbers that float32 cannot hold apart."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rql_deploy.errors import UserError
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.readers.lerobot_names import dimension_names
from rql_deploy.train.data.readers.options import KeyMap, ReadOptions
from rql_deploy.train.data.store import DIMENSION_NAMES, TransitionStore
from tests.helpers.commands import TINY, assert_refused, cli, printed
from tests.helpers.data import opened

ROWS = 20


def lerobot(
    folder: Path,
    features: dict[str, tuple[int, Any]],
    columns: dict[str, Any] | None = None,
    tasks: tuple[str, ...] = (),
    **info: Any,
) -> Path:
    """Two episodes of ten rows; `features` are width and names by key, `columns` numbers of one a row."""
    columns = columns or {}
    table: dict[str, Any] = {
        name: pa.array(np.arange(float(width * ROWS)).reshape(ROWS, width).tolist(), pa.list_(pa.float32()))
        for name, (width, _) in features.items()
    }
    table |= {"episode_index": [0] * 10 + [1] * 10, "frame_index": [*range(10), *range(10)], **columns}
    described = {n: {"dtype": "float32", "shape": [w], "names": names} for n, (w, names) in features.items()}
    described |= {
        name: {"dtype": "int64", "shape": [1], "names": None} for name in table if name not in features
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(table), folder / "data" / "chunk-000" / "file-000.parquet")
    lines = [json.dumps({"task_index": i, "task": text}) for i, text in enumerate(tasks)]
    (folder / "meta" / "tasks.jsonl").write_text("\n".join(lines))
    whole = {"codebase_version": "v2.1", "fps": 10, "robot_type": "arm", "features": described}
    (folder / "meta" / "info.json").write_text(json.dumps({**whole, **info}))
    return folder


def read(path: Path, *mapping: str, tasks: tuple[int, ...] = ()) -> TransitionStore:
    store = open_store(str(path), options=ReadOptions(KeyMap.parse(mapping), tasks))
    assert isinstance(store, TransitionStore)
    return store


@pytest.mark.parametrize(
    ("names", "width", "expected"),
    [
        (["a", "b"], 2, ["a", "b"]),
        ([["a", "b"]], 2, ["a", "b"]),
        ({"motors": ["a", "b"]}, 2, ["a", "b"]),
        ({"b": 1, "a": 0}, 2, ["a", "b"]),
        ({"left": ["a"], "right": ["b"]}, 2, ["a", "b"]),
        (["a"], 2, None),
        ({"motors": {"left": ["x"], "right": ["x"]}}, 2, ["motors.left.x", "motors.right.x"]),
        ({"axes": ["x", "grip", "grip"]}, 3, ["axes.x", "axes.grip_0", "axes.grip_1"]),
        ("x", 1, ["x"]),
        ([0, 1], 2, ["0", "1"]),
        (["actions"], 7, None),
        (["m", "m"], 2, None),
        (None, 2, None),
        ({}, 2, None),
    ],
)
def test_names_of_dimensions_in_all_forms(names: Any, width: int, expected: list[str] | None) -> None:
    assert dimension_names({"names": names, "shape": [width]}) == expected


def test_names_of_state_and_action_survive_a_conversion(tmp_path: Path) -> None:
    motors = {"motors": ["j0.pos", "j1.pos"]}
    source = lerobot(tmp_path / "set", {"observation.state": (2, motors), "action": (2, {"dx": 0, "dy": 1})})
    printed(cli("data", "convert", source, "--output", tmp_path / "store", "--json"))
    printed(
        cli("data", "convert", tmp_path / "store", "--to", "lerobot", "--output", tmp_path / "new", "--json")
    )
    features = json.loads((tmp_path / "new" / "meta" / "info.json").read_text())["features"]
    assert features["observation.state"]["names"] == motors["motors"]
    assert features["action"]["names"] == ["dx", "dy"]
    assert_refused(cli("data", "inspect", tmp_path / "new", "--map", "action=next.reward"), "leave out --map")
    assert opened(tmp_path / "new").plant.environment[DIMENSION_NAMES] == {
        "observation.state": motors["motors"]
    }


def test_other_names_of_state_and_action_are_taken_where_only_one_thing_can_be_meant(tmp_path: Path) -> None:
    plant = read(lerobot(tmp_path / "a", {"state": (3, ["state"]), "actions": (2, ["actions"])})).plant
    assert [spec.name for spec in plant.fields] == ["state"] and plant.action_dim == 2
    parts = lerobot(
        tmp_path / "b",
        {
            "observation.states.joint": (2, None),
            "actions.joint.position": (2, {"motors": ["j0", "j1"]}),
            "actions.effector.position": (1, None),
        },
    )
    store = read(parts)
    assert [action.name for action in store.plant.actions] == ["j0", "j1", "effector.position"]
    assert np.array_equal(store.actions[:2], [[0, 1, 0], [2, 3, 1]])
    assert any("put together from actions.joint.position (2)" in remark for remark in store.warnings(3))
    assert read(parts, "action=actions.effector.position").plant.action_dim == 1


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (
            {"observation.state": (2, None), "action.joints": (2, None), "action.ee.pos": (3, None)},
            "two ways",
        ),
        (
            {
                "observation.state": (2, None),
                "action.arm.position": (2, None),
                "action.arm.velocity": (2, None),
            },
            "--map action=action.arm.position",
        ),
        ({"observation.state": (2, None), "acton": (2, None)}, "name it with --map action=acton"),
        ({"joint_state": (2, None), "action": (2, None)}, "--map observation.state=joint_state"),
    ],
)
def test_names_that_leave_a_choice_are_refused_with_a_suggestion(
    features: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        read(lerobot(tmp_path / "set", features))


def test_keys_are_mapped_on_the_command_line(tmp_path: Path) -> None:
    source = lerobot(
        tmp_path / "set", {"q": (2, None), "f": (1, None), "cmd": (2, None), "reached": (1, None)}
    )
    mapping = ("--map", "action=cmd", "--map", "observation.state=q,f", "--map", "success=reached")
    report = printed(cli("data", "inspect", source, *mapping, "--json"))
    assert [field["shape"] for field in report["fields"]] == [[3]] and report["successes"] == 2
    assert report["left_out"] == []
    printed(cli("data", "convert", source, *mapping, "--output", tmp_path / "out", "--json"))
    assert np.array_equal(opened(tmp_path / "out").observations[1], [2, 3, 1])
    assert "--map action=cmd" in cli("data", "inspect", source, *mapping).output.partition("Next:")[2]
    assert_refused(cli("data", "inspect", source, "--map", "action=cmb"), "did you mean cmd")
    assert_refused(cli("data", "inspect", source, "--map", "acton=cmd"), "did you mean action")
    assert_refused(cli("data", "inspect", tmp_path / "out", "--map", "action=cmd"), "is a store")
    assert_refused(
        cli("train", "--dataset", source, "--map", "action=cmb", "--output", tmp_path / "run", *TINY),
        "did you mean cmd",
    )


def test_language_tasks_are_reported_and_selected(tmp_path: Path) -> None:
    columns = {"task_index": [0] * 10 + [2] * 10}
    features = {"observation.state": (2, None), "action": (2, None)}
    source = lerobot(tmp_path / "set", features, columns, ("pick", "push", "place it"))
    report = printed(cli("data", "inspect", source, "--json"))
    assert report["tasks"] == [
        {"task_index": 0, "task": "pick", "episodes": 1, "rows": 10},
        {"task_index": 2, "task": "place it", "episodes": 1, "rows": 10},
    ]
    assert any("2 language tasks (0 pick; 2 place it)" in warning for warning in report["warnings"])
    assert "2: place it (1 episodes, 10 rows)" in cli("data", "inspect", source).output
    chosen = read(source, tasks=(2,))
    assert chosen.episodes == 1 and chosen.observations[0].tolist() == [20, 21] and not chosen.remarks
    assert read(source, tasks=(0, 2)).episodes == 2
    for task, words in ((1, "no rows of task 1: it has 0 pick; 1 push"), (7, "no rows of task 7")):
        with pytest.raises(UserError, match=words):
            read(source, tasks=(task,))
    mixed = lerobot(tmp_path / "mixed", features, {"task_index": [0] * 5 + [2] * 15})
    with pytest.raises(UserError, match="rows of the tasks 0, 2: pass --task-index for all"):
        read(mixed, tasks=(2,))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"frame_index": [*range(0, 20, 2), *range(0, 20, 2)]}, "every 2th frame only"),
        ({"frame_index": [*range(10), 0, 1, 2, 7, 8, 9, 10, 11, 12, 13]}, "from frame 2 to 7 .row 2."),
        ({"timestamp": [*range(10), *range(5), *range(5)]}, "back in time after row 4"),
        ({"valid": [1] * 9 + [0] + [0] + [1] * 9}, "invalid before valid"),
    ],
)
def test_rows_that_do_not_follow_each_other_are_refused(
    columns: dict[str, Any], words: str, tmp_path: Path
) -> None:
    features = {"observation.state": (2, None), "action": (2, None)}
    with pytest.raises(UserError, match=words):
        read(lerobot(tmp_path / "set", features, columns))


def test_success_of_whole_lerobot_episodes_counts(tmp_path: Path) -> None:
    features = {"observation.state": (2, None), "action": (2, None)}
    last = ([0] * 9 + [1]) * 2
    said = lerobot(
        tmp_path / "a", features, {"is_episode_successful": [0] * 10 + [1] * 10, "is_terminal": last}
    )
    store = read(said)
    assert store.successes is not None and store.successes.tolist() == [False, True]
    assert np.flatnonzero(store.masks == 0).tolist() == [19]
    table = lerobot(tmp_path / "b", features)
    lines = [{"episode_index": i, "length": 10, "success": i == 0} for i in range(2)]
    (table / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(read(table).successes) == [True, False]  # type: ignore[arg-type]
    (table / "meta" / "episodes.jsonl").write_text(json.dumps({**lines[1], "length": 12}))
    with pytest.raises(UserError, match="has 10 rows, meta/episodes says 12"):
        read(table)


@pytest.mark.parametrize(
    ("values", "blurred"),
    [
        (1.7e9 + np.arange(40) * 0.05, True),
        (np.int64(1_700_000_000_000_000_000) + np.arange(40) * 50_000_000, True),
        (4.5e6 + np.arange(40) * 0.01, True),
        (np.arange(40) * 0.05, False),
        (np.full(40, 1.7e9), False),
        (20.0 + 1e-12 * np.arange(40), False),
        (np.arange(40) * 1e6, False),
    ],
)
def test_numbers_that_float32_cannot_hold_apart_are_warned_of(
    values: Any, blurred: bool, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"], demo["obs/x"], demo["obs/t"] = np.zeros((40, 2)), np.zeros((40, 3)), values
    store = opened(tmp_path / "demos.hdf5")
    assert any("'t' is too large for float32" in remark for remark in store.remarks) == blurred
    assert [spec.name for spec in read(tmp_path / "demos.hdf5", "obs/t=").plant.fields] == ["x"]
    if blurred:
        # The warning outlives a conversion.
        printed(cli("data", "convert", tmp_path / "demos.hdf5", "--output", tmp_path / "out", "--json"))
        assert opened(tmp_path / "out").remarks == store.remarks
