"""Offline to online, as the released code does it: play one control step, then update, over and over.

Nothing is reset at the switch: networks, averages, Adam's state and settings are those of the run that it
starts from. Everything else (logs, checkpoints, evaluations of the averaged policy, the run's page) is the
offline trainer's.
"""

from __future__ import annotations

import functools
from collections import deque
from pathlib import Path
from typing import Any

from torch import Tensor

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.plant import EpisodicPlant
from rql_deploy.train.checkpoints.checkpoint import load_online_state
from rql_deploy.train.checkpoints.run_folder import read_pointer
from rql_deploy.train.config import TrainConfig
from rql_deploy.train.data.rewards import opposed_rewards
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.engines.engine import Engine
from rql_deploy.train.loop.trainer import Trainer, TrainResult

from .buffer import ReplayBuffer, See
from .collector import RECENT, Collector
from .played import load_played, save_played


class OnlineTrainer(Trainer):
    """One run that plays its own episodes in a simulator, in lock-step with its updates.

    Before update i (from 0) the plant has made `warm_up + i // updates_per_step + 1` control steps.
    """

    plays = True

    def __init__(
        self,
        config: TrainConfig,
        store: TransitionStore | ShardedStore,
        run: Path,
        plant: EpisodicPlant,
        described: PlantDescription,
        **options: Any,
    ):
        """`described` is the plant as it describes itself; the other options are `Trainer`'s.

        Raises UserError where it differs from the plant of the data.
        """
        if not isinstance(store, TransitionStore):
            raise UserError(
                f"data set {store.dataset_id} is in shards, and one buffer holds old and new episodes: pass "
                "a data set that is not"
            )
        super().__init__(config, store, run, **options)
        if differences := self.store.plant.differences(described):
            raise UserError(
                f"the data does not fit the task ({'; '.join(differences)}): pass the task and settings it "
                "was collected with"
            )
        see = self._backbones()
        self.collector = Collector(
            plant,
            self.agent,
            self.store.plant,
            (self.reference["mean"], self.reference["std"]),
            config.online,
            seed=config.seed,
            sparse=config.reward == "sparse",
            see=see,
        )
        self.buffer = ReplayBuffer(
            self.sampler.rows,
            config.updates // config.online.updates_per_step + config.online.warm_up + 1,
            complete_rows=config.rql.complete_rows,
            interventions=config.interventions,
            device=self.sampler.device,
            see=see,
            folder=run,
        )
        latest = read_pointer(run, "latest")
        if self.step and latest is not None:
            self._go_on(latest)
        self.sampler.use(self.buffer.rows)

    def _backbones(self) -> See:
        """What the cameras with a frozen backbone show training."""
        features = self.features
        if features is None:
            return {}
        return {
            image.name: functools.partial(features.computed, image)
            for image in self.store.plant.images
            if image.name in features.backbones
        }

    def _go_on(self, checkpoint: Path) -> None:
        state = load_online_state(checkpoint)
        last: deque[Any] = deque(maxlen=RECENT)
        for episode in load_played(self.run, int(state["counts"][0])):
            self.buffer.add(episode)
            last.append(episode)
        if not self.collector.restore(state, list(last)):
            self.progress.note(
                "note: the simulator does not repeat the unfinished episode, which is begun again"
            )

    def train(self) -> TrainResult:
        """As `Trainer.train`; the policy before the first update is saved, and evaluated with the others."""
        if self.step == 0 and read_pointer(self.run, "latest") is None:
            self.save()
        return super().train()

    def data_period(self) -> int:
        """After how many updates the plant makes its next step."""
        return self.config.online.updates_per_step

    def next_data(self, engine: Engine) -> None:
        """Play the control steps that are due; a complete episode joins the buffer."""
        settings = self.config.online
        due = settings.warm_up + self.step // settings.updates_per_step + 1
        grown = False
        while self.collector.steps < due:
            number = self.collector.episodes
            if (episode := self.collector.step()) is not None:
                if number == 0 and (clause := opposed_rewards(self.store.sample.rewards, episode.rewards)):
                    self.progress.note(
                        f"note: the data and the simulator have {clause}, so the same outcome counts for "
                        "more in one of them: give the data the simulator's with `rql-deploy data relabel "
                        "--success` and train on it first"
                    )
                save_played(self.run, number, episode)
                self.buffer.add(episode)
                grown = True
        if grown:
            self.sampler.use(self.buffer.rows)
            engine.rebuild()

    def checked(self, figures: dict[str, float]) -> dict[str, float]:
        """The figures to log, with those of the episodes played."""
        return super().checked(figures) | self.collector.figures()

    def _online_state(self) -> dict[str, Tensor]:
        # The trainer's own constructor saves nothing, so the collector is there.
        return self.collector.state()
