"""The README.md of a bundle: a model card made from what the bundle itself says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rql_deploy.bundle.certificate import Certificate
from rql_deploy.contract import Contract


def model_card(contract: Contract, certificate: Certificate, statistics: Mapping[str, Any]) -> str:
    """Markdown with YAML front matter: data, training, interface, certificate, scores, how to serve.

    `statistics` are the data set's (`rql_deploy.train.logging.summary.dataset_statistics`).
    """
    plant, provenance = contract.plant, contract.provenance
    success = statistics.get("success")
    quality = "" if success is None else f", {success:.0%} of them successful"
    data = (
        f"{statistics['episodes']} episodes, {statistics['rows']} rows{quality}"
        if "episodes" in statistics
        else "not recorded"
    )
    worst: dict[str, float] = {}
    for c in certificate.checks:
        graph = c.graph.split("/")[0]
        worst[graph] = max(worst.get(graph, 0.0), c.max_error)
    facts = _table(
        ("", ""),
        ("contract", f"`{contract.contract_id}`"),
        ("data", f"`{provenance.dataset_id}`: {data}"),
        ("training", f"{provenance.updates:,} updates, seed {provenance.seed}"),
        (
            "decisions",
            f"{contract.h} actions at {plant.control_rate:g} Hz, made in {contract.F} refinement steps",
        ),
    )
    observation = _table(
        ("field", "shape", "unit"), *((f"`{f.name}`", list(f.shape), f.unit or "-") for f in plant.fields)
    )
    if plant.images:
        cameras = _table(
            ("camera", "pixels", "frames stacked", "colours", "camera's frame", "cropped to"),
            *(
                (
                    f"`{i.name}`",
                    f"{i.height} x {i.width}",
                    plant.frame_stack,
                    i.colour_order,
                    "{} x {}".format(*i.camera_size),
                    list(i.crop) or "all",
                )
                for i in plant.images
            ),
        )
        observation = f"{observation}\n\n{cameras}"
    action = _table(
        ("dimension", "bounds", "unit of 1.0", "controller", "mode", "hold"),
        *(
            (f"`{a.name}`", f"[{a.low:g}, {a.high:g}]", a.unit or "-", a.controller or "-", a.mode, a.hold)
            for a in plant.actions
        ),
    )
    errors = _table(("graph", "error"), *((graph, f"{error:.1e}") for graph, error in worst.items()))
    return f"""{_front_matter(contract, certificate)}
# {plant.task}: an RQL flow policy

{facts}

## Observation
{observation}

## Action
{action}

## Certificate
Largest difference from torch (float32 and float64): absolute for actions on data set observations, relative
to the size of the output elsewhere (features, V, extreme observations). The export fails above
{certificate.tolerance:g}.

{errors}

Check it again here: `rql-deploy inspect THIS_FOLDER --verify` (needs onnxruntime only).
{_variants(certificate)}{_ranking(certificate)}{_scores(plant.task, certificate)}
## Serve
    rql-deploy serve THIS_FOLDER --bind tcp://127.0.0.1:5555
"""


def _front_matter(contract: Contract, certificate: Certificate) -> str:
    """The YAML that model hubs index. Every text is a JSON string, which YAML reads as it stands."""
    name, task = json.dumps(contract.plant.task), contract.plant.task
    lines = [
        "---",
        "library_name: rql-deploy",
        "pipeline_tag: robotics",
        "tags: [robotics, offline-rl, flow-matching, onnx]",
    ]
    lines.append(f"datasets: [{json.dumps(contract.provenance.dataset_id)}]")
    score = certificate.scores.get("fp32")
    if score:
        lines += [
            "model-index:",
            f"- name: {json.dumps(f'{task} RQL')}",
            "  results:",
            "  - task: {type: reinforcement-learning, name: robotics}",
            f"    dataset: {{type: {name}, name: {name}}}",
            "    metrics:",
            f"    - {{type: success_rate, name: success rate, value: {score['success']:.4f}}}",
        ]
    return "\n".join([*lines, "---", ""])


def _variants(certificate: Certificate) -> str:
    rows = [
        (
            v.variant,
            f"{v.action_error['p50']:.1e}",
            f"{v.action_error['p99']:.1e}",
            f"{v.action_error['max']:.1e}",
            f"{v.value_change['p99']:.1e}",
        )
        for v in certificate.variants
    ]
    if not rows:
        return ""
    table = _table(("variant", "action error, median", "99 %", "max", "change in V, 99 %"), *rows)
    return f"""
## Variants
Other precisions, compared with float32 over {certificate.variants[0].chunks} chunks: action error in units of
half an action range, V in standard deviations of V. Rows of a batch do not influence each other.

{table}
"""


def _ranking(certificate: Certificate) -> str:
    if not certificate.rankings:
        return ""
    table = _table(
        ("variant", "rank correlation", "same best", "lost by choosing"),
        *(
            (r.variant, f"{r.correlation['mean']:.2f}", f"{r.best_agrees:.0%}", f"{r.lost:.2f}")
            for r in certificate.rankings
        ),
    )
    first = certificate.rankings[0]
    return f"""
## Value
How the exported V ranks {first.candidates} candidate chunks of each of {first.observations} data set
observations, compared with all trained members: Spearman's correlation, how often the same chunk is best, and
what is lost in standard deviations over the candidates.

{table}
"""


def _scores(task: str, certificate: Certificate) -> str:
    if not certificate.scores:
        return ""
    rows = (
        (
            variant,
            f"{s['success']:.0%}",
            f"{s['ci'][0]:.0%} to {s['ci'][1]:.0%}",
            s["episodes"],
            f"{s['steps']:.0f}",
        )
        for variant, s in certificate.scores.items()
    )
    return f"""
## Score
{task}, the same seeded episodes for every variant, one candidate per decision:

{_table(("variant", "success", "95 % interval", "episodes", "steps"), *rows)}
"""


def _table(*rows: tuple[object, ...]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
