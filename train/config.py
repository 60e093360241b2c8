"""What a training run is configured with: its settings, presets, `--set key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal

import msgspec

from rql_deploy.errors import UserError, suggestion
from rql_deploy.plant_description import MAX_FRAMES
from rql_deploy.seeding import MAX_SEED
from rql_deploy.structs import Finite, Record, convert, to_plain
from rql_deploy.train.data.rewards import Reward

from .hyperparameters import Interventions, OnlineConfig, RQLConfig, Sampling


class TrainConfig(Record, frozen=True):
    """One training run."""

    rql: RQLConfig = msgspec.field(default_factory=RQLConfig)
    """The algorithm's hyperparameters; override one with `--set rql.alpha=3`."""
    updates: int = 1_000_000
    """Gradient updates in all."""
    batch_size: int = 256
    """Windows per update; an even number."""
    seed: int = 0
    """Seed of the initial parameters, of sampling and of every noise."""
    standardise: bool = False
    """Scale observations by the data's mean and standard deviation (inside the exported graph too)."""
    sampling: Sampling = "episodes"
    """Draw windows by episode (the reference) or by transition."""
    reward: Reward = "as-is"
    """`sparse` turns every reward other than 0 into -1; refused when one is positive."""
    relabel: str = ""
    """OGBench task whose rewards files without any are given, e.g. `cube-single-play-singletask-task2-v0`."""
    new_share: Finite = 0.0
    """Of each batch, the share drawn from the data set named last, the new one; 0 draws from all alike."""
    interventions: Interventions = "both"
    """What actions that were not the policy's (a person's) are used for: cloning, value or both."""
    online: OnlineConfig = msgspec.field(default_factory=OnlineConfig)
    """How `finetune` goes on in a simulator; `train` does not read it."""
    frame_stack: int = 0
    """Frames of each camera that the networks see at once, the newest and those before it; 0 leaves that to
    the data set's plant (1 where it does not say)."""
    backbone: tuple[str, ...] = ()
    """Frozen backbones that cameras are seen through (same as --backbone): a file or efficientnet-lite0 for
    all, or CAMERA=FILE."""
    shard_updates: int = 1000
    """Of a sharded data set, updates drawn from one shard before the next takes over."""
    clip_actions: bool = False
    """Clip data set actions to their bounds instead of refusing those outside."""
    checkpoint_every: int = 0
    """Also write a checkpoint every so many updates; 0 leaves that to `checkpoint_minutes`."""
    checkpoint_minutes: Finite = 5.0
    """Also write a checkpoint when the last one is that old: a power cut costs no more. 0 for never."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How `rql.learning_rate` falls, to 0 at the last update; constant, the paper's, keeps it. A run that is
    resumed with more updates goes on with the rate that it would have had with them from the start."""
    log_every: int = 100
    """Updates between two lines of the logs."""
    threads: int = 0
    """CPU threads, each with its own slice of the batch; 0 takes as many cores as give 32 rows to each."""
    engine: Literal["auto", "eager", "compiled"] = "auto"
    """How updates run; `auto` compiles long runs (docs/training.md). On a GPU, compiled means CUDA graphs."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """Precision of the hidden layers' products; `auto` is float32 on CPUs and TF32 on GPUs that have it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks and data live; `auto` takes a GPU when torch finds one."""
    evaluate_every: int = 0
    """Updates between two evaluations in the simulator during training (`--evaluate TASK`); 0 for none."""
    keep_every: int = 0
    """Also write a checkpoint at multiples of this, and keep it. Of the others only the last, the best and
    those being evaluated are kept."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Also log to these, offline unless their settings differ. TensorBoard and JSON lines are always on."""

    def __post_init__(self) -> None:
        for name, low in (
            ("updates", 1),
            ("batch_size", 2),
            ("log_every", 1),
            ("checkpoint_every", 0),
            ("threads", 0),
            ("evaluate_every", 0),
            ("keep_every", 0),
            ("shard_updates", 1),
            ("frame_stack", 0),
        ):
            if getattr(self, name) < low:
                raise UserError(f"train.{name} is {getattr(self, name)}, it must be at least {low}")
        if self.batch_size % 2:
            raise UserError(
                f"train.batch_size is {self.batch_size}, it must be even: "
                "half the batch draws its reversal depth from a grid"
            )
        if not self.checkpoint_minutes >= 0:
            raise UserError(f"train.checkpoint_minutes is {self.checkpoint_minutes}, it must be at least 0")
        if not 0.0 <= self.new_share <= 1.0:
            raise UserError(f"train.new_share is {self.new_share}, it must lie in [0, 1]")
        self.online.check()
        c = self.rql
        for name, low in (("h", 1), ("F", 1), ("policy_value_ramp", 0)):
            if getattr(c, name) < low:
                raise UserError(f"rql.{name} is {getattr(c, name)}, it must be at least {low}")
        if c.K < 2:
            raise UserError(
                f"rql.K is {c.K}, it must be at least 2: the spread of one value network is undefined"
            )
        if self.frame_stack > MAX_FRAMES:
            raise UserError(f"train.frame_stack is {self.frame_stack}, it must be at most {MAX_FRAMES}")
        if c.crop_padding < 0:
            raise UserError(f"rql.crop_padding is {c.crop_padding}, it must be at least 0")
        if c.prefix and c.h < 2:
            raise UserError("rql.prefix is for chunks of two actions and more: set rql.h=2")
        for name in ("policy_hidden", "value_hidden"):
            if not getattr(c, name) or min(getattr(c, name)) < 1:
                raise UserError(
                    f"rql.{name} is {list(getattr(c, name))}, it must list at least one positive width"
                )
        if any(width % 4 for width in c.value_hidden):
            raise UserError(
                f"rql.value_hidden is {list(c.value_hidden)}, its widths must be multiples of 4: "
                "in an exported graph of another width, a row's last bit would depend on the batch it is in"
            )
        if c.learning_rate <= 0:
            raise UserError(f"rql.learning_rate is {c.learning_rate:g}, it must be positive")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"train.seed is {self.seed}, it must lie in [0, 2^53)")
        for name in ("gamma", "kappa", "tau", "ema", "crop_probability"):
            if not 0.0 <= getattr(c, name) <= 1.0:
                raise UserError(f"rql.{name} is {getattr(c, name)}, it must lie in [0, 1]")


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files(__package__) / "presets"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_config(preset: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """A preset by name with `key=value` overrides.

    Raises UserError naming an unknown preset or key with the nearest known one.
    """
    if preset not in preset_names():
        raise UserError(f"there is no preset '{preset}'{suggestion(preset, preset_names())}")
    table = msgspec.toml.decode((resources.files(__package__) / "presets" / f"{preset}.toml").read_bytes())
    return _overridden(table, overrides)


def with_overrides(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """The configuration of an earlier run with `key=value` overrides."""
    return _overridden(config_to_plain(config), overrides)


def require_not_set(overrides: Sequence[str], key: str, instead: str) -> None:
    """Raise UserError if a `key=value` word sets what a command counts itself."""
    if any(word.partition("=")[0].strip() == key for word in overrides):
        raise UserError(f"--set {key}=... would have no effect: {instead}")


def _overridden(table: dict[str, Any], overrides: Sequence[str]) -> TrainConfig:
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise UserError(f"--set takes key=value, not '{override}': try --set updates=1000")
        _assign(table, key.strip(), _parse(text.strip()))
    return convert(table, TrainConfig, "train")


def config_to_plain(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON data."""
    plain: dict[str, Any] = to_plain(config)
    return plain


def _assign(table: dict[str, Any], key: str, value: Any) -> None:
    *path, name = key.split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {key}: '{part}' holds a value, not a table")
    table[name] = value


def _parse(text: str) -> Any:
    try:
        return msgspec.toml.decode(f"value = {text}")["value"]
    except msgspec.DecodeError:
        return text
