"""Alerts and dashboard: PromQL that parses, of metrics and labels that a live server has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rql_deploy.errors import ContractError
from rql_deploy.runtime.client import RemotePolicy
from tests.helpers.commands import unavailable
from tests.helpers.deployment import DEPLOY, alert_expressions, dashboard_expressions, documents
from tests.helpers.servers import announced, get, observation

OF_PROMETHEUS = {"up"}
"""Metrics that Prometheus makes of every scrape."""
ADDED = {"instance", "job"}
"""Labels that it adds."""
EXPRESSIONS = alert_expressions() | dashboard_expressions()


@pytest.fixture(scope="module")
def exported(bundle: Path) -> dict[str, set[tuple[str, str]]]:
    """What a server that has decided and refused exports: by metric, labels with their values."""
    with announced(bundle, "--metrics", "0") as (ready, _), RemotePolicy.connect(ready["endpoint"]) as policy:
        policy.act(observation(policy.contract), deadline=20.0)
        with pytest.raises(ContractError):
            policy.act({"observation": [float("nan")] * 4}, deadline=20.0)
        page = get(f"{ready['metrics']}/metrics")[1]
    found: dict[str, set[tuple[str, str]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels.items())
    return found


try:
    import promql_parser as promql
except ImportError:
    promql = None


def selectors(expression: str) -> Iterator[Any]:
    """Every vector selector of an expression, which must parse."""
    if promql is None:
        unavailable("promql-parser is not installed (make setup)")
    yield from _walk(promql.parse(expression), promql.VectorSelector)


def _walk(node: Any, wanted: type) -> Iterator[Any]:
    if isinstance(node, wanted):
        yield node
    for name in ("expr", "lhs", "rhs", "args", "vector_selector", "vs"):
        inner = getattr(node, name, None)
        for part in inner if isinstance(inner, list) else [inner]:
            if part is not None and not isinstance(part, str):
                yield from _walk(part, wanted)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_is_of_what_a_server_exports(
    name: str, exported: dict[str, set[tuple[str, str]]]
) -> None:
    found = list(selectors(EXPRESSIONS[name]))
    assert found, "no metric in it"
    for selector in found:
        if selector.name in OF_PROMETHEUS:
            continue
        assert selector.name in exported, f"the server exports no {selector.name}"
        labels = {label for label, _ in exported[selector.name]} | ADDED
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, f"{selector.name} has no label {matcher.name}"
            if matcher.op == promql.MatchOp.Equal and matcher.name not in ADDED:
                assert (matcher.name, matcher.value) in exported[selector.name], str(matcher)
    # Nothing is grouped by a label that is not there either.
    grouped = re.findall(r"by \(([^)]*)\)", EXPRESSIONS[name])
    known = {label for entries in exported.values() for label, _ in entries} | ADDED
    assert {label.strip() for group in grouped for label in group.split(",")} <= known


def test_every_metric_is_looked_at_somewhere(exported: dict[str, set[tuple[str, str]]]) -> None:
    text = " ".join(EXPRESSIONS.values())
    families = {re.sub(r"_(bucket|count|sum|total|created)$", "", name) for name in exported}
    assert {name for name in families if name not in text} == set()


def test_alerts_say_what_to_do_and_who_is_called() -> None:
    (rules,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
            assert rule["annotations"]["summary"] and rule["annotations"]["action"].endswith("."), rule[
                "alert"
            ]


def test_the_dashboard_is_laid_out_without_overlaps() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24 and not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    (source,) = documents(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")
    uids = {panel["datasource"]["uid"] for panel in dashboard["panels"]}
    assert uids == {source["datasources"][0]["uid"]}
