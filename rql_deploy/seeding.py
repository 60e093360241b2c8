"""Seeds: one base seed, separate streams for collecting, evaluating and deciding."""

from __future__ import annotations

import operator
import os
import random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import ContractError

SEED_BITS = 53
"""Seeds of decisions are integers below 2^53: JSON and JavaScript hold no larger ones exactly."""
MAX_SEED = 2**SEED_BITS - 1

Stream = Literal["collect", "evaluate", "tune", "train", "online", "gate"]
_STREAMS: dict[Stream, int] = {
    "collect": 1,
    "evaluate": 2,
    "tune": 3,
    "train": 4,
    "online": 5,
    "gate": 6,
}


def episode_seed(base: int, index: int, stream: Stream) -> int:
    """A 31-bit seed for episode `index`. Each stream hashes differently: tuning and evaluation do not mix."""
    return int(np.random.SeedSequence((base, _STREAMS[stream], index)).generate_state(1)[0] >> 1)


def decision_seed(episode: int, decision: int) -> int:
    """A 53-bit seed for the noise of one decision of an episode."""
    word = np.random.SeedSequence((episode, decision)).generate_state(1, np.uint64)[0]
    return int(word) >> (64 - SEED_BITS)


# Not the `random` module's own generator, which the caller may have seeded; seeded anew after a fork.
_seeds = random.Random()
os.register_at_fork(after_in_child=_seeds.seed)


def draw_seed() -> int:
    """A seed for the noise of a decision for which nobody asked for one."""
    return _seeds.getrandbits(SEED_BITS)


def check_seed(seed: Any) -> int:
    """The seed of a decision as an int, numpy integers included.

    Raises ContractError when it is not an integer from 0 to `MAX_SEED`.
    """
    try:
        whole = -1 if isinstance(seed, bool | np.bool_) else operator.index(seed)
    except TypeError:
        whole = -1
    if not 0 <= whole <= MAX_SEED:
        raise ContractError(f"seed is {seed!r}: pass an integer from 0 to 2^{SEED_BITS} - 1, or none")
    return whole


class FlowNoise:
    """Noise of a decision from its seed, with one generator kept: making one costs five times the numbers.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        # In Python's own integers, which numpy reads faster than its arrays.
        self._key = [0, 0]
        self._start: Any = self._bits.state | {
            "state": {"counter": [0, 0, 0, 0], "key": self._key},
            "buffer": [0, 0, 0, 0],
        }

    def __call__(self, seed: int, rows: int, chunk_dim: int) -> NDArray[np.float32]:
        """See `flow_noise`."""
        self._key[0] = seed
        self._bits.state = self._start
        return self._generator.standard_normal((rows, chunk_dim), dtype=np.float32)


def flow_noise(seed: int, rows: int, chunk_dim: int) -> NDArray[np.float32]:
    """`[rows, hA]` float32 N(0, I), counter-based: row i does not depend on how many rows are drawn."""
    return FlowNoise()(seed, rows, chunk_dim)
