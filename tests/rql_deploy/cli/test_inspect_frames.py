"""`inspect` of a bundle that sees: its cameras, and a frame in the terminal."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np

from rql_deploy.assumptions import describe_assumed
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.certificate import load_cases
from rql_deploy.cli.frames import certificate_frames, half_blocks
from tests.helpers.commands import cli


def test_cameras_and_a_frame_are_shown(picture_bundle: Path, bundle: Path) -> None:
    result = cli("inspect", picture_bundle, "--verify", "--frames")
    assert result.exit_code == 0, result.output
    assert re.search(r"camera +12 x 16 +2 +rgb +12 x 16 +all", result.output)
    assert "checks again on this machine" in result.output
    first = load_cases(picture_bundle)["dataset/images/camera"][0, 0, 0, -3:]
    assert f"\x1b[38;2;{';'.join(map(str, first))};48;2;" in result.output
    assert "pictures, 1 row" in result.output
    without = cli("inspect", bundle, "--frames").output
    assert "this policy sees no camera" in without and "Cameras" not in without


def test_a_frame_is_two_pixels_a_character() -> None:
    picture = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
    lines = list(half_blocks(picture))
    assert len(lines) == 2
    assert lines[0].startswith("\x1b[38;2;0;1;2;48;2;6;7;8m▀\x1b[38;2;3;4;5;48;2;9;10;11m▀")
    assert len(list(half_blocks(np.zeros((300, 400, 3), np.uint8)))) == 18


def test_frames_in_another_colour_order_are_shown_in_rgb(picture_bundle: Path) -> None:
    opened = Bundle.open(picture_bundle)
    image = msgspec.structs.replace(
        opened.contract.plant.images[0], colour_order="bgr", assumed=("colour_order",)
    )
    plant = msgspec.structs.replace(opened.contract.plant, images=(image,))
    object.__setattr__(opened, "contract", msgspec.structs.replace(opened.contract, plant=plant))
    ((name, shown),) = certificate_frames(opened)
    stored = load_cases(picture_bundle)["dataset/images/camera"][0][..., -3:]
    np.testing.assert_array_equal(shown, stored[..., ::-1])
    assert f"colour order of camera {name} (bgr)" in describe_assumed(plant)
