"""Demonstrations as a data set: what is recorded, and what training says of it."""

from pathlib import Path

import numpy as np
from minari import MinariDataset

from rql_deploy.seeding import episode_seed
from rql_deploy.train.data.readers.minari import read_minari
from tests.helpers.commands import COLLECT, ROOT, TINY, assert_refused, cli, run_cli


def test_demonstrations_are_a_minari_data_set_that_knows_its_environment(recorded: Path) -> None:
    data = MinariDataset(recorded / "data")
    assert data.total_episodes == 4
    env = data.recover_environment()
    seeds = [episode_seed(3, index, "collect") for index in range(4)]
    for seed, episode in zip(seeds, data.iterate_episodes(), strict=True):
        observation, _ = env.reset(seed=seed)
        assert all(np.array_equal(observation[name], episode.observations[name][0]) for name in observation)
        assert np.array_equal(episode.rewards, episode.infos["success"][1:] - 1.0)
        if episode.infos["success"][-1]:
            assert episode.terminations[-1]
            assert episode.infos["success"].sum() >= 6  # the row that reached it and five more
    env.close()


def test_rows_after_success_do_not_bootstrap(recorded: Path) -> None:
    store = read_minari(str(recorded))
    assert store.successes is not None
    assert np.array_equal(store.masks, -store.rewards)
    assert [store.masks[end - 1] == 0 for end in store.ends] == store.successes.tolist()


def test_an_episode_is_the_same_whatever_the_number_of_workers(recorded: Path, tmp_path: Path) -> None:
    # A relative path that does not exist yet, as the demo uses it.
    collect = (
        *COLLECT,
        "--episodes",
        2,
        "--noise",
        "0:1.5",
        "--seed",
        3,
        "--workers",
        1,
        "--output",
        "new/lift",
    )
    result = run_cli(*collect, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    a, b = read_minari(str(recorded)), read_minari(str(tmp_path / "new" / "lift"))
    rows = int(b.ends[-1])
    assert a.ends[:2].tolist() == b.ends.tolist()
    assert np.array_equal(a.observations[:rows], b.observations)
    assert np.array_equal(a.actions[:rows], b.actions)


def test_collecting_pulls_in_no_jax() -> None:
    """`minari.DataCollector` would: buffers made from arrays do not."""
    locked = (ROOT / "requirements.lock").read_text().lower()
    assert "minari==" in locked
    assert "jax" not in locked


def test_training_on_data_of_other_dimensions_is_refused(recorded: Path, run: Path) -> None:
    refused = cli("train", "--dataset", recorded, "--output", run, "--resume", *TINY)
    assert_refused(
        refused,
        "does not fit run",
        "actions have 7 dimensions instead of 2",
        "observation fields observation are missing",
    )


def test_an_existing_data_set_is_not_overwritten(recorded: Path) -> None:
    before = (recorded / "data" / "main_data.hdf5").stat().st_mtime
    assert_refused(cli(*COLLECT, "--output", recorded), "exists already")
    assert (recorded / "data" / "main_data.hdf5").stat().st_mtime == before
