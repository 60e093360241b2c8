"""Chunks that continue the actions which play while they are computed.

y `[hA]` is the chunk that plays now, shifted so that its first action is due now, in the flow's own scale;
its first d actions are committed: they play whatever is decided. x at flow time t has velocity v, dt is the
refinement step, z the noise:

- replacement: before each step the committed part of x is set to (1 - t) z + t y.
- guidance: x + dt (v + gamma W (y - a)), where a = x + (1 - t) v is the chunk as seen from x. This is the
  guided inpainting of Black et al. 2025 (arXiv:2506.07339) with the identity in place of the Jacobian of a.
- inversion: PAINT (arXiv:2606.19774). A chunk is made, its committed part is replaced by y, the flow is
  followed back to noise, the committed part of that noise takes the place of z's, and a chunk is made of it.
- trained: the vector field is told which actions are given (`rql.prefix=true`), and moves the others only.

Everything here is computed row by row, so a row has the same bytes alone and in any batch.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from rql_deploy.policy import Continuation as Method

Array = NDArray[np.float32]

MAX_GAIN = 5.0
"""beta of Black et al.: the most that guidance weighs."""


def soft_mask(h: int, committed: int, known: int) -> Array:
    """W `[h]`: 1 for the committed actions, falling to 0 at the first that is not known (exponential)."""
    start, index = min(committed, known), np.arange(h)
    linear = np.clip((start - 1 - index) / (known - start + 1) + 1, 0.0, 1.0)
    falling = linear * np.expm1(linear) / np.expm1(1.0)
    return np.where(index < known, falling, 0.0).astype(np.float32)


def gain(t: float, delta: float) -> float:
    """gamma = min((1 - t)/t * (t^2 + (1 - t)^2)/(1 - t)^2, beta), and at most 1/dt: no step goes past y."""
    most = min(MAX_GAIN, 1.0 / delta)
    return most if t <= 0.0 or t >= 1.0 else min((t * t + (1.0 - t) ** 2) / (t * (1.0 - t)), most)


class Continuation(Struct, eq=False):
    """How one request's chunk continues the actions before it; the same for all its candidates."""

    method: Method
    actions: Array
    """`[n, A]`, in the plant's units: what plays now, from the action due at the observation on."""
    committed: int
    """d: of these, the actions that play whatever is decided."""
    target: Array
    """y `[hA]` in [-1, 1], zero where nothing is known."""
    weight: Array
    """W `[hA]`"""

    @classmethod
    def of(cls, method: Method, actions: Array, committed: int, scaled: Array, h: int) -> Continuation:
        """`scaled` `[n, A]` are the actions in the flow's scale."""
        target = np.zeros((h, actions.shape[1]), np.float32)
        target[: len(actions)] = np.clip(scaled, -1.0, 1.0)
        weight = np.repeat(soft_mask(h, committed, len(actions)), actions.shape[1])
        return cls(method, actions, committed, target.reshape(-1), weight)

    @property
    def size(self) -> int:
        """Numbers in the committed actions."""
        return self.committed * self.actions.shape[1]

    @property
    def given(self) -> int:
        """Actions that the vector field is told are given."""
        return self.committed if self.method == "trained" else 0

    @property
    def needs_noise(self) -> bool:
        """Whether a step needs the noise that its rows began with."""
        return self.method in ("replacement", "inversion")

    def before_step(self, x: Array, noise: Array, t: np.float32) -> Array:
        """x `[B, hA]` as the step takes it; `noise` is what its rows began with."""
        if self.method not in ("replacement", "trained"):
            return x
        known, size = self.target[: self.size], self.size
        x = x.copy()
        x[:, :size] = known if self.method == "trained" else (1 - t) * noise[:, :size] + t * known
        return x

    def after_step(self, x: Array, next_x: Array, t: np.float32, delta: np.float32) -> tuple[Array, Array]:
        """The next x and the finished chunk as seen from there, both `[B, hA]`, of a guided step."""
        velocity = (next_x - x) / delta
        seen = x + (1 - t) * velocity
        pull, gamma = self.weight * (self.target - seen), gain(float(t), float(delta))
        # Seen from here, a chunk goes to y and not past it; in the last step it is the next x.
        reach = np.float32(min(gamma * float(1 - t), 1.0))
        return next_x + np.float32(float(delta) * gamma) * pull, seen + reach * pull

    def turned(self, chunks: Array) -> Array:
        """Complete chunks x `[B, hA]` with the committed actions in place, to be followed back to noise."""
        x = np.clip(chunks, -1.0, 1.0)
        x[:, : self.size] = self.target[: self.size]
        return x

    def restarted(self, x: Array, noise: Array) -> Array:
        """`noise` `[B, hA]` with the committed part of x, which was followed back."""
        again = noise.copy()
        again[:, : self.size] = x[:, : self.size]
        return again

    def in_place(self, chunk: Array) -> Array:
        """The chunk `[h, A]` as it is handed out: its first actions are the committed ones, to the byte."""
        if not self.committed:
            return chunk
        return np.concatenate([self.actions[: self.committed], chunk[self.committed :]])
