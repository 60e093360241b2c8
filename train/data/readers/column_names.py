"""What a column is by its name, where programs do not agree on one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

NAMES: Mapping[str, re.Pattern[str]] = {
    "next_observation": re.compile(
        r"(next|new)_(obs(ervations?)?|states?)|(obs(ervations?)?|states?)_(next|new)"
    ),
    "terminated": re.compile(r"terminat(ed|eds|ion|ions)|terminals?|absorbing"),
    "truncated": re.compile(r"(\w+_)?(truncat(ed|eds|ion|ions)|time_?outs?|time_?limits?)(_reached)?"),
    "done": re.compile(r"(is_)?dones?|(episode|traj|trajectory)_(dones?|terminals?|lasts?)|last"),
    "success": re.compile(
        r"(is_|task_|episode_)*(success(es|ful)?|succeeded)|(goal_(achieved|reached)|reached_goal|solved)"
    ),
}
"""Names in the form of `plain_name`, by what such a column is read as."""
_EPISODE = r"(episodes?|ep|traj|trajs|trajectory|trajectories|path|demo|rollout)"
NUMBERS = re.compile(rf"{_EPISODE}(_?(ids?|idxs?|index|indices|nums?|numbers?|no))?")
"""The number of a row's episode."""
COUNTERS = re.compile(
    rf"({_EPISODE}_)?(time_?steps?|steps?|frames?|t|time|time_?stamps?)(_?(ids?|idx|index|nums?))?"
)
"""What rises from row to row within an episode."""
STARTS = re.compile(rf"({_EPISODE}_)?(starts?|is_first|first|start_(idxs?|index|indices))")
ENDS = re.compile(rf"({_EPISODE}_)?(ends?|end_(idxs?|index|indices))")
LENGTHS = re.compile(rf"{_EPISODE}_(lengths?|lens?)|lengths")


def plain_name(key: str) -> str:
    """The last part of a path in lower case, its words joined by `_`: `infos/TimeLimit.truncated` is
    `time_limit_truncated`.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.rpartition("/")[2])
    return re.sub(r"\W+", "_", words).lower()


def named(role: str, keys: Iterable[str]) -> list[str]:
    """Those of `keys` that are named like `role`, sorted; shorter ones, which say it more plainly, first."""
    found = [key for key in keys if NAMES[role].fullmatch(plain_name(key.rpartition(".")[2]))]
    return sorted(found, key=lambda key: (len(key), key))
