"""Films: paths of previews, where and in which colour; frames that a decoder gives back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.chunk_paths import PathModel, colour, value_range
from rql_deploy.contract import ActionDimension
from rql_deploy.errors import UserError
from rql_deploy.policy import Decision
from rql_deploy.sim.evaluation.films import HEIGHT, WIDTH, Film
from rql_deploy.sim.rendering import render_headless
from tests.helpers.data import PLANT

MODEL = """<mujoco><visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual><worldbody>
  <camera name="front" pos="0 -1 0" xyaxes="1 0 0 0 0 1"/>
  <camera name="side" pos="1 0 0" xyaxes="0 1 0 0 0 1"/>
  <body name="arm_base"/><site name="grip_site" pos="-.2 0 0"/></worldbody></mujoco>"""


def arm(mode: str = "delta", unit: str = "0.05 m", frame: str = "world", prefix: str = "d") -> PathModel:
    dimensions = tuple(ActionDimension(f"{prefix}{axis}", -1, 1, unit, "OSC", frame, mode) for axis in "xyz")  # type: ignore[arg-type]
    return PathModel(msgspec.structs.replace(PLANT, actions=(*dimensions, PLANT.actions[1])))


def test_deltas_add_up_from_where_the_end_effector_is_in_metres_and_in_their_frame() -> None:
    chunk = np.array([[1, 0, 0, 0], [1, 0, 2, 0]], np.float32)
    start = np.array([0.1, 0.2, 0.3])
    turned = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # x of the base is y of the world
    assert arm().path(chunk, start, turned) == pytest.approx(
        np.array([[0.1, 0.2, 0.3], [0.15, 0.2, 0.3], [0.2, 0.2, 0.4]])
    )
    assert arm(frame="base").path(chunk, start, turned) == pytest.approx(
        np.array([[0.1, 0.2, 0.3], [0.1, 0.25, 0.3], [0.1, 0.3, 0.4]])
    )
    absolute = arm("absolute", "m", prefix="").path(chunk, start, turned)
    assert absolute == pytest.approx(np.array([[0.1, 0.2, 0.3], [1, 0, 0], [1, 0, 2]]))
    assert not PathModel(PLANT).drawable  # dx alone is no path


def test_colours_run_from_dark_to_bright_over_the_training_data_s_values() -> None:
    low, high = value_range((0.0, 0.05, 0.5, 0.95, 1.0), (-90.0, -50.0, -20.0, -5.0, 0.0))
    assert (low, high) == (-50.0, -5.0)
    brightness = [colour(v, low, high).sum() for v in (-90.0, -50.0, -30.0, -10.0, 0.0)]
    assert brightness == sorted(brightness)
    assert brightness[0] == brightness[1] < brightness[2]


class StillPlant:
    """A model that does not move, behind what a film needs of a plant."""

    def __init__(self) -> None:
        render_headless()
        import mujoco

        self.model = mujoco.MjModel.from_xml_string(MODEL)
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)
        self.env = SimpleNamespace(simulation=lambda: (self.model, self.data), frames=dict)
        self.success = self.finished = False


def frames(path: Path) -> list[np.ndarray]:
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]


@pytest.fixture
def make_film(bundle: Path) -> Callable[..., Film]:
    contract = Bundle.open(bundle).contract
    dimensions = tuple(ActionDimension(f"d{axis}", -1, 1, "0.1 m", "OSC", "world", "delta") for axis in "xyz")
    contract = msgspec.structs.replace(
        contract, plant=msgspec.structs.replace(contract.plant, actions=dimensions)
    )
    return lambda path, plant, camera=None: Film(path, plant, contract, camera=camera)


def test_a_chunk_is_drawn_where_it_leads_in_the_colour_of_its_v(
    tmp_path: Path, make_film: Callable[..., Film]
) -> None:
    path = tmp_path / "film.mp4"
    film = make_film(path, StillPlant())
    plant = film._plant
    rightwards = np.tile(np.array([[1.0, 0.0, 0.0]], np.float32), (4, 1))
    with film:
        film.decided(Decision(rightwards, film._range[1], 0.1, 10, 0.0, 0), [])
        film._lines = []
        film.tick()
        plant.success = plant.finished = True  # type: ignore[misc]
        film.tick()
    shown = frames(path)
    assert len(shown) == 3 + 10
    first, second = shown[0][30:], shown[1][30:]
    bright = np.argwhere(np.abs(first - second).max(-1) > 60)
    assert len(bright) > 100
    rows, columns = bright.min(0), bright.max(0)
    # From the site, left of the middle, 0.4 m to the right at the same height.
    assert columns[1] - rows[1] > 0.25 * WIDTH
    assert columns[0] - rows[0] < 0.05 * HEIGHT
    r, g, b = first[tuple(bright[len(bright) // 2])]
    assert r > b + 40
    assert g > b + 40
    assert not (tmp_path / "film.mp4.partial").exists()


def test_an_unknown_camera_is_named_and_leaves_no_file(
    tmp_path: Path, make_film: Callable[..., Film]
) -> None:
    chunk = np.zeros((2, 3), np.float32)
    with (
        pytest.raises(UserError, match=r"no camera 'fron'.*front"),
        make_film(tmp_path / "film.mp4", StillPlant(), "fron") as film,
    ):
        film.decided(Decision(chunk, None, None, 10, 0.0, 0), [])
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_fails_at_the_end_leaves_no_file(
    tmp_path: Path, make_film: Callable[..., Film]
) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    film = make_film(tmp_path / "film.mp4", StillPlant())
    with pytest.raises(OSError, match="No space left"), film:
        film.decided(Decision(np.zeros((2, 3), np.float32), None, None, 10, 0.0, 0), [])
        film._stream = SimpleNamespace(encode=fail)
    assert list(tmp_path.iterdir()) == []
