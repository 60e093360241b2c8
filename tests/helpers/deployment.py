"""Reads the files under deploy/ as those who use them do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.commands import ROOT

DEPLOY = ROOT / "deploy"


def documents(path: Path) -> list[dict[str, Any]]:
    """Every document of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


def alert_expressions() -> dict[str, str]:
    """PromQL by alert."""
    (rules,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    return {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}


def dashboard_expressions() -> dict[str, str]:
    """PromQL by panel and letter, with the variables as Grafana would put them in."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$instance", ".*")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }


def serve_arguments(words: list[str]) -> list[str]:
    """What of a container's command follows `rql-deploy serve`."""
    assert words[0] == "serve", words
    return words[1:]


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Keyword and value of each instruction, continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            keyword, _, value = line.partition(" ")
            yield keyword, value
