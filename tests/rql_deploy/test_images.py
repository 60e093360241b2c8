"""Pictures made of camera frames as the data set's were, and stacked."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np
import pytest

from rql_deploy.contract import ContractError, ImageField, ObservationField
from rql_deploy.images import FittedPlant, FrameStack, fit, fitted, jpeg, resize, stacked
from tests.helpers.data import PLANT

RNG = np.random.default_rng(0)


def by_area(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """The definition: each old pixel repeated so often that the new sides divide the old ones."""
    rows, columns, _ = frame.shape
    large = np.kron(frame.astype(np.int64), np.ones((height, width, 1), np.int64))
    sums = large.reshape(height, rows, width, columns, 3).sum(axis=(1, 3))
    return ((2 * sums + rows * columns) // (2 * rows * columns)).astype(np.uint8)


@pytest.mark.parametrize("size", [(24, 32, 12, 16), (24, 32, 7, 9), (5, 4, 8, 9), (9, 9, 9, 3), (8, 8, 1, 1)])
def test_a_pixel_is_the_rounded_mean_of_its_area(size: tuple[int, int, int, int]) -> None:
    frame = RNG.integers(0, 256, (*size[:2], 3), np.uint8)
    np.testing.assert_array_equal(resize(frame, *size[2:]), by_area(frame, *size[2:]))


def test_the_bytes_are_these_on_every_machine() -> None:
    frames = (np.arange(2 * 480 * 640 * 3, dtype=np.uint64) * 2654435761 >> 13).astype(np.uint8)
    frames = frames.reshape(2, 480, 640, 3)
    small = resize(frames, 84, 96)
    np.testing.assert_array_equal(small[1], resize(frames[1], 84, 96))
    assert hashlib.sha256(small.tobytes()).hexdigest()[:16] == "1c1f1e0950dd23c5"
    white = np.full((480, 640, 3), 255, np.uint8)
    assert (resize(white, 84, 84) == 255).all()


def test_pictures_are_cropped_then_resized() -> None:
    frame = RNG.integers(0, 256, (48, 64, 3), np.uint8)
    image = ImageField("front", 12, 16, camera_height=48, camera_width=64, crop=(0, 8, 48, 48))
    np.testing.assert_array_equal(fit(frame, image), by_area(frame[:, 8:56], 12, 16))
    plain = ImageField("front", 48, 64)
    assert fit(frame, plain) is frame


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (np.zeros((4, 6, 3), np.float32), "camera 'front' gave float32 values, it should give uint8"),
        (
            np.zeros((6, 4, 3), np.uint8),
            r"camera 'front' gave a frame of shape \[6, 4, 3\], the contract says",
        ),
        (np.zeros((4, 6), np.uint8), "camera 'front' gave a frame of shape"),
        (np.zeros((4, 6, 4), np.uint8), "camera 'front' gave a frame of shape"),
    ],
)
def test_another_frame_is_refused_by_name(frame: np.ndarray, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        fit(frame, ImageField("front", 4, 6))


class Camera:
    """A plant that counts its frames: the n-th tick's has the shade n."""

    simulated = True

    def __init__(self) -> None:
        self.tick = self.looks = 0
        self.frame = np.zeros((4, 6, 3), np.uint8)

    def reset(self, seed: int | None = None) -> None:
        self.tick = 0

    def observe(self) -> dict[str, Any]:
        self.looks += 1
        self.frame[:] = self.tick  # a driver that reuses its buffer
        return {"front": self.frame, "position": np.zeros(3, np.float32)}

    def apply(self, action: Any) -> None:
        self.tick += 1


def test_frames_are_stacked_by_tick_whether_or_not_the_policy_was_asked() -> None:
    images = (ImageField("front", 4, 6),)
    plant = stacked(Camera(), msgspec.structs.replace(PLANT, images=images, frame_stack=3))
    assert plant.simulated
    for _ in range(2):
        plant.reset(0)
        seen = []
        for tick in range(7):
            if tick in (0, 1, 5):
                assert plant.observe()["front"].shape == (4, 6, 9)
                seen.append(plant.observe()["front"][0, 0, ::3].tolist())
            plant.apply(np.zeros(2))
        assert seen == [[0, 0, 0], [0, 0, 1], [3, 4, 5]]
    assert plant.plant.looks == 14
    assert "position" in plant.observe()
    bare = Camera()
    assert stacked(bare, msgspec.structs.replace(PLANT, images=images)) is bare


def test_a_stack_is_cleared_between_episodes() -> None:
    stack = FrameStack([ImageField("front", 1, 1)], 2)
    frames = [np.full((1, 1, 3), shade, np.uint8) for shade in (1, 2)]
    assert stack.add({"front": frames[0]})["front"][0, 0, ::3].tolist() == [1, 1]
    assert stack.add({"front": frames[1]})["front"][0, 0, ::3].tolist() == [1, 2]
    stack.clear()
    assert stack.add({"front": frames[1]})["front"][0, 0, ::3].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (None, "'front' has object values"),
        (b"a JPEG", "'front' is not an array of numbers"),
        (np.zeros((1, 1, 3)), "'front' has float64 values"),
        (np.zeros((1, 2, 3), np.uint8), r"'front' gave a picture of shape \[1, 2, 3\], .* \[1, 1, 3\]"),
        (np.zeros((1, 1), np.uint8), r"'front' gave a picture of shape \[1, 1\]"),
    ],
)
def test_what_is_no_picture_does_not_enter_a_stack(picture: Any, said: str) -> None:
    stack = FrameStack([ImageField("front", 1, 1)], 2)
    stack.add({"front": np.ones((1, 1, 3), np.uint8)})
    with pytest.raises(ContractError, match=said):
        stack.add({"front": picture})
    assert stack.add({"front": [[[2, 2, 2]]]})["front"].tolist() == [[[1, 1, 1, 2, 2, 2]]]


def test_a_jpeg_is_made_of_a_colour_picture_only() -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    assert jpeg(picture, 90)[:2] == b"\xff\xd8"
    for other in (picture[..., 0], picture[..., :2], picture / 255.0, None):
        with pytest.raises(ContractError, match=r"is no JPEG of a camera: pass uint8 \[height, width, 3\]"):
            jpeg(other, 90)  # type: ignore[arg-type]
    for quality in (0, 101, 90.5, True):
        with pytest.raises(ContractError, match="pass a whole number from 1 to 100"):
            jpeg(picture, quality)  # type: ignore[arg-type]


class Robot:
    """A robot with a camera of 24 x 32 pixels."""

    frame = RNG.integers(0, 256, (24, 32, 3), np.uint8)
    finished = False

    def observe(self) -> dict[str, Any]:
        return {"front": self.frame, "position": np.zeros(3)}


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_robot_s_frames_become_the_pictures_of_the_policy(order: Any) -> None:
    frames = ObservationField("front", (24, 32, 3), dtype="uint8")
    description = msgspec.structs.replace(PLANT, fields=(*PLANT.fields, frames))
    image = ImageField("front", 6, 8, colour_order=order, camera_height=24, camera_width=32)
    robot = Robot()
    plant, seen = fitted(robot, description, [image])
    assert (seen.fields, seen.images) == (PLANT.fields, (image,))
    assert msgspec.structs.replace(PLANT, images=(image,)).differences(seen) == []
    picture = plant.observe()["front"]
    frame = robot.frame if order == "rgb" else robot.frame[..., ::-1]
    np.testing.assert_array_equal(picture, by_area(frame, 6, 8))
    assert plant.observe()["position"].shape == (3,) and not plant.finished
    # What the policy does not look at stays as it is.
    assert fitted(robot, description, []) == (robot, description)
    with pytest.raises(ContractError, match=r"gives frames of shape \[24, 32, 3\], .* \[48, 64, 3\]: set"):
        fitted(robot, description, [ImageField("front", 48, 64)])
    for given, said in (({}, "lacks the frame of camera 'front'"), ({"front": None}, "gave object values")):
        robot.observe = lambda given=given: given  # type: ignore[method-assign]
        with pytest.raises(ContractError, match=said):
            FittedPlant(robot, [image]).observe()
