"""docs/python-api.md: its snippets run, and only the command line prints and exits."""

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import ROOT

PAGE = ROOT / "docs" / "python-api.md"
SNIPPET = re.compile(r"(<!-- simulator -->\n)?```python\n(.*?)```", re.DOTALL)
PROGRAMS = {
    "runtime/server/worker.py": "a worker process tells its supervisor by its exit status that it "
    "cannot start",
    "sim/plants/arm_process.py": "a process of its own, which tells its parent its addresses",
}
"""Files below the command line that are programs, and so print or exit."""


def run_snippets(*, simulator: bool) -> dict[str, Any]:
    """Run the page's snippets in one namespace; those that need a simulator only if asked."""
    names: dict[str, Any] = {}
    for number, (needs_simulator, code) in enumerate(SNIPPET.findall(PAGE.read_text()), 1):
        if simulator or not needs_simulator:
            exec(compile(code, f"{PAGE.name}, snippet {number}", "exec"), names)
    return names


@pytest.mark.slow
def test_snippets_without_a_simulator_run(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dataset, "data")
    names = run_snippets(simulator=False)
    assert names["report"].episodes == names["written"].episodes > 0
    assert names["trained"].finished and names["bar"].done == 30 and "total" in names["bar"].figures
    assert names["checked"].verification.passed
    assert names["decision"].value is not None


@pytest.mark.slow
def test_all_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_snippets(simulator=True)
    assert names["collected"].episodes == 4 and names["collected"].resumed_from == 0
    assert names["compared"].passed and names["result"].complete
    assert len(Path("episodes.jsonl").read_text().splitlines()) == 2
    assert "<html" in Path("report.html").read_text()


def console_uses(source: str) -> list[str]:
    """Where a file prints, ends the process or imports click."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="print" | "exit" | "quit" | "input" as name)):
                found.append(f"{name}() in line {node.lineno}")
            case ast.Attribute(value=ast.Name(id="sys"), attr="exit"):
                found.append(f"sys.exit in line {node.lineno}")
            case ast.Name(id="SystemExit"):
                found.append(f"SystemExit in line {node.lineno}")
            case ast.Import(names=names) if any(n.name.partition(".")[0] == "click" for n in names):
                found.append(f"click in line {node.lineno}")
            case ast.ImportFrom(module=str(module), level=0) if module.partition(".")[0] == "click":
                found.append(f"click in line {node.lineno}")
    return found


def test_nothing_below_the_command_line_prints_or_exits() -> None:
    sources = [path for room in ("train", "export", "runtime", "sim") for path in (ROOT / room).rglob("*.py")]
    sources += [
        path
        for path in (ROOT / "rql_deploy").rglob("*.py")
        if path.relative_to(ROOT / "rql_deploy").parts[0] not in ("cli", "__main__.py")
    ]
    assert len(sources) > 100
    found = {str(path.relative_to(ROOT)): console_uses(path.read_text()) for path in sources}
    assert {name: uses for name, uses in found.items() if uses and name not in PROGRAMS} == {}


@pytest.mark.parametrize(
    "line",
    ["print(1)", "import sys; sys.exit(1)", "raise SystemExit(1)", "import click", "from click import echo"],
)
def test_console_uses_are_found(line: str) -> None:
    assert len(console_uses(line)) == 1
    assert console_uses("from .click import x; self.print(1)") == []
