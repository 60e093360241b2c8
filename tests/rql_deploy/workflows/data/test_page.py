"""The page of a data set: all its parts, warnings first, everything from files escaped, small, offline."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.train.data.folder import write_store
from tests.helpers.commands import cli, printed
from tests.helpers.data import make_store, stored
from tests.helpers.pages import Page, assert_shown_offline

HOSTILE = "<img src=http://x onerror=alert(1)>\"'&"
HEADINGS = ["Episodes", "Actions and their bounds", "Observations", "The rest"]


def report(data: Path, *options: object) -> str:
    file = data.with_suffix(".html")
    done = cli("data", "inspect", data, "--report", file, *options)
    assert done.exit_code == 0, done.output
    assert f"wrote {file}" in done.output
    return file.read_text()


def faulty(folder: Path) -> Path:
    """Success in one episode's middle, NaN, actions beyond bounds, a copy, and bounds that were guessed."""
    store = make_store((40, 40, 40, 1, 60))
    observations, actions, masks = store.observations.copy(), store.actions.copy(), store.masks.copy()
    observations[5, 0], actions[7, 0] = np.nan, 3.0
    observations[40:80], actions[40:80] = observations[80:120], actions[80:120]
    masks[100:120] = 0.0
    dx, gripper = store.plant.actions
    plant = type(store.plant)(
        task=store.plant.task,
        fields=store.plant.fields,
        actions=(type(dx)("dx", -1, 1, mode="delta", hold="zero", assumed=("bounds", "mode")), gripper),
        control_rate=20.0,
    )
    changes: dict[str, Any] = {
        "observations": observations,
        "actions": actions,
        "masks": masks,
        "plant": plant,
    }
    write_store(dataclasses.replace(store, **changes), folder)
    return folder


def test_warnings_come_first_and_every_part_is_there(tmp_path: Path) -> None:
    text = report(faulty(tmp_path / "data"))
    page = Page(text)
    assert page.open == [] and page.addresses == []
    assert page.headings[0].endswith("warnings")
    assert page.headings[1:] == ["Assumed, since the data does not say it", *HEADINGS]
    figures = printed(cli("data", "inspect", tmp_path / "data", "--json"))
    assert figures["warnings"] and "mode of dx (delta)" in text
    assert "training refuses this data: data set tiny/data-v0 has NaN" in text
    for what in ("leaves [-1, 1]", "Where success lies", "Reward density", "How long episodes are"):
        assert what in text, what
    # A histogram for each field and action, four of episodes; a picture of each action's range.
    assert text.count("<figure>") == 2 + 2 + 4 and text.count("class='range'") == 2
    assert text.count("<i class=") == 5
    assert "default-src 'none'" in text and "<script" not in text and "url(" not in text


def test_what_comes_from_files_is_text_and_nothing_else(tmp_path: Path) -> None:
    plant = PlantDescription(
        task=HOSTILE,
        fields=(ObservationField(HOSTILE, (2,), HOSTILE),),
        actions=(ActionDimension(HOSTILE, -1.0, 1.0, HOSTILE, "", "", "delta", "zero"),),
        control_rate=20.0,
    )
    made = {"source": HOSTILE, "content_hash": HOSTILE, "changes": [HOSTILE]}
    store = dataclasses.replace(
        make_store(plant=plant), dataset_id=HOSTILE, provenance=(made,), remarks=(HOSTILE,)
    )
    write_store(store, tmp_path / "data")
    text = report(tmp_path / "data")
    page = Page(text)
    assert page.open == [] and page.addresses == []
    assert "<img" not in text and text.count("&lt;img") >= 10


def test_a_hundred_fields_and_actions_stay_below_a_megabyte(tmp_path: Path) -> None:
    plant = PlantDescription(
        task="wide",
        fields=tuple(ObservationField(f"group/field_{i}", (7,), "rad") for i in range(100)),
        actions=tuple(
            ActionDimension(f"joint_{i}", -1.0, 1.0, "rad", "", "", "absolute", "repeat") for i in range(100)
        ),
        control_rate=20.0,
    )
    write_store(make_store((300, 300), plant=plant), tmp_path / "data")
    text = report(tmp_path / "data")
    assert text.count("<figure>") == 204
    assert len(text.encode()) < 1 << 20


@pytest.mark.parametrize("column", ["observations", "actions", "rewards"])
def test_a_column_without_any_number_has_a_page(column: str, tmp_path: Path) -> None:
    values = np.full_like(getattr(make_store(), column), np.nan)
    text = report(stored(tmp_path / "data", **{column: values}))
    # Returns add up what is finite, which is nothing.
    assert text.count("No finite number") == {"observations": 2, "actions": 2, "rewards": 0}[column]
    assert 'nan"' not in text and Page(text).open == []


def test_a_page_that_cannot_be_written_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = cli("data", "inspect", stored(tmp_path / "data"), "--report", tmp_path / "file" / "page.html")
    assert done.exit_code == 2 and "pass another --report" in done.output


@pytest.mark.slow
def test_chromium_shows_it_without_a_network_in_light_and_dark_and_on_a_phone(tmp_path: Path) -> None:
    report(faulty(tmp_path / "data"))
    assert_shown_offline(tmp_path / "data.html")
