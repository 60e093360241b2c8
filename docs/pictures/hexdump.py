"""The commented hex dump in docs/protocol.md: one `act` request, as a client sent it to a server.

python docs/pictures/hexdump.py          # needs rql-deploy[serve]; rewrites the dump in docs/protocol.md
python docs/pictures/hexdump.py --check  # exit status 1 where the page has another one
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zmq

from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.wire import protocol
from rql_deploy.runtime.wire.protocol import Layout

ROOT = Path(__file__).parents[2]
BUNDLE, PAGE = ROOT / "rql_deploy/assets/lift_bundle", ROOT / "docs/protocol.md"
BEGIN, END = "<!-- hexdump: written by docs/pictures/hexdump.py -->", "<!-- end of hexdump -->"
EPOCH, BUDGET = 1234567890, 0.0185
"""What a client draws and measures; fixed here, so that the page changes with the format only."""
COMMENTS = {
    "contract": "contract id that `hello` gave",
    "budget": "seconds from receipt",
    "candidates": "chunks to choose among",
    "value": "also return V and spread",
    "seed": "of the noise",
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
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "rql_deploy", "serve", str(BUNDLE), "--bind", "tcp://127.0.0.1:*"]
    with (
        os.fdopen(reader) as ready,
        subprocess.Popen(
            [*command, "--ready-fd", str(writer)], cwd=ROOT, stdout=subprocess.DEVNULL, pass_fds=(writer,)
        ) as server,
    ):
        os.close(writer)
        try:
            if not (line := ready.readline()):
                raise SystemExit("the server did not start: its errors are above")
            yield json.loads(line)["endpoint"]
        finally:
            server.terminate()


def record(endpoint: str) -> tuple[bytes, Layout]:
    """The `act` request of a client to the server at `endpoint`, and the layout of its block."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    port = front.bind_to_random_port("tcp://127.0.0.1")
    back.connect(endpoint)
    sent: list[bytes] = []
    layouts: list[Layout] = []
    done = threading.Event()

    def act() -> None:
        try:
            with RemotePolicy.connect(f"tcp://127.0.0.1:{port}") as policy:
                layouts.append(Layout(policy.contract.plant.fields))
                observation = {name: np.array(value) for name, value in OBSERVATION.items()}
                policy.act(observation, deadline=5.0, candidates=4, value=True, seed=7)
        finally:
            done.set()

    client = threading.Thread(target=act)
    client.start()
    peer = b""
    while not done.is_set():
        if front.poll(50, zmq.POLLIN):
            peer, frame = front.recv_multipart()
            sent.append(frame)
            back.send(frame)
        while back.poll(0, zmq.POLLIN):
            front.send_multipart([peer, back.recv()])
    client.join()
    context.destroy(linger=0)
    return sent[-1], layouts[0]


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


def fixed(frame: bytes, key: str, value: float) -> bytes:
    """The frame with another float at `key` of its header."""
    place = frame.index(bytes([0xA0 + len(key)]) + key.encode()) + 1 + len(key) + 1
    return frame[:place] + struct.pack(">d", value) + frame[place + 8 :]


def cut(data: bytes, most: int) -> str:
    """Bytes in hexadecimal, `most` of them and dots."""
    return data.hex(" ") if len(data) <= most else data[: most - 1].hex(" ") + " .."


def line(start: int, key: str, data: bytes, text: str = "", comment: str = "") -> str:
    return f"{start:04x}  {key:<17} {cut(data, 10):<30}  {text:<16}  {comment}".rstrip()


def dump(frame: bytes, layout: Layout) -> Iterator[str]:
    """Lines that show and explain the frame of an `act` request."""
    frame = fixed(frame[:16] + struct.pack("<Q", EPOCH) + frame[24:], "budget", BUDGET)
    head = protocol.decode(frame)
    yield f"the prefix: {protocol.PREFIX.size} bytes, little endian"
    yield line(0, "magic", frame[:3], '"RQL"')
    yield line(3, "version", frame[3:4], str(head.version))
    yield line(4, "kind", frame[4:5], str(head.kind), "of the operation: act")
    yield line(5, "", frame[5:6], "", "not used")
    yield line(6, "header length", frame[6:8], str(head.end - protocol.PREFIX.size))
    yield line(8, "id", frame[8:16], str(head.id), "request number")
    yield line(16, "epoch", frame[16:24], str(head.epoch), "drawn when the client starts")
    yield ""
    yield f"the header: {head.end - protocol.PREFIX.size} bytes of msgpack"
    walk = Walker(frame)
    walk.at = protocol.PREFIX.size
    _, count = walk.container()
    yield line(
        protocol.PREFIX.size, "", frame[protocol.PREFIX.size : walk.at], "", f"a map of {count} entries"
    )
    for _ in range(count):
        start = walk.at
        key = walk.value()
        assert isinstance(key, str)
        shown = f'{frame[start : walk.at - len(key)].hex(" ")} "{key}"'
        place = walk.at
        value = walk.value()
        text = f'"{value}"' if isinstance(value, str) else str(value).replace("True", "true")
        text = text if len(text) <= 16 else text[:7] + ".." + text[-5:]
        yield line(start, shown, frame[place : walk.at], text, COMMENTS[key])
    begin = len(frame) - layout.row_bytes
    yield ""
    yield f"the block: {layout.row_bytes} bytes, little endian, from the next multiple of 16 on"
    if begin > walk.at:
        yield line(walk.at, "", frame[walk.at : begin], "", f"{begin - walk.at} bytes of padding")
    for name, shape, dtype in layout.fields:
        end = begin + math.prod(shape) * dtype.itemsize
        values = ", ".join(f"{value:g}" for value in np.frombuffer(frame[begin:end], dtype))
        yield f"{begin:04x}  {cut(frame[begin:end], 16):<48}  {name}: {values}"
        begin = end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page differs")
    options = parser.parse_args()
    with serving() as endpoint:
        frame, layout = record(endpoint)
    block = "\n".join([BEGIN, "```", *dump(frame, layout), "```", END])
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    new = before + block + rest.partition(END)[2]
    if options.check:
        sys.exit(0 if new == page else "the hex dump of docs/protocol.md is out of date: run `make pictures`")
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
