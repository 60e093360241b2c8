"""`--camera` words, and which picture each of them means."""

import pytest

from rql_deploy.cameras import CameraChoice, parse_cameras
from rql_deploy.errors import UserError

NAMES = ("observation.images.top", "observation.images.wrist", "agentview_image", "left/cam", "right/cam")


@pytest.mark.parametrize(
    ("word", "choice"),
    [
        ("top", CameraChoice("top")),
        ("top:48x64", CameraChoice("top", (48, 64))),
        ("top:bgr", CameraChoice("top", None, "bgr")),
        (" top : 48x64 : rgb ", CameraChoice("top", (48, 64), "rgb")),
    ],
)
def test_words_say_name_size_and_order(word: str, choice: CameraChoice) -> None:
    assert CameraChoice.parse(word) == choice
    assert CameraChoice.parse(str(choice)) == choice


@pytest.mark.parametrize(
    "word", ["", ":", "top:", "top:64", "top:64x", "top:64x64x3", "top:-1x4", "top:8x8:xyz", "top:bgr:8x8"]
)
def test_other_words_are_refused_with_an_example(word: str) -> None:
    with pytest.raises(UserError, match=r"--camera takes NAME.*try --camera agentview:64x64"):
        CameraChoice.parse(word)


@pytest.mark.parametrize("size", ["0x4", "4x0", "1025x4", "99999x4"])
def test_sizes_that_no_contract_takes_are_refused(size: str) -> None:
    with pytest.raises(UserError, match="sides of 1 to 1024 pixels"):
        CameraChoice.parse(f"top:{size}")


def test_a_camera_is_known_by_its_picture_and_by_the_end_of_its_name() -> None:
    for word, name in (
        ("top", NAMES[0]),
        ("agentview", NAMES[2]),
        (NAMES[1], NAMES[1]),
        ("left/cam", "left/cam"),
    ):
        assert CameraChoice(word).find(NAMES, "data") == name
    with pytest.raises(UserError, match="may mean left/cam or right/cam"):
        CameraChoice("cam").find(NAMES, "data")
    with pytest.raises(UserError, match="data has no camera 'agentvue': did you mean agentview_image"):
        CameraChoice("agentvue").find(NAMES, "data")
    with pytest.raises(UserError, match="data has no pictures"):
        CameraChoice("top").find((), "data")
    with pytest.raises(UserError, match="names 'top' twice"):
        parse_cameras(["top", "top:8x8"])
