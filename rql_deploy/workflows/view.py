"""A recording as one HTML page that needs no network: what `rql-deploy view` writes."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.chunk_paths import PathModel, colour, effector_fields, value_range
from rql_deploy.errors import UserError, suggestion

from .view_page import render

if TYPE_CHECKING:
    from rql_deploy.contract import Contract
    from rql_deploy.runtime.engine.model import Model
    from rql_deploy.runtime.recording.messages import Decision, Message, Tick
    from rql_deploy.runtime.recording.timeline import EpisodeView

MAX_TICKS, MAX_DECISIONS = 20_000, 4_000
"""What a page holds, so that a browser shows it without delay."""
MAX_PATHS = 16
"""Candidates of a decision that are drawn."""
FILM_HEIGHT, MAX_FILM_BYTES = 240, 32 << 20
DIGITS = 4


@dataclass(frozen=True)
class ViewResult:
    """The page, and what is on it."""

    page: Path
    episodes: int
    ticks: int
    decisions: int


def view_recording(
    recording: Path,
    output: Path,
    *,
    start: float = 0.0,
    duration: float | None = None,
    bundle: Path | None = None,
    task: str | None = None,
) -> ViewResult:
    """Write the page of a recording.

    Args:
        start: seconds from the recording's first message at which the page begins.
        duration: seconds that it shows; None for all.
        bundle: the bundle that was served; previews that were not recorded are computed again.
        task: of a recording of several, the one that it shows.

    Raises UserError for a recording that cannot be read, holds nothing, or more than fits on a page.
    """
    from rql_deploy.runtime.recording.messages import Bundle
    from rql_deploy.runtime.recording.reader import read_recording
    from rql_deploy.runtime.recording.timeline import make_timeline
    from rql_deploy.sim.evaluation.page import write_page

    messages = list(read_recording(recording))
    times = [message.time for message in messages if not isinstance(message, Bundle)]
    if not times:
        raise UserError(f"{recording} holds no decision and no tick", hint="record while a robot runs")
    messages, contract = _of_one_task(recording, messages, task)
    first = min(times) + start
    last = first + duration if duration is not None else float("inf")
    messages = [m for m in messages if isinstance(m, Bundle) or first <= m.time <= last]
    timeline = make_timeline(messages)
    ticks = sum(len(episode.ticks) for episode in timeline.episodes)
    decisions = sum(len(episode.decisions) for episode in timeline.episodes)
    if not timeline.episodes:
        raise UserError(f"{recording} holds no decision and no tick there", hint="choose another --start")
    if ticks > MAX_TICKS or decisions > MAX_DECISIONS:
        raise UserError(
            f"{recording} holds {ticks:,} ticks and {decisions:,} decisions, a page at most {MAX_TICKS:,} "
            f"and {MAX_DECISIONS:,}",
            hint="show a part of it with --start and --duration",
        )
    model = _model(bundle) if bundle is not None else None
    view = _View(contract, model, _value_range(contract, messages))
    data = {
        "task": contract.plant.task,
        "rate": contract.plant.control_rate,
        "actions": [action.name for action in contract.plant.actions],
        "low": contract.plant.action_low.tolist(),
        "high": contract.plant.action_high.tolist(),
        "steps": contract.F,
        "drawn": view.drawn,
        "colours": [_hex(i / 63) for i in range(64)],
        "episodes": [view.episode(episode) for episode in timeline.episodes],
    }
    text = json.dumps(_rounded(data), separators=(",", ":"), allow_nan=False)
    write_page(output, render(f"{contract.plant.task}: {recording.name}", text))
    return ViewResult(output, len(timeline.episodes), ticks, decisions)


def _of_one_task(
    recording: Path, messages: list[Message], task: str | None
) -> tuple[list[Message], Contract]:
    """The messages of one task, and its first contract. Raises UserError where that is not one thing."""
    from rql_deploy.contract import Contract
    from rql_deploy.runtime.recording.messages import Bundle

    contracts = {
        message.contract_id: Contract.from_json(message.contract)
        for message in messages
        if isinstance(message, Bundle)
    }
    tasks = sorted({contract.plant.task for contract in contracts.values()})
    if task is None and len(tasks) > 1:
        raise UserError(f"{recording} is of {', '.join(tasks)}", hint="choose one with --task")
    if task is not None and task not in tasks:
        raise UserError(f"{recording} holds no task '{task}'{suggestion(task, tasks)}")
    own = {id: c for id, c in contracts.items() if c.plant.task == (task or tasks[0])} if tasks else {}
    found = [message for message in messages if message.contract_id in own]
    if not own or (task is None and len(found) < len(messages)):
        raise UserError(f"{recording} lacks the contract of its messages", hint="use a whole copy")
    contract = next(iter(own.values()))
    width = contract.plant.action_dim
    if other := next((n for n in map(_command_width, found) if n not in (None, width)), None):
        raise UserError(
            f"{recording} has commands of {width} and of {other} numbers", hint="view its files one by one"
        )
    return found, contract


def _command_width(message: Message) -> int | None:
    """How many numbers a command has; None of messages without one."""
    from rql_deploy.runtime.recording.messages import Decision, Tick

    if isinstance(message, Decision):
        return message.chunk_shape[1]
    return len(message.action) // 4 if isinstance(message, Tick) else None


class _View:
    """Episodes as JSON data of the page."""

    def __init__(self, contract: Contract, model: Model | None, colours: tuple[float, float]):
        """`colours` is the range of V that they span."""
        self._contract, self._model, self._range = contract, model, colours
        self._paths = PathModel(contract.plant)
        self._position, self._rotation = effector_fields(contract.plant)
        motion = np.array([action.hold != "repeat" for action in contract.plant.actions])
        # A gripper jumps on purpose; where all actions are targets, all count.
        wide = np.where(motion | ~motion.any(), 1.0, np.inf)
        self._span = (contract.plant.action_high - contract.plant.action_low) * wide
        self._film_bytes = 0

    @property
    def drawn(self) -> bool:
        """Whether there is an end effector to draw."""
        return self._position is not None or self._paths.drawable

    def episode(self, episode: EpisodeView) -> dict[str, Any]:
        start = episode.start
        ticks = [self._tick(tick, start) for tick in episode.ticks]
        for tick, behind, seam in zip(ticks, episode.behind, episode.seams(self._span), strict=True):
            tick["d"] = behind
            tick["seam"] = float(seam)
        return {
            "name": episode.name,
            "start": start,
            "ticks": ticks,
            "decisions": [self._decision(decision, start) for decision in episode.decisions],
        }

    def _tick(self, tick: Tick, start: float) -> dict[str, Any]:
        from rql_deploy.runtime.recording.timeline import field_of

        found: dict[str, Any] = {
            "t": tick.time - start,
            "p": field_of(tick, self._position),
            "q": field_of(tick, self._rotation),
            "a": np.frombuffer(tick.action, "<f4").tolist(),
            "reward": tick.reward,
            "success": tick.success,
            "human": tick.intervened,
            "film": self._film(tick),
        }
        if (note := tick.note) is not None:
            found |= {
                "fresh": note.fresh,
                "kind": note.kind,
                "reason": note.reason,
                "late": note.late,
                "age": note.age,
                "skipped": note.skipped,
                "i": note.chunk_index,
            }
        return {key: value for key, value in found.items() if value is not None}

    def _decision(self, decision: Decision, start: float) -> dict[str, Any]:
        from rql_deploy.runtime.recording.messages import chunk, previews, values_by_candidate
        from rql_deploy.runtime.recording.timeline import field_of

        seen = field_of(decision, self._position)
        origin = np.zeros(3) if seen is None else np.array(seen, np.float64)
        known, sent = values_by_candidate(decision), chunk(decision)
        made = previews(decision) or [(0, [decision.candidate], sent[None])]
        step, numbers, chunks = made[-1]
        final = {n: known.get((step, n)) for n in numbers}
        if decision.value is not None:
            final[decision.candidate] = decision.value
        candidates = [
            {"n": n, "v": final[n], "c": self._shade(final[n]), "x": self._drawn(actions, origin)}
            for n, actions in list(zip(numbers, chunks, strict=True))[:MAX_PATHS]
        ]
        earlier = [
            {"k": k, "v": v, "c": self._shade(v), "x": self._drawn(actions, origin)}
            for k, v, actions in self._earlier(decision, made, known)
        ]
        return {
            "t": decision.time - start,
            "p": seen,
            "seed": str(decision.seed),
            "sent": decision.candidate,
            "asked": decision.candidates,
            "compared": decision.compared,
            "v": final.get(decision.candidate),
            "spread": decision.spread,
            "k": len(decision.deltas) // 8,
            "queue": decision.queue,
            "inference": decision.inference,
            "server": decision.server,
            "budget": decision.budget,
            "continues": decision.continued.committed if decision.continued is not None else None,
            "pruned": [[pruning.step, len(pruning.kept)] for pruning in decision.pruned],
            "candidates": candidates,
            "previews": earlier,
            "chunk": sent.tolist(),
        }

    def _earlier(
        self, decision: Decision, made: Any, known: dict[tuple[int, int], float]
    ) -> list[tuple[int, float | None, NDArray[np.float32]]]:
        """Step, V and chunk of the earlier previews of the chunk that was sent."""
        number = decision.candidate
        if len(made) < 2 and self._model is not None:
            from rql_deploy.runtime.engine.history import History
            from rql_deploy.runtime.recording.replay import replay

            history = History()
            replay(self._model, decision, history=history)
            # Of the one candidate that is computed again.
            (again,) = history.previews
            chunks = np.frombuffer(b"".join(again.actions), np.float32).reshape(-1, *decision.chunk_shape)
            return [(step, None, actions) for step, actions in zip(again.steps[:-1], chunks, strict=False)]
        return [
            (step, known.get((step, number)), chunks[numbers.index(number)])
            for step, numbers, chunks in made[:-1]
            if number in numbers
        ]

    def _drawn(self, actions: NDArray[np.float32], start: NDArray[np.float64]) -> Any:
        return self._paths.path(actions, start, np.eye(3)).tolist() if self._paths.drawable else None

    def _shade(self, value: float | None) -> int:
        """Number of the colour of a V; -1 where it is not known."""
        if value is None:
            return -1
        low, high = self._range
        return round(63 * min(1.0, max(0.0, (value - low) / max(high - low, 1e-9))))

    def _film(self, tick: Tick) -> str | None:
        """The first camera's picture as a data address, until the page has enough of them."""
        from PIL import Image

        for array in tick.fields:
            if array.data and len(array.shape) in (3, 4) and array.shape[-1] % 3 == 0:
                if self._film_bytes > MAX_FILM_BYTES:
                    return None
                newest = np.frombuffer(array.data, np.uint8).reshape(-1, *array.shape[-3:])[-1]
                pixels = np.ascontiguousarray(newest[..., -3:])
                image, data = Image.fromarray(pixels), io.BytesIO()
                image.thumbnail((4 * FILM_HEIGHT, FILM_HEIGHT))
                image.save(data, "webp", quality=70)
                self._film_bytes += data.tell()
                return "data:image/webp;base64," + b64encode(data.getvalue()).decode()
        return None


def _value_range(contract: Contract, messages: list[Message]) -> tuple[float, float]:
    """5 % to 95 % of the V in the recording, or of the training data where it has none."""
    from rql_deploy.runtime.recording.messages import Decision

    found = [
        np.frombuffer(score.values, "<f4")
        for message in messages
        if isinstance(message, Decision)
        for score in message.scores
    ]
    if not found:
        return value_range(contract.calibration.levels, contract.calibration.value)
    low, high = np.quantile(np.concatenate(found), (0.05, 0.95))
    return float(low), float(high)


def _model(bundle: Path) -> Model:
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.runtime.engine.model import Model

    return Model(Bundle.open(bundle))


def _hex(share: float) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour(share, 0.0, 1.0))


def _rounded(data: Any) -> Any:
    """Numbers with few digits: a page needs no more. Times are to the millisecond, however long it is."""
    if isinstance(data, float):
        return None if not np.isfinite(data) else float(f"{data:.{DIGITS}g}") if abs(data) < 1e6 else data
    if isinstance(data, dict):
        return {key: round(value, 3) if key == "t" else _rounded(value) for key, value in data.items()}
    return [_rounded(value) for value in data] if isinstance(data, list) else data
