"""Which arrays of an `.npz` file are read as what, and what that makes of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rql_deploy.errors import UserError

from .npz import NpzFile
from .options import VALID_KEYS, KeyMap

USUAL: Mapping[str, tuple[str, ...]] = {
    "observation": ("observations", "observation", "obs", "states"),
    "next_observation": ("next_observations", "next_observation", "next_obs", "next_states"),
    "action": ("actions", "action"),
    "reward": ("rewards", "reward"),
    "mask": ("masks",),
    "terminated": ("terminals", "terminations", "terminated", "absorbing"),
    "truncated": ("timeouts", "truncations", "truncated"),
    "done": ("dones", "done", "last"),
    "valid": VALID_KEYS,
    "success": ("success", "successes", "is_success", "infos/success", "infos/is_success"),
}
"""Keys that writers of such files use: OGBench, D4RL, gymnasium loops, MushroomRL."""
OTHER_MEANING = ("is_first", "is_last", "is_terminal", "discount", "discounts")
"""Keys of RLDS and Dreamer files, in which an action may belong to the row before or to no step at all."""


@dataclass(frozen=True)
class NpzKeys:
    """Keys by what they are read as; only those that the file has."""

    roles: Mapping[str, str]
    explicit: bool
    """Whether `terminated` is known to be the end of the task, not of an episode."""

    def __getitem__(self, role: str) -> str:
        return self.roles[role]

    def __contains__(self, role: object) -> bool:
        return role in self.roles

    @property
    def closing_rows(self) -> bool:
        """Whether each episode's last row only holds the observation after the last action, as in OGBench's
        published files.
        """
        others = {"next_observation", "truncated", "valid", "done"} & set(self.roles)
        return self.roles.get("terminated") == "terminals" and not self.explicit and not others

    @classmethod
    def of(cls, file: NpzFile, keys: KeyMap) -> NpzKeys:
        """The keys of `file`; raises UserError if rows, actions or episodes cannot be found in it."""
        held, where = file.keys, str(file.path)
        if keys.fields:
            name = next(iter(keys.fields))
            raise UserError(
                f"{where} is an .npz file, whose observations are one array: pass --map observation=KEY "
                f"instead of observation.{name}"
            )
        found = {
            role: key
            for role in (*USUAL, "pad")
            if (key := keys.key(role, held, *USUAL.get(role, ()), where=where)) is not None
        }
        ending = next((key for key in USUAL["terminated"][1:] if key in held), None)
        if found.get("terminated") == "terminals" and "terminated" not in keys.roles and ending:
            # Beside a key that says where tasks end, `terminals` are the ends of episodes.
            found |= {"terminated": ending, "done": found.get("done", "terminals")}
        if "pad" in found:
            raise UserError(f"{where} is an .npz file, which takes --map valid=KEY for rows that are real")
        ends = {"terminated", "truncated", "done", "next_observation"} & set(found)
        lacking = [f"'{USUAL[role][0]}'" for role in ("observation", "action") if role not in found]
        if lacking or not ends:
            names = ", ".join([*lacking, *([] if ends else ["'terminals'"])])
            raise UserError(
                f"{where} lacks {names}, so it is no OGBench data set: it holds "
                f"{', '.join(sorted(held)) or 'nothing'}; other names are given with --map action=KEY"
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
            "terminated" in keys.roles or terminated != "terminals" or "truncated" in found
        )
        if explicit and not {"truncated", "done", "next_observation", "valid"} & set(found):
            raise UserError(
                f"{where} says where tasks end ('{terminated}') but not where recordings were cut off: add "
                "'timeouts', or 'next_observations'"
            )
        return cls(found, explicit)
