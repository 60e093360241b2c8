"""Which arrays of a flat file (`.npz`, D4RL's HDF5) are read as what, and what that makes of its rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from rql_deploy.errors import UserError

from .flat_columns import FlatFile, boundary_keys, named_like
from .options import PAD_KEYS, UNCLEAR_KEYS, VALID_KEYS, KeyMap

USUAL: Mapping[str, tuple[str, ...]] = {
    "observation": ("observations", "observation", "obs", "states"),
    "next_observation": ("next_observations", "next_observation", "next_obs", "next_states"),
    "action": ("actions", "action", "acts"),
    "reward": ("rewards", "reward"),
    "mask": ("masks",),
    "terminated": ("terminals", "terminations", "terminated", "absorbing"),
    "truncated": ("timeouts", "truncations", "truncated"),
    "done": ("dones", "done", "last", "episode_terminals"),
    "valid": VALID_KEYS,
    "success": ("success", "successes", "is_success", "infos/success", "infos/is_success"),
}
"""Keys that writers of such files use: OGBench, D4RL, gymnasium loops, MushroomRL, imitation.

Other names are found by `flat_columns`.
"""
OTHER_MEANING = ("is_first", "is_last", "is_terminal", "discount", "discounts")
"""Keys of RLDS and Dreamer files, in which an action may belong to the row before or to no step at all."""


@dataclass(frozen=True)
class NpzKeys:
    """Keys by what they are read as; only those that the file has."""

    roles: Mapping[str, str]
    explicit: bool
    """Whether `terminated` is known to be the end of the task, not of an episode."""
    boundaries: tuple[str, ...] = ()
    """Keys that say in another way where episodes end, such as their numbers."""

    def __getitem__(self, role: str) -> str:
        return self.roles[role]

    def __contains__(self, role: object) -> bool:
        return role in self.roles

    @property
    def used(self) -> set[str]:
        """All keys that are read."""
        return {*self.roles.values(), *self.boundaries}

    @property
    def closing_rows(self) -> bool:
        """Whether each episode's last row only holds the observation after the last action, as in OGBench's
        published files.
        """
        others = {"next_observation", "truncated", "valid", "done"} & set(self.roles)
        return self.roles.get("terminated") == "terminals" and not self.explicit and not others

    @classmethod
    def of(cls, file: FlatFile, keys: KeyMap, *, ogbench: bool = True) -> NpzKeys:
        """The keys of `file`; raises UserError if rows, actions or episodes cannot be found in it.

        In OGBench's layout, `terminals` alone are the ends of episodes; in D4RL's, those of tasks.
        """
        held, where = file.keys, str(file.path)
        kind = "an .npz file" if ogbench else "a flat HDF5 file"
        if keys.fields:
            name = next(iter(keys.fields))
            raise UserError(
                f"{where} is {kind}, whose observations are one array: pass --map observation=KEY "
                f"instead of observation.{name}"
            )
        found: dict[str, str] = {}
        for role in (*USUAL, "pad"):
            usual = list(USUAL.get(role, ()))
            if "observation" in found and not set(usual) & held:
                usual = named_like(role, file, file.member(found["observation"]).shape)
            if (key := keys.key(role, held, *usual, where=where)) and key not in found.values():
                found[role] = key
        ending = next((key for key in USUAL["terminated"][1:] if key in held), None)
        if found.get("terminated") == "terminals" and "terminated" not in keys.roles and ending:
            # Beside a key that says where tasks end, `terminals` are the ends of episodes.
            found |= {"terminated": ending, "done": found.get("done", "terminals")}
        if "pad" in found:
            raise UserError(f"{where} is {kind}, which takes --map valid=KEY for rows that are real")
        require_clear(file, found.values())
        boundaries = boundary_keys(file, found.values())
        ends = {"terminated", "truncated", "done", "next_observation"} & set(found) or boundaries
        lacking = [f"'{USUAL[role][0]}'" for role in ("observation", "action") if role not in found]
        if lacking or not ends:
            names = ", ".join([*lacking, *([] if ends else ["'terminals'"])])
            what = ", so it is no OGBench data set" if ogbench else ""
            raise UserError(
                f"{where} lacks {names}{what}: it holds {', '.join(sorted(held)) or 'nothing'}; other names "
                "are given with --map action=KEY"
            )
        odd = [key for key in OTHER_MEANING if key in held and key not in found.values()]
        if odd and not keys:
            raise UserError(
                f"{where} has '{odd[0]}', as RLDS and Dreamer write it, where an action may belong to "
                "another row: write it in one of the formats of `rql-deploy data --help`, or say with "
                "--map what its keys are"
            )
        terminated = found.get("terminated")
        explicit = terminated is not None and (
            "terminated" in keys.roles or terminated != "terminals" or "truncated" in found or not ogbench
        )
        others = {"truncated", "done", "next_observation", "valid"} & set(found) or boundaries
        if explicit and ogbench and not others:
            raise UserError(
                f"{where} says where tasks end ('{terminated}') but not where recordings were cut off: add "
                "'timeouts', or 'next_observations'"
            )
        return cls(found, explicit, boundaries)


def require_clear(file: FlatFile, read: Collection[str]) -> None:
    """Raise UserError if an array that is not read may tell padding from rows that are real."""
    for key in sorted({*VALID_KEYS, *PAD_KEYS, *UNCLEAR_KEYS} & file.keys - set(read)):
        if len(np.unique(file.read(key, file.member(key).dtype.type))) > 1:
            raise UserError(
                f"{file.path} has an array '{key}' that may say which of its rows are real: pass --map "
                f"valid={key}, or --map mask={key} if 0 says that the task has ended"
            )
