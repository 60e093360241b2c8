"""A network that is changed without what is exported of it is not shipped."""

from pathlib import Path

import pytest
from torch import Tensor

from rql_deploy.train.networks import ValueEnsemble, VectorField
from tests.helpers.commands import assert_refused, cli


def twice(network: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this kind of network give twice what its layers say."""
    forward = network.forward

    def changed(self: object, *given: Tensor, **options: bool) -> Tensor:
        result: Tensor = forward(self, *given, **options)
        return 2.0 * result

    monkeypatch.setattr(network, "forward", changed)


@pytest.mark.parametrize(("network", "named"), [(VectorField, "chunks by"), (ValueEnsemble, "(V by")])
def test_a_changed_network_is_not_exported_as_the_old_one(
    network: type, named: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice(network, monkeypatch)
    result = cli("export", run, "--output", tmp_path / "bundle")
    assert_refused(result, named, "train/export_modules.py")
    assert not (tmp_path / "bundle").exists()
