"""The hyperparameters of Reversal Q-Learning, under the paper's names (docs/algorithm.md, Symbols),
and those of going on in a simulator (docs/improvement.md).
"""

from __future__ import annotations

from typing import Literal

from rql_deploy.errors import UserError
from rql_deploy.policy import MAX_CANDIDATES
from rql_deploy.structs import Finite, Record

EncoderName = Literal["impala_small", "impala", "impala_large"]


class RQLConfig(Record, frozen=True):
    """Hyperparameters of the algorithm, with the paper's names; defaults are the reference code's."""

    h: int = 3
    """Action chunk length: the policy outputs h actions at once."""
    F: int = 10
    """Flow steps from noise to action."""
    K: int = 10
    """Members of the value ensemble (at least 2)."""
    policy_hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the vector field's hidden layers."""
    value_hidden: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of each value network's hidden layers."""
    gamma: Finite = 0.99
    """Discount per environment step."""
    kappa: Finite = 0.5
    """Expectile of the value regression; 0.5 is the mean."""
    rho: Finite = 0.0
    """Pessimism: the target is the ensemble's mean minus rho standard deviations."""
    alpha: Finite = 1.0
    """Weight of the behaviour-cloning term."""
    policy_value_weight: Finite = 1.0
    """Weight of the policy's value term. 1 is RQL; 0 is behaviour cloning, with V learned of the clone."""
    policy_value_ramp: int = 0
    """Updates over which that weight rises from 0, while V settles; 0, the paper's, is the whole weight from
    the first one on. Updates of a run that this one started from count."""
    tau: Finite = 0.005
    """Rate of the target value's average."""
    ema: Finite = 0.999
    """Decay of the policy's average, the policy that acts."""
    learning_rate: Finite = 3e-4
    """Adam's step size, for both networks."""
    reversal: bool = True
    """Use the reversed flow. False is the paper's ablation: each partial action's V is learned from the next
    one's, step by step."""
    prefix: bool = False
    """Train with the first actions of some chunks given, so that a chunk can continue the one before it
    (docs/algorithm.md)."""
    complete_rows: bool = False
    """Let every row start a window, and count windows that reach past the end of an episode whose last mask
    is 0. The reference code does neither."""
    encoder: EncoderName = "impala_small"
    """Of pictures, where the data has some: v and V have one each for every camera (train/vision)."""
    crop_probability: Finite = 0.5
    """How likely all pictures of a batch are shifted at random; one coin decides for the whole batch."""
    crop_padding: int = 3
    """By how many pixels at most, the pictures' edges repeated."""


class OnlineConfig(Record, frozen=True):
    """How a run goes on with episodes that its own policy plays; defaults are the reference code's."""

    updates_per_step: int = 1
    """Updates after each control step of the simulator."""
    warm_up: int = 0
    """Control steps before the first update."""
    act: Literal["raw", "average"] = "raw"
    """Which vector field acts: the one being trained, or its average, which is what is exported."""
    candidates: int = 1
    """Chunks per decision, of which the one with the highest V is played."""

    def check(self) -> None:
        """Raise UserError for numbers that cannot be."""
        for name, low, high in (
            ("updates_per_step", 1, 1000),
            ("warm_up", 0, 10**9),
            ("candidates", 1, MAX_CANDIDATES),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(
                    f"train.online.{name} is {getattr(self, name)}, it must lie in [{low}, {high}]"
                )
