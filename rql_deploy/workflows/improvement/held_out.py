"""Compare two bundles where there is no simulator: on recorded episodes that neither has learned from.

Two errors are measured at every h-th tick. Behaviour: how far the policy's chunk is from what was carried out
in episodes that succeeded, in half ranges of the actions. Value: how far V of the chunk that was carried out
is from the discounted return that followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rql_deploy.returns import as_trained, discount, discounted, rank_correlation
from rql_deploy.statistics import paired_difference

from .gate import Verdict

if TYPE_CHECKING:
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.contract import Contract
    from rql_deploy.train.data.store import TransitionStore


class Errors(NamedTuple):
    """Of one bundle, per episode."""

    behaviour: list[float]
    """Mean distance of chunks in half ranges; of successful episodes only, where there are some."""
    value: list[float]
    """Mean |V - return|."""
    values: list[tuple[float, ...]]
    """V at each decision."""
    returns: list[tuple[float, ...]]


def compare_held_out(bundles: Mapping[int, Path], folder: Path) -> Verdict:
    """Compare the new bundle with the served one, the first of `bundles`, on the store in `folder`.

    The new one is refused when, in one of the two errors, the whole 95 % interval of the difference is above
    zero.
    """
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.train.data.folder import read_store

    served, new = bundles
    store = read_store(folder)
    errors = {number: measure(Bundle.open(path), store) for number, path in bundles.items()}
    count = len(errors[new].value)
    if not count:
        reason = f"none of the {store.episodes} held-out episodes is as long as a chunk"
        return Verdict(False, reason, "held-out", served, None, None, {})
    figures: dict[str, Any] = {"episodes": count}
    worse, text = [], []
    for name, unit in (("behaviour", "half ranges"), ("value", "of V")):
        a, b = (getattr(errors[number], name) for number in (new, served))
        if not a:  # No successful episode is as long as a chunk.
            continue
        mean, low, high = paired_difference(a, b)
        figures[name] = {
            "new": float(np.mean(a)),
            "served": float(np.mean(b)),
            "difference": [mean, low, high],
        }
        worse += [name] if low > 0 else []
        text.append(
            f"{name} error {np.mean(a):.3g} instead of {np.mean(b):.3g} {unit} (difference {mean:+.2g}, 95 % "
            f"interval {low:+.2g} to {high:+.2g})"
        )
    values, returns = (np.concatenate(column) for column in (errors[new].values, errors[new].returns))
    bias, rank = float((values - returns).mean()), rank_correlation(values, returns)
    sentence = f"on {count} held-out episodes: {'; '.join(text)}"
    if worse:
        sentence += f"; worse in {' and '.join(worse)} than generation {served}"
    return Verdict(not worse, sentence, "held-out", served, bias, rank, figures)


def measure(bundle: Bundle, store: TransitionStore) -> Errors:
    """The errors of one bundle on the episodes of a store."""
    from rql_deploy.runtime.engine.model import Model
    from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy

    contract = bundle.contract
    policy, model = OnnxPolicy(bundle), Model(bundle)
    gamma = discount(contract)
    half_range = (contract.plant.action_high - contract.plant.action_low) / 2
    good = store.successes if store.successes is not None and store.successes.any() else None
    found = Errors([], [], [], [])
    for index, (first, end) in enumerate(zip(store.starts, store.ends, strict=True)):
        rewards = as_trained(store.rewards[first:end].tolist(), contract)
        # An episode that its task did not end goes on with its last reward.
        returns = discounted(rewards, gamma, endless=store.masks[end - 1] != 0)
        distances, values, achieved = [], [], []
        for seed, tick in enumerate(range(first, end - contract.h + 1, contract.h)):
            one = _seen(contract, store, first, tick)
            chunk = store.actions[tick : tick + contract.h]
            distances.append(float(np.abs((policy.act(one, seed=seed).actions - chunk) / half_range).mean()))
            v, _ = model.value_of_chunks(model.encode(model.rows(one)), chunk[None])
            values.append(float(v[0]))
            achieved.append(returns[tick - first])
        if values:
            if good is None or good[index]:
                found.behaviour.append(float(np.mean(distances)))
            found.value.append(float(np.abs(np.array(values) - achieved).mean()))
            found.values.append(tuple(values))
            found.returns.append(tuple(achieved))
    return found


def _seen(contract: Contract, store: TransitionStore, first: int, tick: int) -> dict[str, NDArray[Any]]:
    """The observation of a tick, with the frames of the last ticks of the episode that begins at `first`."""
    from rql_deploy.train.data.frames import stacked_frames

    fields = contract.split(store.observations[tick : tick + 1])
    rows = np.maximum(np.arange(tick - contract.plant.frame_stack + 1, tick + 1), first)
    frames = {image.name: store.images[image.name].take(rows) for image in contract.plant.images}
    return {name: np.asarray(values[0]) for name, values in fields.items()} | {
        name: stacked_frames(pictures) for name, pictures in frames.items()
    }
