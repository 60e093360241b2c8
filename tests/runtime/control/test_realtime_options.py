"""Options and seeds of the real-time loop that do not fit are refused before anything moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError, UserError
from rql_deploy.runtime.control.realtime import RealTimeLoop
from tests.helpers.rail import Rail, Scripted, drive


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "openloop"}, UserError, "no playback mode 'openloop': pass one of open-loop"),
        ({"prefetch_ticks": -1}, UserError, "prefetch_ticks is -1"),
        ({"prefetch_ticks": "2"}, TypeError, "prefetch_ticks is '2'"),
        ({"candidates": 0}, UserError, "candidates is 0: pass 1 to 256"),
        ({"candidates": True}, TypeError, "candidates is True"),
        ({"deadline": 0}, UserError, "deadline is 0: pass a number of seconds above 0"),
        ({"deadline": float("nan")}, UserError, "deadline is nan"),
        ({"deadline": "1"}, TypeError, "deadline is '1'"),
        ({"pessimism": -1.0}, UserError, "pessimism is -1.0: pass 0 to 100"),
        ({"replan_every": 4}, UserError, "replan_every is 4: pass 1 to 3"),
        ({"continuation": "guided"}, UserError, "there is no continuation 'guided': pass one of none,"),
        ({"continuation": "guidance"}, UserError, "does not continue the actions before a chunk: use contin"),
        ({"continuation": "trained"}, UserError, "was not trained with actions given: use continuation"),
    ],
)
def test_an_option_that_can_only_hold_the_plant_is_refused_at_once(
    options: dict[str, Any], error: type[Exception], words: str, contract: Contract
) -> None:
    with pytest.raises(error, match=words):
        RealTimeLoop(Rail(), Scripted(contract), **options)


def test_a_seed_that_is_none_is_not_blamed_on_the_plant(contract: Contract) -> None:
    loop, _ = drive(Rail(3), Scripted(contract))
    for wrong in (-1, 1.5, "a", True):
        with pytest.raises(ContractError, match="seed is"):
            loop.run_episode(wrong)  # type: ignore[arg-type]
    assert loop.run_episode(np.int64(3)).episode.success  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"after_fault": "stop"}, UserError, "after_fault is 'stop': pass 'end' or 'hold'"),
        ({"duration": float("nan")}, UserError, "duration is nan"),
        ({"duration": "5"}, TypeError, "duration is '5'"),
    ],
)
def test_an_episode_that_would_not_end_as_asked_is_refused(
    options: dict[str, Any], error: type[Exception], words: str, contract: Contract
) -> None:
    loop, ticks = drive(Rail(3), Scripted(contract))
    with pytest.raises(error, match=words):
        loop.run_episode(0, **options)
    assert not ticks
