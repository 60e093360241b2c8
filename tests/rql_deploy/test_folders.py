"""Names like a mistyped path, wherever a path is asked for."""

from pathlib import Path

import pytest

from rql_deploy.folders import near_paths
from tests.helpers.commands import assert_refused, cli
from tests.helpers.data import stored


def test_a_path_spelt_like_a_neighbour_is_found_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "runs" / "first" / "bundle").mkdir(parents=True)
    (tmp_path / "runs" / "fist.d" / "log").mkdir(parents=True)
    right = tmp_path / "runs" / "first"
    assert near_paths(tmp_path / "runs" / "firsst").startswith(f", did you mean {right}")
    # A neighbour that has not the rest of the path is none.
    assert near_paths(tmp_path / "runs" / "fist" / "bundle") == f", did you mean {right / 'bundle'}?"
    assert near_paths(tmp_path / "rnus" / "first") == f", did you mean {right}?"
    assert near_paths(tmp_path / "nothing-like-it") == near_paths(right) == near_paths("") == ""


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("lift-data", ("data", "inspect", "{}/lift-dat")),
        ("lift-data", ("train", "--output", "{}/run", "--dataset", "{}/lift-dta")),
        ("lift.npz", ("data", "inspect", "{}/lit.npz")),
        ("lift.hdf5", ("data", "inspect", "{}/lfit.hdf5#train")),
        ("bundle", ("inspect", "{}/bundel")),
        ("run", ("export", "{}/rum", "--output", "{}/bundle")),
    ],
)
def test_every_command_names_what_was_meant(there: str, words: tuple[str, ...], tmp_path: Path) -> None:
    if "." in there:
        (tmp_path / there).touch()
    else:
        stored(tmp_path / there)
    assert_refused(cli(*(word.format(tmp_path) for word in words)), f"did you mean {tmp_path / there}")
