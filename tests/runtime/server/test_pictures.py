"""A policy that sees, over real sockets: bytes as in process, one encoding a decision, errors by name."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError, DeadlineMissed
from rql_deploy.images import FrameStack, jpeg
from rql_deploy.runtime.client import connect
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.runtime.engine.request import Job
from rql_deploy.runtime.server import jpeg as module
from rql_deploy.runtime.server.jpeg import decode
from rql_deploy.runtime.server.openpi_messages import pack, read_observation
from rql_deploy.runtime.server.server import PolicyServer
from tests.helpers.servers import observation


@pytest.fixture(scope="module")
def contract(picture_bundle: Path) -> Contract:
    return Bundle.open(picture_bundle).contract


@pytest.fixture(scope="module")
def calls() -> Counter[str]:
    """Rows that the server's graphs were run on, by graph."""
    return Counter()


@pytest.fixture(scope="module")
def endpoint(picture_bundle: Path, calls: Counter[str]) -> Iterator[str]:
    model = Model(Bundle.open(picture_bundle))
    model.warm_up(rounds=1)
    encode, unrolled = model.encode, model.unrolled

    def counted_encode(fields: Any) -> Any:
        calls["encoded"] += len(fields["camera"])
        return encode(fields)

    def counted_unrolled(fields: Any, noise: Any) -> Any:
        calls["unrolled"] += len(noise)
        return unrolled(fields, noise)

    model.encode, model.unrolled = counted_encode, counted_unrolled  # type: ignore[method-assign]
    with PolicyServer([model], "tcp://127.0.0.1:*") as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        yield server.endpoint
        server.stop()
        thread.join()


def test_decisions_have_the_bytes_of_those_in_process(
    endpoint: str, picture_bundle: Path, contract: Contract
) -> None:
    local = OnnxPolicy(Bundle.open(picture_bundle))
    with connect(endpoint) as policy:
        for seed, candidates in ((0, 1), (1, 4), (2, 40)):
            seen = observation(contract, seed)
            options: Any = {"seed": seed, "candidates": candidates, "value": True, "deadline": 20.0}
            mine, theirs = local.act(seen, **options), policy.act(seen, **options)
            assert mine.actions.tobytes() == theirs.actions.tobytes()
            assert mine.value == theirs.value
            streamed = list(policy.stream(seen, seed=seed, candidates=candidates, deadline=20.0))[-1]
            assert streamed.actions.tobytes() == mine.actions.tobytes()
        changed = dict(seen, camera=255 - seen["camera"])
        assert (policy.act(changed, **options).actions != mine.actions).any()


@pytest.mark.parametrize(
    "options", [{}, {"candidates": 8, "value": True}, {"candidates": 30}, {"prune": ((2, 2),)}]
)
def test_pictures_are_encoded_once_a_decision(
    endpoint: str, contract: Contract, calls: Counter[str], options: dict[str, Any]
) -> None:
    with connect(endpoint) as policy:
        calls.clear()
        options = {"candidates": 4, **options} if "prune" in options else options
        policy.act(observation(contract), seed=0, deadline=20.0, **options)
        assert calls["encoded"] == 1
        assert calls["unrolled"] in (0, options.get("candidates", 1))


def test_robots_that_ask_at_once_get_what_each_would_alone(
    endpoint: str, picture_bundle: Path, contract: Contract
) -> None:
    local, got = OnnxPolicy(Bundle.open(picture_bundle)), {}

    def ask(robot: int) -> None:
        with connect(endpoint) as policy:
            for turn in range(4):
                seed = 10 * robot + turn
                got[seed] = policy.act(observation(contract, seed), seed=seed, deadline=20.0).actions

    robots = [threading.Thread(target=ask, args=(robot,)) for robot in range(6)]
    for robot in robots:
        robot.start()
    for robot in robots:
        robot.join()
    assert len(got) == 24
    for seed, actions in got.items():
        assert actions.tobytes() == local.act(observation(contract, seed), seed=seed).actions.tobytes()


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (
            np.zeros((16, 12, 6), np.uint8),
            r"'camera' has shape \[16, 12, 6\], the contract says \[12, 16, 6\]",
        ),
        (np.zeros((12, 16, 3), np.uint8), r"'camera' has shape \[12, 16, 3\]"),
        (np.zeros((12, 16, 6), np.float32), "'camera' has float32 values, the contract says uint8"),
        (np.zeros((12, 16, 6), bool), "'camera' has bool values, the contract says uint8"),
        (None, "lacks field 'camera'"),
    ],
)
def test_another_picture_is_refused_by_name_before_it_is_sent(
    endpoint: str, contract: Contract, calls: Counter[str], picture: Any, said: str
) -> None:
    seen = observation(contract) | {"camera": picture}
    if picture is None:
        del seen["camera"]
    with connect(endpoint) as policy:
        calls.clear()
        with pytest.raises(ContractError, match=said):
            policy.act(seen)
    assert not calls


def test_a_robot_stacks_its_frames_with_one_line(endpoint: str, contract: Contract) -> None:
    plant = contract.plant
    stack, rng = FrameStack(plant.images, plant.frame_stack), np.random.default_rng(0)
    numbers = {field.name: np.zeros(field.shape) for field in plant.fields}
    with connect(endpoint) as policy:
        for _ in range(3):
            frame = rng.integers(0, 256, (12, 16, 3), np.uint8)
            assert policy.act(stack.add({**numbers, "camera": frame}), deadline=20.0).actions.shape == (3, 2)


def test_openpis_clients_may_send_channels_first(contract: Contract) -> None:
    seen = observation(contract)
    first = seen | {"camera": np.ascontiguousarray(np.moveaxis(seen["camera"], -1, 0))}
    for sent in (seen, first, {**seen, "other/wrist": np.zeros((9, 9, 3), np.uint8)}):
        read = read_observation(pack(sent), contract)
        np.testing.assert_array_equal(read["camera"], seen["camera"])
        assert read["camera"].dtype == np.uint8
    with pytest.raises(ContractError, match="'camera' cannot be read: it holds truth values"):
        read_observation(pack({**seen, "camera": seen["camera"] > 99}), contract)


def encoded(seen: dict[str, Any], quality: int) -> dict[str, Any]:
    return seen | {
        "camera": [jpeg(np.ascontiguousarray(f), quality) for f in np.split(seen["camera"], 2, -1)]
    }


def test_a_robot_may_send_jpeg_which_is_decoded_beside_the_engine(
    endpoint: str, picture_bundle: Path, contract: Contract
) -> None:
    local = OnnxPolicy(Bundle.open(picture_bundle))
    seen = encoded(observation(contract), 75)
    plain = dict(seen)
    named = {f"camera/{i}": np.frombuffer(data, np.uint8) for i, data in enumerate(seen["camera"])}
    plain["camera"] = decode(contract.plant, named)["camera"][0]
    assert (plain["camera"] != observation(contract)["camera"]).any()
    options: Any = {"seed": 3, "candidates": 3, "value": True, "deadline": 20.0}
    expected = local.act(plain, **options)
    with connect(endpoint) as policy:
        assert policy.act(seen, **options).actions.tobytes() == expected.actions.tobytes()
        last = list(policy.stream(seen, **options))[-1]
        assert last.actions.tobytes() == expected.actions.tobytes()


def foreign_jpeg(shape: tuple[int, ...], orientation: int = 1) -> bytes:
    """A frame as other encoders write it: grey, or to be turned when it is shown."""
    from PIL import Image

    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros(shape, np.uint8)).save(data, "JPEG", exif=exif)
    return data.getvalue()


@pytest.mark.parametrize(
    ("camera", "said"),
    [
        ([jpeg(np.zeros((12, 16, 3), np.uint8), 90), None], "frame 1 of camera 'camera' is a NoneType"),
        ([jpeg(np.zeros((12, 16, 3), np.uint8), 90), np.zeros(9, np.uint8)], "frame 1 .* is a ndarray"),
        ([bytes((1 << 20) + 1)] * 2, "frame 0 of camera 'camera' has more than 1 MiB of JPEG"),
        ([jpeg(np.zeros((12, 16, 3), np.uint8), 90) + 30 * b"\xff\xda"] * 2, "frame 0 .* more than 20 scans"),
        ([b"no picture"] * 2, r"frame 0 of camera 'camera' cannot be decoded \(cannot identify image file\)"),
        (
            [jpeg(np.zeros((12, 16, 3), np.uint8), 90) + bytes(900_000)] * 2,
            "bytes of JPEG, and the server at",
        ),
        ([foreign_jpeg((12, 16))] * 2, r"frame 0 .* is not in colour \(mode L\)"),
        (
            [jpeg(np.zeros((12, 16, 3), np.uint8), 90), foreign_jpeg((12, 16, 3), 3)],
            r"frame 1 of camera 'camera' is to be turned \(Exif orientation 3\)",
        ),
        ([jpeg(np.zeros((16, 12, 3), np.uint8), 90)] * 2, "sent 16 x 12 pixels, the contract says 12 x 16"),
        ([jpeg(np.zeros((12, 16, 3), np.uint8), 90)], "camera 'camera' needs 2 frames of JPEG bytes"),
    ],
)
def test_what_is_no_jpeg_of_the_contracts_size_is_refused_and_nobody_else(
    endpoint: str, contract: Contract, camera: list[bytes], said: str
) -> None:
    with connect(endpoint) as policy:
        with pytest.raises(ContractError, match=said):
            policy.act(observation(contract) | {"camera": camera}, deadline=20.0)
        assert policy.act(encoded(observation(contract), 90), deadline=20.0).actions.shape == (3, 2)


def test_a_server_without_a_decoder_says_so(
    endpoint: str, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with connect(endpoint) as policy:
        with pytest.raises(ContractError, match=r"cannot decode JPEG: install rql-deploy\[jpeg\] there"):
            policy.act(observation(contract) | {"camera": [b"", b""]}, deadline=20.0)
        assert policy.act(observation(contract), deadline=20.0).actions.shape == (3, 2)


def test_pictures_are_not_decoded_for_who_has_given_up(
    endpoint: str, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[float] = []

    def slow(*arguments: Any) -> Any:
        decoded.append(time.monotonic())
        time.sleep(0.3)
        return decode(*arguments)

    monkeypatch.setattr(module, "decode", slow)
    seen = encoded(observation(contract), 90)

    def give_up() -> None:
        with connect(endpoint) as impatient:
            for _ in range(4):
                with contextlib.suppress(DeadlineMissed):
                    impatient.act(seen, deadline=0.05)

    crowd = threading.Thread(target=give_up)
    crowd.start()
    crowd.join()
    with connect(endpoint) as policy:
        assert policy.act(seen, deadline=20.0).actions.size
    assert len(decoded) <= 3, "of five: what waited for longer than its budget was dropped"


def test_pictures_that_wait_to_be_decoded_do_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decode", lambda *_: time.sleep(0.2) or {})
    slot: Any = SimpleNamespace(model=SimpleNamespace(contract=SimpleNamespace(plant=None)))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server:
        server.bind("inproc://policy")
        decoder = module.JpegDecoder(context, "inproc://policy")
        for seed in range(40):
            decoder.submit(Job(None, {}, seed, 0.0), slot, {})
        start = time.monotonic()
        decoder.close()
        assert time.monotonic() - start < 4.0
