from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundle(exported: Path) -> Path:
    """Tests of the exporter look at what it writes now, not at the committed bundle."""
    return exported
