"""The Kubernetes manifest: valid, ready when the server is, and stopped as the server stops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rql_deploy.runtime.server.signals import STOP_LIMIT
from rql_deploy.runtime.wire.keys import exposed
from tests.helpers.commands import unavailable
from tests.helpers.deployment import DEPLOY, documents

OLDEST = "1.31"
OBJECTS = documents(DEPLOY / "kubernetes" / "rql-deploy.yaml")


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [entry for entry in OBJECTS if entry["kind"] == kind]
    return found


@pytest.mark.parametrize("entry", OBJECTS, ids=lambda entry: entry["kind"])
def test_objects_fit_kubernetes_own_schema(entry: dict[str, Any]) -> None:
    try:
        import kubernetes_validate
    except ImportError:
        unavailable("kubernetes-validate is not installed (make setup)")
    for version in (OLDEST, kubernetes_validate.latest_version()):
        kubernetes_validate.validate(entry, version, strict=True)


def test_probes_ports_and_times_are_those_of_the_server() -> None:
    pod = of_kind("StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = dict(zip(container["args"], container["args"][1:], strict=False))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert arguments["--bind"].rpartition(":")[2] == str(ports["policy"])
    assert arguments["--metrics"].rpartition(":")[2] == str(ports["metrics"])
    for probe, path in (
        ("startupProbe", "/readyz"),
        ("readinessProbe", "/readyz"),
        ("livenessProbe", "/healthz"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}
    # A worker answers a ping within a second, one after the other.
    assert container["livenessProbe"]["timeoutSeconds"] >= 1 + int(arguments["--workers"])
    assert pod["terminationGracePeriodSeconds"] > STOP_LIMIT
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["cpu"] == arguments["--workers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert all(mount["readOnly"] for mount in container["volumeMounts"])


def test_the_server_takes_its_secret_as_it_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = of_kind("StatefulSet")["spec"]["template"]["spec"]
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    (secret,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    # A secret is root's, and fsGroup makes what is mounted readable for the group.
    mode = secret["defaultMode"] | 0o440

    def file(mode: int, owner: int) -> Any:
        return SimpleNamespace(stat=lambda: SimpleNamespace(st_mode=mode, st_uid=owner))

    monkeypatch.setattr("os.geteuid", lambda: pod["securityContext"]["runAsUser"])
    assert not exposed(file(mode, 0))
    assert exposed(file(mode | 0o004, 0)) and exposed(file(mode | 0o020, 0))
    assert exposed(file(mode, pod["securityContext"]["runAsUser"]))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert exposed(file(mode, 0))


def test_selectors_meet_the_pods() -> None:
    stateful, service, budget = of_kind("StatefulSet"), of_kind("Service"), of_kind("PodDisruptionBudget")
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    for selector in (
        stateful["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
