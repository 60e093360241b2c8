"""rql-deploy: train RQL flow policies offline, export them to ONNX, serve them to a robot at control rate."""

from pathlib import Path

__version__ = "0.1.0"

# In a source checkout train/, export/, runtime/ and sim/ lie beside this folder instead of inside it. Python
# started from the checkout's root finds this folder first, whatever is installed, so it must find those too.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "train" / "__init__.py").is_file():
    __path__.append(str(_checkout))
