"""What a user says of how a data set is read: `--map` names keys, `--task-index` and `--camera` select."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rql_deploy.cameras import CameraChoice
from rql_deploy.errors import UserError, suggestion
from rql_deploy.progress import NoProgress, Progress

ROLES: Mapping[str, tuple[str, ...]] = {
    "action": ("action", "actions"),
    "observation": ("observation", "observations", "obs"),
    "next_observation": ("next_observation", "next_observations", "next_obs"),
    "reward": ("reward", "rewards"),
    "done": ("done", "dones"),
    "terminated": ("terminated", "terminal", "terminals", "terminations"),
    "truncated": ("truncated", "truncations", "timeout", "timeouts"),
    "success": ("success", "successes", "is_success"),
    "mask": ("mask", "masks"),
    "valid": ("valid", "valids"),
    "pad": ("pad", "is_pad"),
}
"""What a key can be, and the names of it that `--map` takes."""
FIELD_PREFIXES = ("observation.", "observations.", "observations/", "obs.", "obs/")
VALID_KEYS = ("valid", "valids", "valid_mask", "is_valid", "action.valid", "action_valid")
PAD_KEYS = ("is_pad", "pad", "padding", "is_padding", "action_is_pad")
UNCLEAR_KEYS = ("mask", "pad_mask", "padding_mask", "attention_mask")
"""Keys that may say which rows are padding, one way or the other."""


@dataclass(frozen=True)
class KeyMap:
    """Which keys of a file are read as what; empty: those that the format names."""

    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Keys of observation fields, by the fields' names without their prefix."""

    @classmethod
    def parse(cls, words: Sequence[str]) -> KeyMap:
        """From words such as `action=actions`, `action=arm,gripper`, `observation.state=state`, `done=`.

        Several keys are read side by side, none leaves something out. Raises UserError for other words.
        """
        roles: dict[str, tuple[str, ...]] = {}
        fields: dict[str, tuple[str, ...]] = {}
        for word in words:
            what, equals, text = word.partition("=")
            keys = tuple(key.strip() for key in text.split(",")) if text.strip() else ()
            if not equals or not what.strip() or not all(keys):
                raise UserError(
                    f"--map takes WHAT=KEY[,KEY...], not '{word}': try --map action=actions, or "
                    "--map observation.state=state"
                )
            name = what.strip()
            prefix = next((start for start in FIELD_PREFIXES if name.startswith(start)), None)
            known = role_of(name)
            if prefix and len(name) > len(prefix):
                target, name = fields, name[len(prefix) :]
            elif known:
                target, name = roles, known
            else:
                raise UserError(
                    f"--map cannot read a key as '{name}'{suggestion(name, [*ROLES, 'observation.NAME'])}"
                )
            if name in target:
                raise UserError(f"--map names '{what}' twice: put its keys in one, separated by commas")
            target[name] = keys
        return cls(roles, fields)

    def __bool__(self) -> bool:
        return bool(self.roles or self.fields)

    def require_described(self, where: str) -> None:
        """Raise UserError if actions or observations are mapped in a file that describes its own plant.

        Fields may be left out.
        """
        if any(self.fields.values()) or {"action", "observation"} & set(self.roles):
            raise UserError(
                f"{where} was written by rql-deploy and describes its actions and observations itself: leave "
                "out --map"
            )

    def key(self, role: str, held: Collection[str], *usual: str, where: str) -> str | None:
        """The one key that is read as `role`: the mapped one, else the first of `usual` that is held.

        Raises UserError if a mapped key is not among those `held` by `where`.
        """
        keys = self.keys(role, held, *usual, where=where)
        if len(keys) > 1:
            raise UserError(f"--map {role}={','.join(keys)}: only actions and observations take several keys")
        return keys[0] if keys else None

    def keys(self, role: str, held: Collection[str], *usual: str, where: str) -> tuple[str, ...]:
        """Like `key`, for what may be read from several keys side by side."""
        if role not in self.roles:
            return next(((key,) for key in usual if key in held), ())
        return require_keys(self.roles[role], held, role, where)

    def with_fields(
        self, usual: Mapping[str, tuple[str, ...]], held: Collection[str], prefix: str, where: str
    ) -> dict[str, tuple[str, ...]]:
        """Keys of all observation fields by name: the format's own, with the mapped ones added or left out.

        `prefix` starts the names of the format's fields.
        """
        mapped = dict(self.fields)
        if "observation" in self.roles:
            mapped.setdefault("state" if prefix else "observation", self.roles["observation"])
        added: dict[str, tuple[str, ...]] = {}
        left_out = set()
        for name, keys in mapped.items():
            if keys:
                added[f"{prefix}{name}"] = require_keys(keys, held, f"observation.{name}", where)
                continue
            full = name if name in usual else f"{prefix}{name}"
            if full not in usual:
                raise UserError(
                    f"--map observation.{name}= leaves out a field that {where} does not have"
                    f"{suggestion(full, usual)}"
                )
            left_out.add(full)
        # What is read under another name is not read twice.
        taken = {key for keys in added.values() for key in keys}
        kept = {name: keys for name, keys in usual.items() if name not in left_out and not taken & set(keys)}
        return kept | added


def require_keys(keys: tuple[str, ...], held: Collection[str], role: str, where: str) -> tuple[str, ...]:
    """`keys`; raises UserError if one of them is not among those `held` by `where`."""
    for key in keys:
        if key not in held:
            raise UserError(f"--map {role}={key}: {where} has no '{key}'{suggestion(key, held)}")
    return keys


def role_of(name: str) -> str | None:
    """The role that a name stands for, with or without LeRobot's prefix `next.`."""
    plain = name.removeprefix("next.")
    return next((role for role, names in ROLES.items() if plain in names), None)


@dataclass(frozen=True)
class ReadOptions:
    """How a data set is read, where its format leaves a choice."""

    keys: KeyMap = field(default_factory=KeyMap)
    tasks: tuple[int, ...] = ()
    """Only episodes of these language tasks, by their number in the data set."""
    cameras: tuple[CameraChoice, ...] = ()
    """The cameras that are read; without any, none is."""
    progress: Progress = field(default_factory=NoProgress)
    """Follows the decoding of frames."""


def options_of_each(options: ReadOptions, inputs: Sequence[Collection[str] | None]) -> list[ReadOptions]:
    """How each of several data sets is read; `inputs` names fields and cameras of stores, None other formats.

    Keys, tasks and orders of colours are those of other programs' files: a store beside such files has been
    read from them already. A field is left out of those sets that have it.
    """
    stores = [names for names in inputs if names is not None]
    if len(inputs) < 2 or not stores:
        return [options] * len(inputs)
    foreign, known = len(stores) < len(inputs), set[str]().union(*stores)

    def of_store(names: Collection[str]) -> ReadOptions:
        # A name that is nowhere stays, so that its reader says so.
        fields = {
            name: keys
            for name, keys in options.keys.fields.items()
            if (not foreign if keys else has(name, names) or not (foreign or has(name, known)))
        }
        if not foreign:
            return replace(options, keys=replace(options.keys, fields=fields))
        cameras = tuple(replace(choice, order="") for choice in options.cameras)
        return replace(options, keys=KeyMap({}, fields), tasks=(), cameras=cameras)

    def has(name: str, names: Collection[str]) -> bool:
        return name in names or f"observation.{name}" in names

    return [options if names is None else of_store(names) for names in inputs]
