"""Discounted returns, and how V agrees with them."""

from __future__ import annotations

import numpy as np
import pytest

from rql_deploy.returns import correlation, discounted, rank_correlation


def test_a_return_ends_with_its_episode_unless_that_was_cut_off() -> None:
    assert discounted([-1.0, -1.0, 0.0], 0.5) == [-1.5, -1.0, 0.0, 0.0]
    assert discounted([-1.0, -1.0], 0.5, endless=True) == [-2.0, -2.0, -2.0]
    assert discounted([-1.0, -1.0], 1.0, endless=True) == [-2.0, -1.0, 0.0]
    assert discounted([], 0.5, endless=True) == [0.0]


def test_what_is_constant_but_for_rounding_has_no_correlation() -> None:
    returns, values = np.array([-1.0, -2.0, -30.0]), np.array([-5.0, -6.0, -7.0])
    assert rank_correlation(values, returns) == pytest.approx(1.0)
    found = correlation(values, returns)
    assert found is not None and 0.8 < found < 0.95
    assert (
        correlation(values, -100 + 1e-9 * returns) is rank_correlation(values, -100 + 1e-9 * returns) is None
    )
    assert correlation(values[:2], returns[:2]) is None
