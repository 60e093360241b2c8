"""Print pip's settings as the environment variables that make uv resolve alike, for a shell's `eval`.

uv reads neither pip.conf nor PIP_*: without this a mirror, a folder of wheels or a certificate that pip knows
of would not exist for it. What is set for uv itself already stays as it is.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
    "trusted-host": "UV_INSECURE_HOST",
}
SECTIONS = ("global", "install", ":env:")
"""In the order in which a later one overrides an earlier one."""
SEPARATED_BY_COMMAS = ("UV_FIND_LINKS",)


def pip_settings(listing: str) -> dict[str, str]:
    """What counts for `pip install`, from what `pip config list` prints: `section.name='value'` lines."""
    found: dict[str, str] = {}
    for section in SECTIONS:
        for line in listing.splitlines():
            key, _, value = line.partition("=")
            name = key.removeprefix(f"{section}.")
            if name != key:
                found[name.lstrip(".")] = " ".join(value.strip("'").replace("\\n", " ").split())
    return found


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """The variables that say the same to uv."""
    variables = {NAMES[name]: value for name, value in settings.items() if name in NAMES and value}
    for name in SEPARATED_BY_COMMAS:
        if name in variables:
            variables[name] = ",".join(variables[name].split())
    return {name: value for name, value in variables.items() if name not in os.environ}


if __name__ == "__main__":
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, value in uv_environment(pip_settings(listing)).items():
        print(f"export {name}={shlex.quote(value)}")
