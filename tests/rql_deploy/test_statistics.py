import os
import random

import numpy as np
import pytest

from rql_deploy.errors import ContractError
from rql_deploy.policy import ResolvedOptions
from rql_deploy.seeding import MAX_SEED, decision_seed, draw_seed, episode_seed, flow_noise
from rql_deploy.statistics import paired_difference, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Published examples: Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_a_paired_difference_is_sharper_than_its_parts() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 200)
    mean, low, high = paired_difference((base + 1 + rng.normal(0, 0.5, 200)).tolist(), base.tolist())
    assert low < 1 < high
    assert high - low < 0.3
    assert mean == pytest.approx(1, abs=0.15)


def test_streams_and_episodes_never_share_a_seed() -> None:
    seeds = {
        episode_seed(base, i, stream)
        for base in range(3)
        for stream in ("collect", "evaluate", "tune")
        for i in range(300)
    }
    assert len(seeds) == 2700
    assert len({decision_seed(e, d) for e in range(30) for d in range(30)}) == 900


def test_the_noise_of_a_candidate_does_not_depend_on_how_many_there_are() -> None:
    assert np.array_equal(flow_noise(5, 1, 35), flow_noise(5, 8, 35)[:1])
    assert not np.array_equal(flow_noise(5, 1, 35), flow_noise(6, 1, 35))
    large = flow_noise(0, 1000, 35)
    assert abs(large.mean()) < 0.02
    assert large.std() == pytest.approx(1, abs=0.02)


def test_seeds_of_decisions_are_exact_in_json_and_javascript() -> None:
    seeds = [decision_seed(e, d) for e in range(30) for d in range(30)] + [draw_seed() for _ in range(900)]
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert max(seeds) > 2**52
    assert [int(float(seed)) for seed in seeds] == seeds


@pytest.mark.parametrize("seed", [-1, 2**53, 0.5, "7", True, [1]])
def test_what_is_no_seed_is_refused_by_every_policy(seed: object) -> None:
    with pytest.raises(ContractError, match=r"seed is .*2\^53"):
        ResolvedOptions.of({"seed": seed})


def test_numpy_integers_are_seeds() -> None:
    seed = ResolvedOptions.of({"seed": np.int64(2**53 - 1)}).seed
    assert (seed, type(seed)) == (MAX_SEED, int)


def test_a_fork_draws_other_seeds_and_the_callers_random_numbers_stay_his() -> None:
    random.seed(5)
    draw_seed()
    assert random.random() == random.Random(5).random()
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, b"%d" % draw_seed())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 64)) != draw_seed()
    os.close(reading)
    os.close(writing)
