"""The commented hex dump in docs/protocol.md: one `act` request, as a client sent it to a server.

python docs/pictures/hexdump.py          # needs rql-deploy[serve]; rewrites the dump in docs/protocol.md
python docs/pictures/hexdump.py --check  # exit status 1 where the page has another one
"""

from __future__ import annotations

import argparse
import contextlib
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import zmq

from rql_deploy.runtime.client import RemotePolicy

ROOT = Path(__file__).parents[2]
BUNDLE, PAGE = ROOT / "rql_deploy/assets/lift_bundle", ROOT / "docs/protocol.md"
BEGIN, END = "<!-- hexdump: written by docs/pictures/hexdump.py -->", "<!-- end of hexdump -->"
EPOCH, BUDGET = 1234567890, 0.0185
"""What a client draws and measures; fixed here, so that the page changes with the format only."""
COMMENTS = {
    "v": "protocol version",
    "id": "request number",
    "epoch": "drawn when the client starts",
    "op": "operation",
    "contract": "contract id that `hello` gave",
    "budget": "seconds from receipt",
    "candidates": "chunks to choose among",
    "value": "also return V and spread",
    "seed": "of the noise",
    "arrays": "name, dtype, shape of each frame",
}
OBSERVATION = {
    "cube_pos": (0.022, 0.022, 0.830),
    "cube_quat": (0.0, 0.0, 0.383, 0.924),
    "gripper_to_cube_pos": (0.125, 0.025, -0.185),
    "robot0_eef_pos": (-0.103, -0.004, 1.016),
    "robot0_eef_quat": (0.997, 0.021, 0.068, 0.001),
    "robot0_gripper_qpos": (0.021, -0.021),
}


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """A server of the shipped bundle; yields its endpoint."""
    command = [sys.executable, "-m", "rql_deploy", "serve", str(BUNDLE), "--bind", "tcp://127.0.0.1:*"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if line.startswith("ready") and (found := re.search(r"tcp://\S+", line)):
                    yield found.group()
                    return
            raise SystemExit(
                "the server did not start: run `rql-deploy serve` on the shipped bundle to see why"
            )
        finally:
            server.terminate()


def record(endpoint: str) -> list[list[bytes]]:
    """The messages that a client sends to the server at `endpoint` for one `act`, with their frames."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    port = front.bind_to_random_port("tcp://127.0.0.1")
    back.connect(endpoint)
    sent: list[list[bytes]] = []
    done = threading.Event()

    def act() -> None:
        try:
            with RemotePolicy.connect(f"tcp://127.0.0.1:{port}") as policy:
                observation = {name: np.array(value) for name, value in OBSERVATION.items()}
                policy.act(observation, deadline=5.0, candidates=4, value=True, seed=7)
        finally:
            done.set()

    client = threading.Thread(target=act)
    client.start()
    peer = b""
    while not done.is_set():
        if front.poll(50, zmq.POLLIN):
            peer, *frames = front.recv_multipart()
            sent.append(frames)
            back.send_multipart(frames)
        while back.poll(0, zmq.POLLIN):
            front.send_multipart([peer, *back.recv_multipart()])
    client.join()
    context.destroy(linger=0)
    return sent


class Walker:
    """Reads msgpack value by value, and tells where each begins and ends."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def container(self) -> tuple[str, int]:
        """The head of a map or an array: which, and how many entries."""
        kind = self.data[self.at]
        for name, small, large in (("map", 0x80, 0xDE), ("array", 0x90, 0xDC)):
            if kind & 0xF0 == small:
                self.at += 1
                return name, kind & 0x0F
            if kind == large:
                self.at += 3
                return name, int.from_bytes(self.data[self.at - 2 : self.at], "big")
        raise ValueError(f"no container at byte {self.at}")

    def value(self) -> object:
        """The scalar, text or container of scalars that comes next."""
        kind = self.data[self.at]
        if kind & 0xF0 in (0x80, 0x90) or kind in (0xDC, 0xDE):
            name, count = self.container()
            return [self.value() for _ in range(count * (2 if name == "map" else 1))]
        self.at += 1
        if kind < 0x80:
            return kind
        if kind & 0xE0 == 0xA0:
            return self._take(kind & 0x1F).decode()
        if kind in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[kind]
        if kind == 0xD9:
            return self._take(self._take(1)[0]).decode()
        codes = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
        return struct.unpack(codes[kind], self._take(struct.calcsize(codes[kind])))[0]

    def _take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]


def fixed(header: bytes, key: str, code: str, value: float) -> bytes:
    """The header with another value at `key`: `code` is its letter in `struct`."""
    place = header.index(bytes([0xA0 + len(key)]) + key.encode()) + 1 + len(key) + 1
    return header[:place] + struct.pack(f">{code}", value) + header[place + struct.calcsize(code) :]


def cut(data: bytes, most: int) -> str:
    """Bytes in hexadecimal, `most` of them and dots."""
    return data.hex(" ") if len(data) <= most else data[: most - 1].hex(" ") + " .."


def line(start: int, key: str, data: bytes, text: str = "", comment: str = "") -> str:
    return f"{start:04x}  {key:<17} {cut(data, 10):<30}  {text:<16}  {comment}".rstrip()


def dump(frames: Sequence[bytes]) -> Iterator[str]:
    """Lines that show and explain the frames of an `act` request."""
    header = fixed(fixed(frames[0], "epoch", "I", EPOCH), "budget", "d", BUDGET)
    yield f"frame 0, the header: {len(header)} bytes of msgpack"
    walk = Walker(header)
    _, count = walk.container()
    yield line(0, "", header[: walk.at], "", f"a map of {count} entries")
    arrays: list[tuple[str, str, list[int]]] = []
    for _ in range(count):
        start = walk.at
        key = walk.value()
        assert isinstance(key, str)
        shown = f'{header[start : walk.at - len(key)].hex(" ")} "{key}"'
        place = walk.at
        if key != "arrays":
            value = walk.value()
            text = f'"{value}"' if isinstance(value, str) else str(value).replace("True", "true")
            text = text if len(text) <= 16 else text[:7] + ".." + text[-5:]
            yield line(start, shown, header[place : walk.at], text, COMMENTS[key])
            continue
        _, entries = walk.container()
        yield line(start, shown, header[place : walk.at], f"array of {entries}", COMMENTS[key])
        for _ in range(entries):
            start = walk.at
            name, dtype, shape = walk.value()  # type: ignore[misc]
            arrays.append((name, dtype, shape))
            yield f"{start:04x}    {cut(header[start : walk.at], 20):<61}  {name}: {dtype} {shape}"
    for number, (frame, (name, dtype, _)) in enumerate(zip(frames[1:], arrays, strict=True), 1):
        values = ", ".join(f"{value:g}" for value in np.frombuffer(frame, dtype))
        yield ""
        yield f"frame {number}, {name}: {len(frame)} bytes, little endian"
        yield f"0000  {cut(frame, 16):<48}  {values}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page differs")
    options = parser.parse_args()
    with serving() as endpoint:
        request = record(endpoint)[-1]
    block = "\n".join([BEGIN, "```", *dump(request), "```", END])
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    new = before + block + rest.partition(END)[2]
    if options.check:
        sys.exit(0 if new == page else "the hex dump of docs/protocol.md is out of date: run `make pictures`")
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
