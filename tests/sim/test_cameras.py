"""Pictures of simulated tasks: named, sized and seeded as data sets and contracts say."""

from collections.abc import Iterator

import numpy as np
import pytest

from rql_deploy.contract import ImageField
from rql_deploy.errors import UserError
from rql_deploy.images import fit, stacked
from rql_deploy.sim.cameras import Cameras, image_fields
from rql_deploy.sim.plants.tasks import EnvPlant, Task, describe

CAMERAS = ("agentview:64x48", "robot0_eye_in_hand:32x32")
PICTURES = ("agentview_image", "robot0_eye_in_hand_image")


@pytest.fixture(scope="module")
def lift() -> Iterator[EnvPlant]:
    plant = EnvPlant(Task("robosuite:Lift", {"cameras": CAMERAS}).make_env())
    yield plant
    plant.close()


def played(plant: EnvPlant, seed: int, steps: int = 2) -> list[dict[str, np.ndarray]]:
    plant.reset(seed)
    seen = [dict(plant.observe())]
    for _ in range(steps):
        plant.apply(np.full(7, 0.3, np.float32))
        seen.append(dict(plant.observe()))
    return seen


def test_pictures_have_the_size_asked_for_and_belong_to_the_plant(lift: EnvPlant) -> None:
    description = describe("robosuite:Lift", lift.env)
    assert [(i.name, i.height, i.width, i.camera) for i in description.images] == [
        ("agentview_image", 64, 48, "agentview"),
        ("robot0_eye_in_hand_image", 32, 32, "robot0_eye_in_hand"),
    ]
    seen = played(lift, 5)[0]
    assert [(seen[name].shape, seen[name].dtype) for name in PICTURES] == [
        ((64, 48, 3), np.uint8),
        ((32, 32, 3), np.uint8),
    ]
    # The description rebuilds the same task.
    again = Task.of_plant(description)
    assert image_fields(again.settings["cameras"]) == description.images


def test_the_same_seed_gives_the_same_bytes(lift: EnvPlant) -> None:
    first, second, other = played(lift, 5), played(lift, 5), played(lift, 6)
    for name in PICTURES:
        for a, b in zip(first, second, strict=True):
            assert np.array_equal(a[name], b[name])
        assert not np.array_equal(first[0][name], other[0][name])
        assert not np.array_equal(first[0][name], first[-1][name])


@pytest.mark.slow
def test_pictures_are_those_that_robosuite_itself_renders(lift: EnvPlant) -> None:
    from rql_deploy.sim.plants.robosuite_env import import_robosuite

    seen = played(lift, 5)[-1]
    robosuite = import_robosuite()
    theirs = robosuite.make(
        "Lift",
        robots="Panda",
        controller_configs=lift.env.controller_config,  # type: ignore[attr-defined]
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=True,
        camera_names=["agentview", "robot0_eye_in_hand"],
        camera_heights=[64, 32],
        camera_widths=[48, 32],
        control_freq=20,
        ignore_done=True,
        hard_reset=True,
    )
    theirs.reset()
    theirs.rng.bit_generator.state = np.random.default_rng(5).bit_generator.state
    theirs.reset()
    for _ in range(2):
        found = theirs.step(np.full(7, 0.3))[0]
    for name in PICTURES:
        # Theirs come bottom up, and one physics step earlier.
        difference = np.abs(seen[name].astype(int) - found[name][::-1].astype(int))
        assert difference.mean() < 0.5, name
    theirs.close()


@pytest.mark.slow
def test_numbers_are_those_of_the_task_without_cameras(lift: EnvPlant) -> None:
    plain = EnvPlant(Task("robosuite:Lift", {}).make_env())
    plain.env.drawn = False
    for a, b in zip(played(lift, 5), played(plain, 5), strict=True):
        assert set(a) - set(b) == set(PICTURES)
        for name in b:
            assert np.array_equal(a[name], b[name]), name
    plain.close()


def test_a_contracts_camera_is_rendered_at_its_own_size_and_made_into_the_picture(lift: EnvPlant) -> None:
    size = {"camera_height": 64, "camera_width": 48, "crop": (8, 0, 48, 48)}
    image = ImageField("top", 16, 12, camera="agentview", **size)
    turned = ImageField("agentview_image", 64, 48, colour_order="bgr")
    whole = played(lift, 5)[-1]["agentview_image"]
    looking = Cameras((image, turned), "Lift")
    seen = looking.look(*lift.env.simulation())
    looking.close()
    assert np.array_equal(seen["top"], fit(whole, image))
    assert np.array_equal(seen["agentview_image"], whole[..., ::-1])


def test_a_context_that_is_kept_over_resets_shows_what_a_new_one_shows(lift: EnvPlant) -> None:
    played(lift, 6)
    kept = played(lift, 5)[-1]
    lift.env.close_cameras()
    new = lift.env.frames()
    for name in PICTURES:
        assert np.array_equal(kept[name], new[name])


def test_frames_are_stacked_as_in_training(lift: EnvPlant) -> None:
    import msgspec

    description = msgspec.structs.replace(describe("robosuite:Lift", lift.env), frame_stack=3)
    plant = stacked(lift, description)
    plant.reset(5)
    first = plant.observe()["agentview_image"]
    plant.apply(np.full(7, 0.3, np.float32))
    second = plant.observe()["agentview_image"]
    assert first.shape == (64, 48, 9)
    assert np.array_equal(first[..., :3], first[..., 6:]) and np.array_equal(second[..., :6], first[..., 3:])


def test_a_camera_that_is_not_there_is_answered_with_those_that_are(lift: EnvPlant) -> None:
    lift.reset(0)
    with pytest.raises(UserError, match="Lift has no camera 'agentvue': did you mean agentview"):
        Cameras(image_fields(["agentvue"]), "Lift").look(*lift.env.simulation())
    with pytest.raises(UserError, match="no MuJoCo model to look at: leave --video and --camera out"):
        Task("gym:MountainCarContinuous-v0", {"cameras": ("top",)}).make_env().frames()


@pytest.mark.slow
def test_ogbench_shows_what_its_visual_tasks_show() -> None:
    import gymnasium

    task = "visual-cube-single-play-singletask-task1-v0"
    plant = EnvPlant(Task(f"ogbench:{task}", {}).make_env())
    description = describe(f"ogbench:{task}", plant.env)
    assert description.fields == () and description.control_rate == 20.0
    assert [(i.name, i.height, i.width, i.camera) for i in description.images] == [
        ("pixels", 64, 64, "front_pixels")
    ]
    plant.reset(3)
    seen = plant.observe()
    assert list(seen) == ["pixels"]
    own = gymnasium.make("visual-cube-single-singletask-task1-v0", disable_env_checker=True).unwrapped
    own.reset(seed=0)
    inside = plant.env._env.unwrapped  # type: ignore[attr-defined]
    own._data.qpos[:], own._data.qvel[:] = inside.data.qpos, inside.data.qvel
    own._data.mocap_pos[:], own._data.mocap_quat[:] = inside.data.mocap_pos, inside.data.mocap_quat
    import mujoco

    mujoco.mj_forward(own._model, own._data)
    mujoco.mj_forward(inside.model, inside.data)
    assert np.array_equal(plant.env.frames()["pixels"], own.render())
    again = plant.env.frames()["pixels"]
    plant.reset(3)
    assert not np.array_equal(again, np.zeros_like(again))
    plant.close()


@pytest.mark.slow
def test_ogbench_with_a_camera_observes_the_numbers_too() -> None:
    name = "ogbench:cube-single-play-singletask-task1-v0"
    plain, looking = (
        EnvPlant(Task(name, {"cameras": cameras}).make_env()) for cameras in ((), ("front_pixels:32x32",))
    )
    for plant in (plain, looking):
        plant.reset(4)
        plant.apply(np.full(5, 0.2, np.float32))
    assert np.array_equal(plain.observe()["observation"], looking.observe()["observation"])
    assert looking.observe()["pixels"].shape == (32, 32, 3)
    plain.close()
    looking.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["top:8x8", "top_image:9x9"], "--camera top_image:9x9 is 'top_image', which is chosen already"),
        (["top:8x8:bgr"], "a simulator renders RGB, so leave :bgr out"),
    ],
)
def test_a_choice_that_would_be_ignored_is_refused_before_anything_is_rendered(
    words: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        image_fields(words, suffix="_image")
