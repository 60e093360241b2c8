"""The hyperparameters of Reversal Q-Learning, under the paper's names (docs/algorithm.md, Symbols)."""

from __future__ import annotations

from typing import Literal

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
    """Of pictures, where the data has some: v and V have one each for every camera (train/encoder.py)."""
    crop_probability: Finite = 0.5
    """How likely all pictures of a batch are shifted at random; one coin decides for the whole batch."""
    crop_padding: int = 3
    """By how many pixels at most, the pictures' edges repeated."""
