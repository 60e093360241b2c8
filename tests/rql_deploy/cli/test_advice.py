"""What messages advise exists: commands, options, and `Next:` lines that a shell takes."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from rql_deploy.cli import VERBS, main
from rql_deploy.cli.options import show_next
from tests.helpers.commands import ROOT, cli
from tests.helpers.data import stored

FOLDERS = ("rql_deploy", "train", "export", "runtime", "sim")
OTHER_PROGRAMS = {
    "--nproc-per-node",
    "--repo-type",
    "--include",
    "--local-dir",
    "--extra-index-url",
    "--index-url",
    "--force-reinstall",
    "--only-binary",
    "--head",
    "--help",
}
"""Options of torchrun, hf, pip and ray, and one that every command has."""


def texts() -> Iterator[tuple[str, str]]:
    """Every string of the code that is no docstring, with X for what is filled in, and where it is."""
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        inner = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
        }
        inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                parts = (str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values)
                yield "".join(parts), where
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                yield node.value, where


def commands(
    group: click.Group, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield (*prefix, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


KNOWN = dict(commands(main))  # type: ignore[arg-type]
OPTIONS = {
    option for command in KNOWN.values() for p in command.params for option in (*p.opts, *p.secondary_opts)
}
ADVICE = sorted(
    {
        (found.strip(), where)
        for text, where in texts()
        for found in re.findall(r"`rql-deploy ([^`]+)`", text)
        if not found.startswith("X")
    }
)


def test_there_is_advice_to_look_at() -> None:
    assert len(ADVICE) > 15 and any("data fix" in words for words, _ in ADVICE)


@pytest.mark.parametrize(("advice", "where"), ADVICE, ids=[where for _, where in ADVICE])
def test_every_advised_command_is_one_that_the_command_line_parses(advice: str, where: str) -> None:
    words = shlex.split(advice)
    assert words[0] in VERBS, where
    name = (words[0],)
    if isinstance(KNOWN[name], click.Group) and words[1:] and words[1] != "--help":
        name = (words[0], words[1])
    command, rest = KNOWN[name], words[len(name) :]
    context = click.Context(command, info_name=" ".join(name))
    # Values are placeholders, so what is checked is which options there are, and which of them take a value.
    if rest and rest[-1].startswith("--") and _takes_value(command, rest[-1]):
        rest.append("VALUE")
    command.make_parser(context).parse_args(rest)


def _takes_value(command: click.Command, option: str) -> bool:
    return any(option in p.opts and not getattr(p, "is_flag", False) for p in command.params)


def test_every_option_that_a_message_names_is_there() -> None:
    named = {
        (option, where)
        for text, where in texts()
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)
        # A lone option is passed on, not advised, and style sheets have names that look alike.
        if " " in text and "var(--" not in text
    }
    unknown = sorted((option, where) for option, where in named if option not in OPTIONS | OTHER_PROGRAMS)
    assert unknown == []


def test_next_is_made_of_words_that_a_shell_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_next(("rql-deploy", "data", "inspect", "my data/it's"))
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line) == ["rql-deploy", "data", "inspect", "my data/it's"]
    # Nobody hands it a sentence: a string would be taken apart into letters.
    for path in sorted((ROOT / "rql_deploy" / "cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "show_next":
                assert not any(isinstance(a, ast.JoinedStr | ast.Constant) for a in node.args), path


@pytest.mark.parametrize(
    "words",
    [
        ("data", "inspect", "{}/my data"),
        ("data", "convert", "{}/my data", "--output", "{}/the copy"),
        ("data", "fix", "{}/my data", "--drop", "1", "--output", "{}/the fix"),
        ("keys", "new", "robot", "--keys", "{}/my keys"),
    ],
)
def test_paths_with_spaces_are_quoted_in_what_commands_say_next(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    stored(tmp_path / "my data")
    done = cli(*(word.format(tmp_path) for word in words))
    assert done.exit_code == 0, done.output
    lines = done.output.partition("Next:\n")[2].splitlines()
    spaced = [word for line in lines for word in shlex.split(line) if word.startswith(str(tmp_path))]
    assert spaced and all(" " in word for word in spaced)


def test_data_with_cameras_is_advised_the_preset_that_learns_to_see() -> None:
    from rql_deploy.cli.options import preset_words

    assert preset_words("robosuite:Lift") == ["--preset", "robosuite-lift"]
    assert preset_words("robosuite:Lift", pictures=True) == ["--preset", "robosuite-lift-camera"]
    assert preset_words("robosuite:Stack", pictures=True) == ["--preset", "robosuite-stack"]
    assert preset_words("somebody:else", pictures=True) == []
