"""Warnings about a data set in plain words, each with what to do about it."""

from __future__ import annotations

from typing import Any

from .cameras.report import camera_warnings
from .store import TransitionStore

GUIDE = "docs/data.md"
FEW_REWARDS = 0.01
"""Share of rows with reward below which learning is slow."""


def data_warnings(report: dict[str, Any], store: TransitionStore, h: int) -> list[str]:
    """One sentence per problem; `report` holds the figures of `store`, h is the chunk length."""
    lengths = store.ends - store.starts
    found = list(store.assumptions())
    for field in report["fields"]:
        if field["rows_not_finite"]:
            found.append(
                f"'{field['name']}' has NaN or infinity in {field['rows_not_finite']:,} rows: training "
                "refuses them; drop those episodes with `rql-deploy data fix DATA --output NEW "
                "--drop-not-finite`"
            )
        if field["constant_columns"]:
            found.append(
                f"'{field['name']}' has {field['constant_columns']} numbers that never change: a policy "
                "learns nothing from them"
            )
    found += camera_warnings(report["cameras"], report["control_rate"])
    for action in report["actions"]:
        if action["rows_outside"]:
            found.append(
                f"action '{action['name']}' leaves [{action['low']:g}, {action['high']:g}] in "
                f"{action['rows_outside']:,} rows, first at {action['first_outside']}: training refuses it; "
                "say the bounds or clip with `rql-deploy data fix DATA --output NEW --action-bounds BOUNDS "
                "--clip-actions`, or train with --set clip_actions=true"
            )
        if action["rows_not_finite"]:
            found.append(
                f"action '{action['name']}' has NaN or infinity in {action['rows_not_finite']:,} rows: "
                f"drop those episodes with `rql-deploy data fix DATA --output NEW --drop-not-finite`"
            )
        if action["saturated"] > 0.5 and action["std"]:
            found.append(
                f"action '{action['name']}' is at its bounds in {action['saturated']:.0%} of rows: fine for "
                "a gripper, else check scaling"
            )
        if action["std"] == 0:
            found.append(f"action '{action['name']}' never changes")
    rewards = report["rewards"]
    if rewards["rows_not_finite"]:
        found.append(
            f"{rewards['rows_not_finite']:,} rewards are NaN or infinite: training refuses them; drop those "
            f"episodes with `rql-deploy data fix DATA --output NEW --drop-not-finite`"
        )
    if not rewards["inform"]:
        found.append(
            f"rewards are uninformative (all {rewards['min']:g}): training refuses them; relabel them with "
            "`rql-deploy data relabel`"
        )
    elif 0 < rewards["density"] < FEW_REWARDS:
        found.append(
            f"{rewards['density']:.2%} of rows have reward: expect slow learning; see 'Rewards' in {GUIDE}"
        )
    elif _goal_is_rare(report):
        done = report["ends"]
        found.append(
            f"the task is done (mask 0) in {done['rows_with_mask_0'] / len(store):.2%} of rows, of "
            f"{done['episodes_with_mask_0']:,} of "
            f'{store.episodes:,} episodes: expect slow learning, above all with reward = "sparse"; see '
            f"'Rewards' in {GUIDE}"
        )
    if report["successes"] == 0:
        found.append("no episode succeeded: RQL can only recombine what the data shows")
    ends = report["ends"]
    if ends["mask_0_then_1"]:
        found.append(
            f"in {ends['mask_0_then_1']:,} rows the task has ended (mask 0) but goes on in the next row: "
            "right for play data that passes its goal, wrong for episodes that should end there"
        )
    if ends["masks_neither_0_nor_1"]:
        found.append(
            f"{ends['masks_neither_0_nor_1']:,} masks are neither 0 nor 1: write 0 where the task has ended, "
            "else 1"
        )
    if store.successes is not None and report["successes"] and not ends["rows_with_mask_0"]:
        found.append(
            "episodes succeeded but no mask is 0, so values continue beyond success; see `rql-deploy data "
            "relabel --success`"
        )
    median = report["lengths"]["median"]
    if report["discount_horizon"] < median / 2:
        found.append(
            f"gamma {report['gamma']:g} looks about {report['discount_horizon']:.0f} rows ahead, and half of "
            f"the episodes have at least {median:.0f}: a reward at the end hardly reaches the start; "
            "consider a larger gamma"
        )
    if short := int((lengths <= h).sum()):
        found.append(
            f"{short} episodes have at most h = {h} rows, fewer than a window: see 'Short episodes' in "
            f"{GUIDE}, or drop them with `rql-deploy data fix DATA --output NEW --drop-short {h + 1}`"
        )
    duplicates = report["duplicates"]
    if duplicates["episodes"]:
        found.append(
            f"{duplicates['episodes']} episodes are copies of others, which a validation split will hold, "
            f"too: keep one of each with `rql-deploy data fix DATA --output NEW --drop-duplicates`"
        )
    if duplicates["rows_like_the_one_before"] > 0.05 * len(store):
        found.append(
            f"{duplicates['rows_like_the_one_before'] / len(store):.0%} of observations repeat the one "
            "before: the recording may be faster than the sensors, or the robot stood still"
        )
    return found


def _goal_is_rare(report: dict[str, Any]) -> bool:
    """Whether few rows of few episodes are at the goal.

    Few rows alone mean nothing: episodes that end at success have few such rows.
    """
    ends = report["ends"]
    return bool(
        0 < ends["rows_with_mask_0"] < FEW_REWARDS * report["rows"]
        and ends["episodes_with_mask_0"] < 0.25 * report["episodes"]
    )
