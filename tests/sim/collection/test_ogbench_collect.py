import json
import re
import sys
from pathlib import Path

import numpy as np
import ogbench
import pytest

from rql_deploy.errors import UserError
from rql_deploy.sim.collection import ogbench_collect
from rql_deploy.sim.collection.ogbench_collect import PlayData
from rql_deploy.sim.demonstrators.ogbench_play import RECIPES, PlayGenerator, cube_stays_visible, find_recipe
from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.commands import assert_refused, cli, run_cli, stopped_when

SHORT = ("--horizon", 12, "--workers", 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ogbench") / "cube-single-play-v0.npz"
    result = run_cli("collect", "ogbench:cube-single-play", "--episodes", 2, "--output", file, *SHORT)
    assert result.returncode == 0, result.stderr
    assert "22 transitions" in result.stdout and "data inspect" in result.stdout
    # Libraries warn of a missing display, and of the precision of their spaces.
    assert not {"GLFWError", "WARN"} & set(re.findall(r"\w+", result.stderr)), result.stderr
    assert sorted(entry.name for entry in file.parent.iterdir()) == [
        "cube-single-play-v0-val.npz",
        "cube-single-play-v0.npz",
    ]
    return file


def test_ogbench_itself_loads_what_was_made(made: Path) -> None:
    env, train, val = ogbench.make_env_and_datasets(
        "cube-single-play-singletask-task3-v0", dataset_path=str(made)
    )
    assert train["observations"].shape == (22, *env.observation_space.shape) and val["actions"].shape == (
        11,
        5,
    )
    assert train["observations"].dtype == train["actions"].dtype == np.float32
    assert np.flatnonzero(train["terminals"]).tolist() == [10, 21]
    assert set(np.load(made).files) == {"observations", "actions", "terminals", "qpos", "qvel"}
    # OGBench's own code found rewards for every transition in the simulator states.
    assert train["rewards"].shape == (22,) and set(train["rewards"].tolist()) <= {-1.0, 0.0}


def test_states_belong_to_the_observations_beside_them(made: Path) -> None:
    arrays = np.load(made)
    # The cube's position is part of both, in the observation centred and in tenths of a metre.
    assert np.allclose(
        arrays["observations"][:, 19:22] / 10 + [0.425, 0, 0], arrays["qpos"][:, 14:17], atol=1e-5
    )


def test_an_episode_depends_on_its_seed_alone(made: Path, tmp_path: Path) -> None:
    generator = PlayGenerator(RECIPES["cube-single"], 12)
    data = PlayData("cube-single-play", tmp_path / "x.npz", 2, 0, 12)
    second, first = (
        generator.generate(ogbench_collect.episode_seed(data.seed, i, "collect")).arrays for i in (1, 0)
    )
    both = np.load(made)
    for name in both.files:
        assert np.array_equal(both[name], np.concatenate([first[name], second[name]])), name
    assert not np.array_equal(first["actions"], second["actions"])


def test_a_minari_set_holds_rewards_and_states(tmp_path: Path) -> None:
    import minari

    task = "scene-play"
    result = run_cli(
        "collect",
        f"ogbench:{task}",
        "--episodes",
        2,
        "--output",
        tmp_path / "set",
        "--horizon",
        8,
        "--workers",
        2,
    )
    assert result.returncode == 0, result.stderr
    episodes = list(minari.MinariDataset(tmp_path / "set" / "data"))
    assert [episode.observations.shape[0] for episode in episodes] == [8, 8]
    assert episodes[0].infos["button_states"].shape[0] == 8
    store = open_store(str(tmp_path / "set"))
    assert isinstance(store, TransitionStore)
    assert store.ends.tolist() == [7, 14] and store.plant.task == f"ogbench:{task}-singletask-v0"
    assert (store.rewards <= 0).all() and store.plant.control_rate == 20


def statistics(seed: int) -> dict[str, np.ndarray]:
    generator = PlayGenerator(RECIPES["puzzle-3x3"], 250)
    episodes = [generator.generate(1000 * seed + i) for i in range(2)]
    actions = np.concatenate([episode.arrays["actions"] for episode in episodes])
    pressed = [
        np.abs(np.diff(episode.arrays["button_states"], axis=0)).any(axis=1).mean() for episode in episodes
    ]
    states = {"button_states": np.concatenate([episode.arrays["button_states"] for episode in episodes])}
    rewards, masks = OGBenchRewards("puzzle-3x3-play-singletask-v0")(states)
    return {
        "reward": np.array(rewards.mean()),
        "solved": np.array((masks == 0).mean()),
        "histogram": np.stack([np.histogram(actions[:, i], np.linspace(-1, 1, 6))[0] for i in range(5)])
        / len(actions),
        "reached": np.array(sum(e.reached for e in episodes) / sum(e.targets for e in episodes)),
        "targets": np.array(sum(e.targets for e in episodes)),
        "presses": np.mean(pressed),
        "gripper": actions[:, 4],
    }


def test_two_seeds_agree_with_each_other_and_with_the_recipe() -> None:
    first, second = statistics(1), statistics(2)
    assert np.abs(first["histogram"] - second["histogram"]).max() < 0.15
    # A plan for a button takes 0.4 s x (0.5 + 4 x distance + 0.8 + 0.8 + 1.25), so 30 to 50 ticks of 0.05 s.
    for found in (first, second):
        assert 9 <= found["targets"] <= 18
        assert found["reached"] >= 0.9
        assert 0.01 < found["presses"] < 0.05
        # Of nine buttons in random states about half are as the task wants them, and hardly ever all.
        assert -7 < found["reward"] < -2 and found["solved"] < 0.1
        # Nothing is grasped in the puzzle, so the gripper's command keeps it closed.
        assert found["gripper"].mean() > -0.1
    assert abs(first["presses"] - second["presses"]) < 0.02


def test_the_recipes_numbers_are_those_published() -> None:
    assert {name: recipe.stacking for name, recipe in RECIPES.items() if name.startswith("cube")} == {
        "cube-single": (0, 0),
        "cube-double": (0, 0.25),
        "cube-triple": (0.05, 0.35),
        "cube-quadruple": (0.1, 0.5),
    }
    data = PlayData("cube-quadruple-play-v0", Path("a.npz"), 5000, 0)
    assert (data.steps, data.validation, data.recipe()["published_episodes"]) == (1001, 500, 5000)
    generator = PlayGenerator(RECIPES["cube-single"])
    oracle = generator.oracles["cube"]
    assert (oracle._noise, oracle._noise_smoothing, oracle._dt, oracle._env_dt) == (0.1, 0.5, 0.4, 0.05)
    assert generator.env.spec is not None and generator.env.spec.max_episode_steps == 1001
    assert find_recipe("scene-play-singletask-task3-v0").oracles == ("cube", "button", "drawer", "window")


@pytest.mark.parametrize(
    ("y", "z", "visible"),
    [(0.0, 0.02, True), (0.29, 0.02, False), (-0.31, 0.02, False), (-0.31, 0.07, True), (-0.31, 0.09, False)],
)
def test_scene_episodes_that_lose_the_cube_are_rejected(y: float, z: float, visible: bool) -> None:
    qpos = np.zeros((5, 25))
    qpos[:, 16] = 0.02
    qpos[3, 15:17] = y, z
    assert cube_stays_visible(qpos) is visible


def test_what_is_finished_survives_a_stop_and_the_same_command_goes_on(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "cube-single-play-v0.npz"
    words = ["collect", "ogbench:cube-single-play", "--episodes", 2, "--output", file, *SHORT]
    command = [sys.executable, "-m", "rql_deploy", *map(str, words[:3]), "400", *map(str, words[4:])]
    folder = tmp_path / ".cube-single-play-v0.npz.episodes"
    done = stopped_when(lambda: len(list(folder.glob("train-*.npz"))) >= 2, command)
    assert done.returncode == 130 and "kept in" in done.stdout and "Next:" in done.stdout, done.stderr
    assert not file.exists()
    resumed = run_cli(*words, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["resumed_from"] >= 1
    assert all(np.array_equal(np.load(file)[name], np.load(made)[name]) for name in np.load(made).files)


def test_another_recipe_does_not_mix_with_what_is_there(tmp_path: Path) -> None:
    data = PlayData("cube-single-play", tmp_path / "a.npz", 2, 0, 12)
    ogbench_collect.prepare(data)
    with pytest.raises(UserError, match="made with another seed"):
        ogbench_collect.prepare(PlayData("cube-single-play", tmp_path / "a.npz", 2, 1, 12))


def test_two_commands_do_not_make_one_file_at_once(tmp_path: Path) -> None:
    data = PlayData("cube-single-play", tmp_path / "a.npz", 2, 0, 12)
    with ogbench_collect.exclusive_collection(data):
        refused = cli("collect", "ogbench:cube-single-play", "--episodes", 2, "--output", data.output, *SHORT)
        assert_refused(refused, "another process makes")
    assert not list(tmp_path.iterdir())


def test_a_validation_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a-val.npz").write_text("precious")
    refused = cli(
        "collect", "ogbench:cube-single-play", "--episodes", 1, "--output", tmp_path / "a.npz", *SHORT
    )
    assert_refused(refused, "a-val.npz exists already")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a-val.npz"]


def test_a_join_that_was_cut_short_may_replace_its_own_validation_file(tmp_path: Path) -> None:
    data = PlayData("cube-single-play", tmp_path / "a.npz", 2, 0, 12)
    ogbench_collect.prepare(data)
    data.validation_file.write_text("in its place before the training file was")
    with pytest.raises(UserError, match=r"a-val\.npz exists already"):
        ogbench_collect.prepare(data)
    (data.folder / ogbench_collect.JOINING).touch()
    assert ogbench_collect.prepare(data) == 0


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"PK half of an archive"])
def test_an_episode_that_a_power_cut_damaged_is_made_again(
    content: bytes, made: Path, tmp_path: Path
) -> None:
    data = PlayData("cube-single-play", tmp_path / "a.npz", 2, 0, 12)
    ogbench_collect.prepare(data)
    data.files("train")[1].write_bytes(content)
    result = run_cli(
        "collect", "ogbench:cube-single-play", "--episodes", 2, "--output", data.output, *SHORT, "--json"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["resumed_from"] == 0
    assert np.array_equal(np.load(data.output)["observations"], np.load(made)["observations"])


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PlayData("cube-single-play", tmp_path / "a.npz", 1, 0, 12)
    ogbench_collect.prepare(data)
    episode = PlayGenerator(RECIPES["cube-single"], 12).generate(0)
    for part in ("train", "val"):
        np.savez(data.files(part)[0], **episode.arrays, counts=np.zeros(3))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ogbench_collect, "_join_part", full)
    with pytest.raises(UserError, match=r"No space left on device.*finished episodes are kept"):
        ogbench_collect.join(data)
    assert [entry.name for entry in tmp_path.iterdir()] == [".a.npz.episodes"]
    assert ogbench_collect.prepare(data) == 2


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("ogbench:cube-sigle-play", (), "did you mean cube-single-play"),
        ("ogbench:", (), "no recipe for"),
        (
            "ogbench:cube-single-play-singletask-task9-v0",
            (),
            "OGBench has no task 'cube-single-play-singletask-task9-v0'",
        ),
        ("ogbench:cube-single-play", ("--noise", "0.3"), "--noise is fixed by OGBench's recipe"),
        ("ogbench:cube-single-play", ("--horizon", 1), "one row leaves no transition"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(
    task: str, options: tuple[object, ...], words: str, tmp_path: Path
) -> None:
    assert_refused(cli("collect", task, "--output", tmp_path / "a.npz", *options), words)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_never_overwritten(made: Path) -> None:
    assert_refused(cli("collect", "ogbench:cube-single-play", "--output", made), "exists already")


@pytest.mark.slow
def test_visual_play_data_is_the_same_play_seen_through_the_camera(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RQL_DEPLOY_CACHE", str(tmp_path / "cache"))
    visual, both = tmp_path / "visual-cube-single-play-v0.npz", tmp_path / "cube-single-play-v0.npz"
    for task, file, more in (
        ("visual-cube-single-play", visual, ()),
        ("cube-single-play", both, ("--camera", "front_pixels:64x64")),
    ):
        words = ("collect", f"ogbench:{task}", "--episodes", 2, "--output", file, *SHORT, *more)
        result = run_cli(*words)
        assert result.returncode == 0, result.stderr
    plain, seen, beside = (np.load(file) for file in (made, visual, both))
    assert seen["observations"].shape == (24, 64, 64, 3) and seen["observations"].dtype == np.uint8
    assert np.array_equal(seen["observations"], beside["pixels"])
    for name in ("actions", "qpos", "qvel", "terminals"):
        assert np.array_equal(plain[name], seen[name]) and np.array_equal(plain[name], beside[name]), name
    assert np.array_equal(plain["observations"], beside["observations"])
    options = {"relabel": OGBenchRewards("visual-cube-single-play-singletask-task1-v0")}
    store = open_store(str(visual), **options)
    assert isinstance(store, TransitionStore)
    assert store.plant.fields == () and store.plant.task.startswith("ogbench:visual-cube-single")
    assert np.array_equal(store.images["pixels"].take(np.arange(11)), seen["observations"][:11])
