"""What data sets do not say of their plant: which descriptions fit together, and what a robot asks to know.

A reader that has to guess lists the item in `assumed`. Data sets of one robot join although their guessed
bounds differ. A policy whose motion was guessed moves simulators, and a robot only where its user accepts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from rql_deploy.contract import ActionDimension, Contract, ContractError, ImageField, PlantDescription

OPTIONS: Mapping[str, str] = {
    "bounds": "--action-bounds",
    "mode": "--action-mode",
    "hold": "--action-mode",
    "control_rate": "--rate",
}
"""What moves a robot wrongly when it was guessed wrongly, and the option of `data convert`, `train` and
`export` that says it."""


def first_conflict(plants: Sequence[PlantDescription]) -> tuple[int, int, list[str]] | None:
    """The first two of `plants` that cannot be joined, and what differs; None where all can."""
    different: list[int] = []
    for later, plant in enumerate(plants):
        for earlier in different:
            if differences := plants[earlier].differences(plant):
                return earlier, later, differences
        if all(plants[earlier] != plant for earlier in different):
            different.append(later)
    return None


def joined(plants: Sequence[PlantDescription]) -> PlantDescription:
    """One description for data sets whose `differences` are none.

    Bounds are those that any of them says, else the assumed ones, widened to hold all. A unit is the one that
    any of them says. Anything else that one of them assumed stays assumed.
    """
    first = plants[0]
    if all(plant == first for plant in plants[1:]):
        return first
    columns = zip(*(plant.actions for plant in plants), strict=True)
    return msgspec.structs.replace(
        first,
        images=tuple(_joined_image(image, plants) for image in first.images),
        actions=tuple(_joined_dimension(column) for column in columns),
        assumed=("control_rate",) if any(plant.rate_assumed for plant in plants) else (),
    )


def _joined_image(image: ImageField, plants: Sequence[PlantDescription]) -> ImageField:
    alike = [other for plant in plants for other in plant.images if other.name == image.name]
    return next((other for other in alike if not other.assumed), image)


def _joined_dimension(column: Sequence[ActionDimension]) -> ActionDimension:
    bounds = [d for d in column if "bounds" not in d.assumed]
    unit = next((d for d in column if "unit" not in d.assumed), column[0])
    settled = {item for item, said in (("bounds", bounds), ("unit", "unit" not in unit.assumed)) if said}
    assumed = dict.fromkeys(item for d in column for item in d.assumed if item not in settled)
    return msgspec.structs.replace(
        column[0],
        low=bounds[0].low if bounds else min(d.low for d in column),
        high=bounds[0].high if bounds else max(d.high for d in column),
        unit=unit.unit,
        controller=unit.controller,
        frame=unit.frame,
        assumed=tuple(assumed),
    )


def replacement_conflicts(old: PlantDescription, new: PlantDescription) -> list[str]:
    """Why a policy for `new` cannot take over the robots of one for `old`, a sentence each.

    Bounds that were guessed for both may differ; what the old one's data said, the new one's must not assume.
    """
    before = _guessed_motion(old)
    guessed = [
        f"it assumes {describe_assumed(new, (item,))[0]}"
        for item, names in _guessed_motion(new).items()
        if item not in before or not set(names) <= set(before[item])
    ]
    found = [*old.differences(new), *old.view_differences(new), *guessed]
    if old.images and new.frame_stack != old.frame_stack:
        found.append(f"it sees {new.frame_stack} frames of a camera at once instead of {old.frame_stack}")
    return found


def assumed_items(plant: PlantDescription) -> dict[str, list[str]]:
    """Names of action dimensions or cameras by the item that was assumed of them; `control_rate` has none."""
    found: dict[str, list[str]] = {"control_rate": []} if plant.rate_assumed else {}
    if colours := [image.name for image in plant.images if image.assumed]:
        found["colour_order"] = colours
    for action in plant.actions:
        for item in action.assumed:
            found.setdefault(item, []).append(action.name)
    return found


def describe_assumed(plant: PlantDescription, items: Iterable[str] | None = None) -> list[str]:
    """The assumed items in words: `control rate (20 Hz)`, `mode of x (delta)`, `unit of all actions`."""
    found = []
    for item, names in assumed_items(plant).items():
        if items is not None and item not in items:
            continue
        if item == "control_rate":
            found.append(f"control rate ({plant.control_rate:g} Hz)")
            continue
        if item == "colour_order":
            found.append(f"order of the colours of {_names(names, 0)} (RGB)")
            continue
        values = (
            sorted({str(getattr(a, item)) for a in plant.actions if a.name in names}, reverse=True)
            if (item in ("mode", "hold"))
            else []
        )
        taken = f" ({' and '.join(values)})" if values else ""
        found.append(f"{item} of {_names(names, len(plant.actions))}{taken}")
    if items is None:
        found += [
            f"colour order of camera {image.name} ({image.colour_order})"
            for image in plant.images
            if "colour_order" in image.assumed
        ]
    return found


def _guessed_motion(plant: PlantDescription) -> dict[str, list[str]]:
    """The assumed items that move a robot wrongly when they were guessed wrongly.

    A rate that only `environment` marks is not among them: contracts with it were made, and drove robots,
    before there was `assumed`.
    """
    found = {item: names for item, names in assumed_items(plant).items() if item in OPTIONS}
    if "control_rate" not in plant.assumed:
        found.pop("control_rate", None)
    return found


def motion_remark(plant: PlantDescription) -> str | None:
    """One sentence on what was assumed of the motion, with the options that say it; None where nothing."""
    guessed = _guessed_motion(plant)
    if not guessed:
        return None
    missing, options = describe_assumed(plant, guessed), dict.fromkeys(OPTIONS[item] for item in guessed)
    return (
        f"the data of {plant.task} did not say {', '.join(missing)}: say it with {' and '.join(options)} of "
        "`rql-deploy export`, or of `train` and `data convert` before"
    )


def require_stated_motion(contract: Contract, plant: Any, *, accept_assumed: bool = False) -> None:
    """Raise ContractError where the policy's motion was assumed and `plant` is not a simulator.

    A simulator has an attribute `simulated` that is true.
    """
    if accept_assumed or getattr(plant, "simulated", False):
        return
    if remark := motion_remark(contract.plant):
        raise ContractError(
            f"this policy may move a robot wrongly, because {remark}, or accept what was assumed with "
            "--accept-assumed (accept_assumed=True)",
            kind="motion assumed",
        )


def _names(names: Sequence[str], count: int) -> str:
    if len(names) == count > 1:
        return "all actions"
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
