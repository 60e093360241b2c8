"""The README.md of a bundle: a model card made from what the bundle itself says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rql_deploy.certificate import TOLERANCE, Certificate
from rql_deploy.contract import Contract


def model_card(contract: Contract, result: Certificate, statistics: Mapping[str, Any]) -> str:
    """Markdown with YAML front matter: data, training, interface, certificate, how to serve."""
    plant, provenance = contract.plant, contract.provenance
    worst = {c.graph.split("/")[0]: 0.0 for c in result.checks}
    for c in result.checks:
        graph = c.graph.split("/")[0]
        worst[graph] = max(worst[graph], c.max_error)
    success = statistics.get("success")
    quality = "" if success is None else f", {success:.0%} of them successful"
    data = f"{statistics['episodes']} episodes, {statistics['rows']} rows{quality}" if "episodes" in statistics else "not recorded"
    rows = "\n".join(f"| `{f.name}` | {list(f.shape)} | {f.unit or '-'} |" for f in plant.fields)
    actions = "\n".join(
        f"| `{a.name}` | [{a.low:g}, {a.high:g}] | {a.unit or '-'} | {a.controller or '-'} | {a.mode} | {a.hold} |" for a in plant.actions
    )
    errors = "\n".join(f"| {graph} | {error:.1e} |" for graph, error in worst.items())
    return f"""---
library_name: rql-deploy
tags: [robotics, offline-rl, flow-matching, onnx]
---

# {plant.task}: an RQL flow policy

| | |
|---|---|
| contract | `{contract.contract_id}` |
| data | `{provenance.dataset_id}`: {data} |
| training | {provenance.updates:,} updates, seed {provenance.seed} |
| decisions | {contract.h} actions at {plant.control_rate:g} Hz, made in {contract.F} refinement steps |

## Observation
| field | shape | unit |
|---|---|---|
{rows}

## Action
| dimension | bounds | unit of 1.0 | controller | mode | hold |
|---|---|---|---|---|---|
{actions}

## Certificate
Largest difference from torch (float32 and float64): absolute for actions on data set observations, relative to the size of the output
elsewhere (features, V, extreme observations). The export fails above {TOLERANCE:g}.

| graph | error |
|---|---|
{errors}

Check it again here: `rql-deploy inspect THIS_FOLDER --verify` (needs onnxruntime only).

## Serve
    rql-deploy serve THIS_FOLDER --bind tcp://127.0.0.1:5555
"""
