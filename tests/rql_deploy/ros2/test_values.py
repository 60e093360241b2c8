"""Numbers and pictures out of messages, and what is said of those that have none."""

from __future__ import annotations

import array
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rql_deploy.errors import UserError
from rql_deploy.ros2.definitions import ARRAY, COMPRESSED_IMAGE, IMAGE, TRAJECTORY, TRAJECTORY_POINT, blank
from rql_deploy.ros2.topic_map import Commanded, Observed
from rql_deploy.ros2.values import ENCODINGS, field_of, values_of

SEEN = Observed("/t")


def raw(encoding: str, pixels: np.ndarray, *, padding: int = 0) -> Any:
    """An Image of these bytes [height, width, depth]."""
    message = blank(IMAGE)
    height, width, depth = pixels.shape
    message.height, message.width, message.encoding = height, width, encoding
    message.step = width * depth + padding
    rows = np.zeros((height, message.step), np.uint8)
    rows[:, : width * depth] = pixels.reshape(height, -1)
    message.data = rows.tobytes()
    return message


def packed(pixels: np.ndarray, form: str = "PNG") -> Any:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    message = blank(COMPRESSED_IMAGE)
    message.data = file.getvalue()
    return message


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_encoding_becomes_red_green_blue(encoding: str) -> None:
    order = ENCODINGS[encoding]
    depth = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}[encoding]
    colours = np.random.default_rng(0).integers(0, 256, (3, 5, len(order)), np.uint8)
    pixels = np.full((3, 5, depth), 7, np.uint8)
    for colour, place in enumerate(order):
        pixels[:, :, place] = colours[:, :, colour]
    message = raw(encoding, pixels, padding=2)
    assert np.array_equal(field_of("here", IMAGE, message, SEEN, colours.shape), colours)


def test_compressed_pictures_are_unpacked() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    assert np.array_equal(field_of("here", COMPRESSED_IMAGE, packed(pixels), SEEN, (4, 6, 3)), pixels)
    grey = field_of("here", COMPRESSED_IMAGE, packed(pixels[:, :, 0]), SEEN, (4, 6, 1))
    assert np.array_equal(grey[:, :, 0], pixels[:, :, 0])
    smooth = np.full((8, 8, 3), 100, np.uint8)
    lossy = field_of("here", COMPRESSED_IMAGE, packed(smooth, "JPEG"), SEEN, (8, 8, 3))
    assert np.abs(lossy.astype(int) - 100).max() <= 2


def test_pictures_that_do_not_fit_are_refused() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    short = raw("rgb8", pixels)
    short.data = short.data[:-1]
    broken = packed(pixels)
    broken.data = broken.data[:40]
    for kind, message, words in (
        (IMAGE, raw("rgb8", pixels), r"pictures are \[4, 6, 3\], the map says \[4, 8, 3\]"),
        (IMAGE, raw("16UC1", pixels), "encoded as '16UC1': publish one of rgb8"),
        (IMAGE, short, "has 71 bytes in rows of 18: its publisher is wrong"),
        (COMPRESSED_IMAGE, packed(pixels), r"pictures are \[4, 6, 3\], the map says"),
        (COMPRESSED_IMAGE, broken, "a compressed picture cannot be read"),
        (COMPRESSED_IMAGE, packed(np.zeros((4, 8), np.uint16)), "more than 8 bits a colour, as depth has"),
    ):
        with pytest.raises(UserError, match=words):
            field_of("here", kind, message, SEEN, (4, 8, 3))


def test_commands_are_read_as_they_were_meant() -> None:
    message, point = blank(TRAJECTORY), blank(TRAJECTORY_POINT)
    point.positions = [2.0, 6.0]
    message.joint_names, message.points = ["b", "a"], [blank(TRAJECTORY_POINT), point]
    source = Commanded("/t", names=("x", "y"), joints=("a", "b"), scale=(2.0, 4.0))
    assert values_of("here", TRAJECTORY, message, source, source.joint_names).tolist() == [3.0, 0.5]
    message.points = []
    with pytest.raises(UserError, match="a JointTrajectory has no points"):
        values_of("here", TRAJECTORY, message, source, ("a",))


def test_arrays_of_other_libraries_are_numbers_too() -> None:
    message = blank(ARRAY)
    for data in ([1.0, 2.0], np.array([1.0, 2.0]), array.array("d", [1.0, 2.0])):
        message.data = data
        assert field_of("here", ARRAY, message, SEEN, (2,)).tolist() == [1.0, 2.0]
    with pytest.raises(UserError, match=r"a message has 2 numbers, the map says \[3\]: correct it"):
        field_of("here", ARRAY, message, SEEN, (3,))
