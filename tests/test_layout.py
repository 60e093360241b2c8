"""The layout: one concept per file, no import cycles, every package installed, no test imports another."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.commands import ROOT

ROOMS = ("train", "export", "runtime", "sim")
LONGEST, SHORTEST = 350, 40
INTERFACES = {
    "rql_deploy/__init__.py": "where the rooms are found",
    "rql_deploy/__main__.py": "what `python -m rql_deploy` runs",
    "rql_deploy/errors.py": "the exceptions that users see",
    "rql_deploy/flow.py": "the schedule that training, export and runtime share",
    "rql_deploy/cli/data/label.py": "a verb, found by its file's name",
    "rql_deploy/cli/rollback.py": "a verb, found by its file's name",
    "rql_deploy/cli/replay.py": "a verb, found by its file's name",
    "rql_deploy/workflows/replay.py": "a verb's workflow, found by its file's name",
    "sim/plants/task_env.py": "what a simulated task must offer",
}
"""Files below the shortest length, and why each stands alone. An `__init__.py` may have any length."""


def sources() -> list[Path]:
    return sorted(path for room in ("rql_deploy", *ROOMS) for path in (ROOT / room).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(["rql_deploy", *parts] if parts[0] in ROOMS else parts)


def imported(path: Path, modules: set[str]) -> Iterator[str]:
    """Modules of ours that a file imports anywhere in it."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if whole in modules or base in modules:
                    yield whole if whole in modules else base


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that import each other in a circle.

    They are what is left when files without imports, or without importers, are removed again and again.
    """
    graph = {name: set(others) - {name} for name, others in graph.items()}
    while True:
        used = set().union(*graph.values()) if graph else set()
        free = [name for name, others in graph.items() if not others or name not in used]
        if not free:
            return [sorted(graph)] if graph else []
        for name in free:
            del graph[name]
        for others in graph.values():
            others.difference_update(free)


def test_files_are_of_one_concept_s_length() -> None:
    found = {}
    for path in [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        name, lines = str(path.relative_to(ROOT)), len(path.read_text().splitlines())
        short = (
            lines < SHORTEST and path.name != "__init__.py" and not name.startswith(("tests/", "benchmarks/"))
        )
        if lines > LONGEST or (short and name not in INTERFACES):
            found[name] = lines
    assert found == {}, (
        f"files of more than {LONGEST} or fewer than {SHORTEST} lines: split them, or merge them into their "
        "concept's"
    )
    assert [name for name in INTERFACES if not (ROOT / name).is_file()] == []


def test_no_circle_of_files() -> None:
    modules = {module_of(path) for path in sources()}
    graph = {module_of(path): set(imported(path, modules)) for path in sources()}
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]


def test_every_package_is_installed() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(module_of(path) for path in sources() if path.name == "__init__.py")
    assert {path.parent for path in sources()} == {
        path.parent for path in sources() if path.name == "__init__.py"
    }


def test_no_test_file_imports_another() -> None:
    files = sorted((ROOT / "tests").rglob("*.py"))
    names = {module_of(path) for path in files}
    tests = {
        name for name in names if name.rpartition(".")[2].startswith("test_") or name.endswith("conftest")
    }
    leaning = {
        str(path.relative_to(ROOT)): found
        for path in files
        if (found := sorted(set(imported(path, names)) & tests))
    }
    assert leaning == {}, "move what they share to tests/helpers/"
