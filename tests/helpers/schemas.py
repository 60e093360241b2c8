"""docs/schemas.py, the script that writes the published JSON Schemas, as a module."""

import importlib.util
from types import ModuleType

from tests.helpers.commands import ROOT


def load_schemas() -> ModuleType:
    """The script's functions: `PUBLISHED`, `json_schema(cls)`, `text_of(name)`."""
    spec = importlib.util.spec_from_file_location("schemas", ROOT / "docs" / "schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


json_schema = load_schemas().json_schema
