"""Play episodes in lock-step with training: one control step of the simulator per call.

As in the released code the vector field that is being trained acts, from one noise, and a chunk is carried
out to its end before the next is made; a new episode begins with a new chunk. Seeds of episodes and of noise
are counted, so that a resumed run plays what an uninterrupted one plays. An unfinished episode is resumed by
resetting the simulator to its seed and carrying out the same actions again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.images import stacked
from rql_deploy.plant import EpisodicPlant, UnstableSimulation, carried_out
from rql_deploy.seeding import decision_seed, episode_seed, flow_noise
from rql_deploy.train.hyperparameters import OnlineConfig
from rql_deploy.train.rql import RQL, integrate

from .buffer import NO_BACKBONES, PlayedEpisode, See

RECENT = 20
"""Episodes whose success and return are logged."""
MAX_UNSTABLE = 20
"""Unstable episodes in a row after which the run stops."""
FLAT, IMAGE = "observation", "image/"
"""Key of the numbers that are seen in a state, and what a camera's begins with."""


class Observed(NamedTuple):
    """What is seen at one control step."""

    flat: NDArray[np.float32]
    """`[O]`, unscaled."""
    images: Mapping[str, NDArray[np.uint8]]
    """By camera, the stacked frames `[H, W, 3n]`."""


class _Row(NamedTuple):
    seen: Observed
    action: NDArray[np.float32]
    reward: float
    mask: float
    intervened: bool


class Collector:
    """Plays one plant with the policy of an agent that is being trained."""

    def __init__(
        self,
        plant: EpisodicPlant,
        agent: RQL,
        description: PlantDescription,
        scale: tuple[Tensor, Tensor],
        settings: OnlineConfig,
        *,
        seed: int,
        sparse: bool = False,
        see: See = NO_BACKBONES,
    ):
        """`scale` is mean and std of observations; with `sparse`, rewards other than 0 become -1.

        `see` has the frozen backbones' features of frames.
        """
        self.plant: EpisodicPlant = stacked(plant, description)
        self.agent, self.description, self.settings, self._see = agent, description, settings, see
        self.steps = 0
        """Control steps so far."""
        self.episodes = 0
        """Complete episodes so far."""
        self._mean, self._std = (part.cpu() for part in scale)
        self._centre = ((description.action_high + description.action_low) / 2).astype(np.float32)
        self._half_range = ((description.action_high - description.action_low) / 2).astype(np.float32)
        self._seed, self._sparse = seed, sparse
        self._begun = 0
        """Episodes that were begun, those of an unstable simulation included."""
        self._recent: deque[tuple[bool, float]] = deque(maxlen=RECENT)
        self._clear()

    def _clear(self) -> None:
        self._rows: list[_Row] = []
        self._commands: list[NDArray[np.float32]] = []
        self._queue: list[NDArray[np.float32]] = []
        self._decisions = 0
        self._observation: Observed | None = None

    def step(self) -> PlayedEpisode | None:
        """Carry out one action; returns the episode that it ended, if it did.

        Raises UserError where the simulator observes NaN, rewards what cannot be made sparse, or is unstable
        again and again.
        """
        for _ in range(MAX_UNSTABLE):
            try:
                if self._observation is None:
                    self._begin()
                if not self._queue:
                    self._queue = list(self._decide())
                self._apply(self._queue.pop(0))
                break
            except UnstableSimulation:
                self._clear()
        else:
            raise UserError(
                f"the simulation became unstable in {MAX_UNSTABLE} episodes in a row: the policy is lost, go "
                "on from an earlier checkpoint"
            )
        self.steps += 1
        return self._finish() if self.plant.finished else None

    def figures(self) -> dict[str, float]:
        """Complete episodes, and success and return of the last of them."""
        if not self._recent:
            return {}
        success, returns = zip(*self._recent, strict=True)
        return {
            "episodes_played": float(self.episodes),
            "played_success": float(np.mean(success)),
            "played_return": float(np.mean(returns)),
        }

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs."""
        action_dim, observed = self.description.action_dim, self._observation
        return {
            "counts": torch.tensor([self.episodes, self.steps, self._begun, self._decisions]),
            "commands": _table(self._commands, action_dim),
            "queue": _table(self._queue, action_dim),
            **_tensors(observed),
        }

    def restore(self, state: Mapping[str, Tensor], last: list[PlayedEpisode]) -> bool:
        """Go on from `state`; `last` are the complete episodes before it.

        Returns whether the unfinished episode is what it was; else it is begun again.
        """
        self.episodes, self.steps, self._begun, decisions = (int(count) for count in state["counts"])
        self._recent.extend((episode.success, float(episode.rewards.sum())) for episode in last)
        self._clear()
        seen = {name: tensor for name, tensor in state.items() if name == FLAT or name.startswith(IMAGE)}
        if not any(len(tensor) for tensor in seen.values()):
            return True
        commands = state["commands"].numpy()
        try:
            self._begin(again=True)
            for command in commands:
                self._apply(command)
        except UnstableSimulation:
            self._clear()
        again = _tensors(self._observation)
        if again.keys() != seen.keys() or not all(torch.equal(again[name], seen[name]) for name in seen):
            self.steps -= len(commands)
            self._begun -= 1
            self._clear()
            return False
        self._decisions, self._queue = decisions, list(state["queue"].numpy())
        return True

    def _begin(self, *, again: bool = False) -> None:
        self._begun += not again
        self._clear()
        self.plant.reset(self._episode_seed)
        self._observation = self._observe()

    @property
    def _episode_seed(self) -> int:
        return episode_seed(self._seed, self._begun - 1, "online")

    def _observe(self) -> Observed:
        seen: Mapping[str, Any] = self.plant.observe()
        parts = [np.asarray(seen[spec.name], np.float32).reshape(-1) for spec in self.description.fields]
        flat: NDArray[np.float32] = np.concatenate([np.zeros(0, np.float32), *parts])
        if not np.isfinite(flat).all():
            raise UserError(
                f"the simulator observed NaN or infinity in episode {self._begun - 1} (seed "
                f"{self._episode_seed}): the latest checkpoint is from before; correct the task and --resume"
            )
        return Observed(flat, {image.name: np.array(seen[image.name]) for image in self.description.images})

    @torch.no_grad()
    def _decide(self) -> NDArray[np.float32]:
        """A chunk `[h, A]` in [-1, 1]."""
        assert self._observation is not None
        c, candidates = self.agent.config, self.settings.candidates
        field = self.agent.v if self.settings.act == "raw" else self.agent.v_ema
        device = self.agent.parameters()[0].device
        flat = ((torch.from_numpy(self._observation.flat) - self._mean) / self._std).to(device)[None]
        pictures = {
            name: torch.from_numpy(self._picture(name, picture)).to(device)
            for name, picture in self._observation.images.items()
        }
        noise = flow_noise(
            decision_seed(self._episode_seed, self._decisions), candidates, c.h * len(self._centre)
        )
        self._decisions += 1
        s = field.see(flat, pictures).expand(candidates, -1)
        x = integrate(field, s, torch.from_numpy(noise).to(device), c.F)
        best = 0
        if candidates > 1:
            s = self.agent.V.see(flat, pictures).expand(candidates, -1)
            best = int(self.agent.V(s, x, torch.ones_like(x[:, :1])).mean(0).argmax())
        chunk: NDArray[np.float32] = x[best].reshape(c.h, -1).cpu().numpy()
        return chunk

    def _picture(self, name: str, picture: NDArray[np.uint8]) -> NDArray[Any]:
        """Stacked frames `[H, W, 3n]` as a batch of one, or a backbone's features of them."""
        if name not in self._see:
            return picture[None]
        features = self._see[name](_frames(picture))
        return features.reshape(1, -1, *features.shape[2:])

    def _apply(self, command: NDArray[np.float32]) -> None:
        assert self._observation is not None
        plant = self.plant
        asked = (command * self._half_range + self._centre).astype(np.float32)
        plant.apply(asked)
        done, intervened = carried_out(plant, asked)
        action = command
        if intervened:
            action = np.clip((done - self._centre) / self._half_range, -1.0, 1.0).astype(np.float32)
        reward = float(getattr(plant, "reward", float(plant.success) - 1.0))
        if self._sparse and reward > 0:
            raise UserError(
                f"the simulator gave a reward of {reward:g}, and the run was trained on sparse rewards of at "
                "most 0: pass --set reward=as-is, or train the run on such rewards"
            )
        over = plant.success or bool(getattr(plant, "terminated", False))
        self._rows.append(
            _Row(
                self._observation,
                action,
                -float(reward != 0.0) if self._sparse else reward,
                float(not over),
                bool(intervened),
            )
        )
        self._commands.append(command)
        self._observation = self._observe()

    def _finish(self) -> PlayedEpisode:
        seen, actions, rewards, masks, intervened = zip(*self._rows, strict=True)
        episode = PlayedEpisode(
            np.stack([row.flat for row in seen]),
            np.stack(actions),
            np.array(rewards, np.float32),
            np.array(masks, np.float32),
            np.array(intervened, np.bool_),
            bool(self.plant.success),
            {
                image.name: np.stack([_frames(row.images[image.name])[-1] for row in seen])
                for image in self.description.images
            },
        )
        self.episodes += 1
        self._recent.append((episode.success, float(episode.rewards.sum())))
        self._clear()
        return episode


def _frames(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stacked frames `[H, W, 3n]` one by one: `[n, H, W, 3]`, oldest first."""
    height, width, channels = picture.shape
    frames = np.moveaxis(picture.reshape(height, width, channels // 3, 3), 2, 0)
    return np.ascontiguousarray(frames)


def _tensors(observed: Observed | None) -> dict[str, Tensor]:
    """An observation in a checkpoint; none is empty."""
    if observed is None:
        return {FLAT: torch.zeros(0)}
    pictures = {f"{IMAGE}{name}": torch.from_numpy(picture) for name, picture in observed.images.items()}
    return {FLAT: torch.from_numpy(observed.flat.copy()), **pictures}


def _table(rows: list[NDArray[np.float32]], width: int) -> Tensor:
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, width)
