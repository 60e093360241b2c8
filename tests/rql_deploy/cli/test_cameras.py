"""`--camera` on the command line: what is read, shown and written, and one sentence for what cannot be."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.helpers.commands import assert_refused, cli, printed
from tests.helpers.data import opened
from tests.helpers.pictures import TOP, numbers_in, write_lerobot, write_robomimic, write_video


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RQL_DEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lerobot(tmp_path_factory.mktemp("lerobot") / "set")


def test_a_store_has_the_frames_and_needs_no_decoder(videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "store"
    result = cli("data", "convert", videos, "--camera", "top:16x32", "--output", output)
    assert result.exit_code == 0, result.output
    assert "frames of observation.images.top  24/24" in result.stderr
    assert "nothing is lost" in result.stdout
    store = opened(output)
    assert numbers_in(store.images[TOP].take(np.arange(24))) == list(range(24))
    assert store.plant.images[0].camera_size == (32, 64)
    # Other formats say that they lose them.
    result = cli("data", "convert", output, "--output", tmp_path / "out.hdf5")
    assert f"the frames of {TOP}: only a store folder keeps them" in result.stdout
    assert opened(tmp_path / "out.hdf5").plant.images == ()
    only = cli("data", "convert", output, "--map", "observation.state=", "--output", tmp_path / "only")
    assert only.exit_code == 0, only.output
    assert_refused(
        cli("data", "convert", tmp_path / "only", "--output", tmp_path / "out.npz"),
        "observes nothing but the pictures",
        "--to store",
    )
    assert not (tmp_path / "out.npz").exists()


def test_inspect_shows_cameras_and_their_frames(videos: Path, tmp_path: Path) -> None:
    words = ("data", "inspect", videos, "--camera", "top")
    page = tmp_path / "page.html"
    result = cli(*words, "--report", page)
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if line.strip().startswith(TOP))
    assert "32x64" in line and "rgb " in line
    assert "--camera top" in result.stdout.splitlines()[-1]
    assert page.read_text().count("data:image/png;base64,") == 9
    camera = printed(cli(*words, "--json"))["cameras"][0]
    assert (camera["name"], camera["rows_looked_at"], camera["assumed"]) == (TOP, 24, [])
    assert TOP not in printed(cli(*words, "--json"))["left_out"]
    assert TOP in printed(cli("data", "inspect", videos, "--json"))["left_out"]


def test_an_assumed_order_of_colours_is_said_until_it_is_stated(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    file = write_robomimic(tmp_path / "demos.hdf5", frames, (6, 6))
    shown = cli("data", "inspect", file, "--camera", "agentview").stdout
    assert "order of the colours of agentview_image (RGB)" in shown and "say it with --camera" in shown
    for order in ("rgb", "bgr"):
        stated = cli("data", "inspect", file, "--camera", f"agentview:8x8:{order}").stdout
        assert "order of the colours" not in stated


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--camera", "front"), ("no camera 'front'", TOP)),
        (("--camera", "top:big"), ("--camera takes NAME",)),
        (("--camera", "top:4000x4000"), ("1 to 1024 pixels",)),
        (("--camera", "top", "--camera", "top:8x8"), ("names 'top' twice",)),
    ],
)
def test_words_that_say_no_camera_are_refused(
    videos: Path, tmp_path: Path, words: tuple[str, ...], said: tuple[str, ...]
) -> None:
    assert_refused(cli("data", "convert", videos, *words, "--output", tmp_path / "out"), *said)
    assert_refused(cli("train", "--dataset", videos, *words, "--output", tmp_path / "run"), *said)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_video_leaves_nothing_behind_and_costs_nothing_twice(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set")
    video = next((folder / "videos").glob("**/*.mp4"))
    whole = video.read_bytes()
    write_video(video, range(20))
    refused = cli("data", "convert", folder, "--camera", "top", "--output", tmp_path / "out")
    assert_refused(refused, "fewer frames than there are rows", str(video))
    assert not (tmp_path / "out").exists()
    video.write_bytes(whole)
    assert cli("data", "convert", folder, "--camera", "top", "--output", tmp_path / "out").exit_code == 0


def test_cameras_of_other_formats_and_of_numbers_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        file["observations"] = np.zeros((8, 3), np.float32)
        file["actions"] = np.zeros((8, 2), np.float32)
        file["rewards"] = np.arange(8, dtype=np.float32)
        file["terminals"] = file["timeouts"] = np.arange(8) == 7
    assert_refused(cli("data", "inspect", tmp_path / "d4rl.hdf5", "--camera", "top"), "is a file of D4RL")
    depth = write_robomimic(
        tmp_path / "demos.hdf5", np.zeros((6, 16, 16, 1), np.float32), (6,), "front_depth"
    )
    assert_refused(
        cli("data", "inspect", depth, "--camera", "front_depth"), "one number a pixel", "in colour only"
    )


def test_simulators_refuse_by_name(tmp_path: Path) -> None:
    output = tmp_path / "out"
    word = ("--camera", "agentview:64x64", "--output", output)
    assert_refused(cli("collect", "ogbench:cube-single-play", *word), "Minari would store pictures as JPEG")
    visual = ("collect", "ogbench:visual-cube-single-play", "--camera", "front:64x64")
    assert_refused(
        cli(*visual, "--output", f"{output}.npz"), "observes one picture of the camera front_pixels"
    )
    assert_refused(cli("demo", "--quick", "--camera"), "leave it or --camera out")
    assert list(tmp_path.iterdir()) == []
