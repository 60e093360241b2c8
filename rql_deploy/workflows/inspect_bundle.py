"""Say what a bundle is, and check it again on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.assumptions import describe_assumed
from rql_deploy.errors import BundleError
from rql_deploy.structs import to_plain

if TYPE_CHECKING:
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.bundle.certificate import Certificate
    from rql_deploy.bundle.latency import Cost
    from rql_deploy.limits import Limits

BEYOND_PARITY = (
    "same_bytes",
    "rows_independent",
    "variants",
    "rankings",
    "flow_change",
    "machine",
    "cost",
    "scores",
)
"""What a certificate holds beside the parity checks; a bundle of format 1 has none of it."""


@dataclass(frozen=True)
class BundleReport:
    """A bundle, its certificate, and what was measured here."""

    source: Path
    """The folder or .zip that was opened."""
    bundle: Bundle
    certificate: Mapping[str, Any]
    """As stored in the bundle."""
    limits: Limits | None
    """The limits that were checked against the contract."""
    verification: Certificate | None
    """The certificate's checks again on this machine, where they were asked for."""
    latency: tuple[Cost, ...]
    """Per variant, where it was asked for."""

    @property
    def max_error(self) -> float:
        """Largest difference from torch, when it was exported."""
        return max(float(check["max_error"]) for check in self.certificate["checks"])

    def summary(self) -> dict[str, Any]:
        """JSON data."""
        contract, stored, again = self.bundle.contract, self.certificate, self.verification
        folder = self.bundle.path
        beyond = {key: stored[key] for key in BEYOND_PARITY if key in stored}
        return {
            "contract_id": contract.contract_id,
            "assumed": describe_assumed(contract.plant),
            "contract": json.loads(contract.to_json()),
            "files": {name: (folder / name).stat().st_size for name in self.bundle.manifest.files},
            "variants": self.bundle.variants,
            "certificate": {"tolerance": stored["tolerance"], "max_error": self.max_error, **beyond},
            "limits": None if self.limits is None else to_plain(self.limits),
            "latency_ms": {cost.variant: to_plain(cost) for cost in self.latency},
            "verified": None if again is None else again.passed,
            "verified_max_error": None if again is None else max(c.max_error for c in again.checks),
            "verified_variants": None if again is None else to_plain(again.variants),
        }

    def require_verified(self) -> None:
        """Raise BundleError where the bundle was verified and does not keep its certificate here."""
        if self.verification is not None and not self.verification.passed:
            failures = "; ".join(self.verification.failures()[:3])
            raise BundleError(
                f"bundle {self.source} does not keep its certificate here ({failures}): "
                "do not run it; export it again"
            )


def inspect_bundle(
    path: Path, *, verify: bool = False, latency: bool = False, limits: Path | None = None
) -> BundleReport:
    """Open a bundle, folder or .zip; `verify` and `latency` need onnxruntime.

    Args:
        verify: run every graph on the stored cases, and compare with torch's stored outputs.
        latency: time every graph on this machine, with one thread.
        limits: a limits.toml to check against the contract: it may only tighten it.

    Raises BundleError for a bundle that is missing or damaged, UserError for limits that do not fit. A
    verification that fails is in the report; `require_verified` raises it.
    """
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.bundle.certificate import check, load_cases
    from rql_deploy.bundle.latency import measure
    from rql_deploy.bundle.manifest import GRAPHS
    from rql_deploy.limits import Limits

    opened = Bundle.open(path)
    contract, stored = opened.contract, to_plain(opened.certificate())
    fitting = None if limits is None else Limits.load(limits, contract)
    verification: Certificate | None = None
    costs: list[Cost] = []
    if verify or latency:
        sessions = {
            variant: {graph: opened.session(graph, variant) for graph in GRAPHS}
            for variant in opened.variants
        }
        if verify:
            verification = check(opened.path, contract, load_cases(opened.path), opened.variants)
        if latency:
            costs = [measure(variant, graphs, contract) for variant, graphs in sessions.items()]
    return BundleReport(Path(path), opened, stored, fitting, verification, tuple(costs))
