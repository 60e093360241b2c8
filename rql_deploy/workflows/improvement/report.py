"""BUNDLE.generations/README.md: one line for each generation, rewritten whenever one is decided on."""

from __future__ import annotations

import contextlib
from typing import Any

from rql_deploy.errors import UserError

from .generations import Generations

HEAD = (
    "| generation | from | new episodes | succeeded | success | steps | against | V minus return | rank "
    "correlation | |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def write_report(generations: Generations) -> None:
    """Write the table; a disk that takes no more costs the table only."""
    lines = [f"# Generations of {generations.link.name}", "", *HEAD]
    lines += [_row(generations, number) for number in generations.numbers()]
    lines += [
        "",
        "Success and steps are those of the comparison with the generation that was served, on the same "
        "seeds; V minus",
        "return (positive: V is too high) and rank correlation are over all decisions of that comparison.",
        "",
        f"    rql-deploy rollback {generations.link}",
        "",
    ]
    partial = generations.folder / ".README.md.partial"
    with contextlib.suppress(OSError):
        partial.write_text("\n".join(lines))
        partial.replace(generations.folder / "README.md")


def describe_generation(generations: Generations, number: int) -> str:
    """V of one generation in half a sentence."""
    gate = generations.gate(number) or {}
    return (
        f"generation {number}: V minus return {_number(gate.get('bias'), '+.2f')}, rank correlation "
        f"{_number(gate.get('rank_correlation'), '.2f')}"
    )


def _row(generations: Generations, number: int) -> str:
    try:
        generation, gate = generations.read(number), generations.gate(number) or {}
        served = generations.served()
    except UserError as error:
        return f"| {number} | | | | | | | | | {error} |"
    new, before = (gate.get("figures", {}).get(key) or {} for key in ("new", "served"))
    state = "served" if number == served else "was served" if generations.was_served(number) else "kept"
    if gate and not gate["passed"]:
        state = f"refused: {gate['reason']}"
    cells = [
        number,
        "-" if number == 0 else generation.parent,
        generation.new,
        "-" if generation.succeeded is None else generation.succeeded,
        _number(new.get("success"), ".0%"),
        _number(new.get("steps"), ".0f"),
        _number(before.get("success"), ".0%"),
        _number(gate.get("bias"), "+.2f"),
        _number(gate.get("rank_correlation"), ".2f"),
        state,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"
