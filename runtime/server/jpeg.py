"""Pictures that robots send as JPEG: decoded in a thread of their own, so that the engine waits for none.

The server hands a job over and takes it back between two refinement steps, when its pictures are decoded.
Decoders differ in a few values, and JPEG changes pictures: nothing of this happens unless a robot asks for
it.
"""

from __future__ import annotations

import io
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.runtime.engine.request import Job
from rql_deploy.runtime.wire import headers, protocol
from rql_deploy.runtime.wire.arrays import MAX_JPEG_BYTES, Arrays

if TYPE_CHECKING:
    from .registry import ModelSlot

MAX_SCANS = 20
"""Passes over one frame: progressive pictures have some ten. A frame of a megabyte may ask for ten thousands,
and each takes as long as a whole picture."""
_SCAN = b"\xff\xda"
_ORIENTATION = 0x0112
"""Exif's tag of how a picture is to be turned: 1 as it is."""


class JpegDecoder:
    """Jobs whose pictures are being decoded."""

    def __init__(self, context: zmq.Context[Any], endpoint: str):
        """The server at `endpoint` of this ZeroMQ context is woken when a job is ready."""
        self.ready: deque[tuple[Job, ModelSlot, headers.Refusal | None]] = deque()
        """Jobs with their decoded pictures, or with why there are none."""
        self._context, self._endpoint = context, endpoint
        self._wake: zmq.Socket[bytes] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._closing = False

    def submit(self, job: Job, slot: ModelSlot, named: Arrays) -> None:
        """Decode a job's pictures, and put it into `ready`."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "jpeg")
        self._thread.submit(self._decode, job, slot, named)

    def close(self) -> None:
        """End the thread, and what it had still to decode; the context can be terminated then."""
        self._closing = True
        if self._thread is not None:
            self._thread.submit(self._close)
            self._thread.shutdown()

    def _decode(self, job: Job, slot: ModelSlot, named: Arrays) -> None:
        if self._closing:
            return
        plant, code, error = slot.model.contract.plant, "bad_observation", ""
        try:
            if job.due is not None and time.monotonic() > job.due:
                code, error = "expired", "the request's budget was spent before its pictures' turn came"
            else:
                pictures: dict[str, Any] = decode(plant, named)
                job.fields = {**job.fields, **pictures}
        except ImportError:
            error = "this server cannot decode JPEG: install rql-deploy[jpeg] there"
        except Exception as failure:  # whatever was sent, the thread goes on
            error = str(failure) or type(failure).__name__
        refusal = headers.Refusal(code=code, error=error) if error else None
        self.ready.append((job, slot, refusal))
        if self._wake is None:
            self._wake = self._context.socket(zmq.DEALER)
            self._wake.linger = 0
            self._wake.connect(self._endpoint)
        self._wake.send(protocol.encode(headers.Ping(), id=0, epoch=0))
        while self._wake.poll(0):
            self._wake.recv()

    def _close(self) -> None:
        if self._wake is not None:
            self._wake.close()


def decode(plant: PlantDescription, named: Arrays) -> dict[str, NDArray[np.uint8]]:
    """Each camera's stacked frames `[1, H, W, 3n]` from arrays of JPEG bytes `NAME/0` to `NAME/n-1`.

    Raises ValueError, which names the frame, before anything is decoded for what is no JPEG of the contract's
    size.
    """
    found = {}
    for camera in plant.images:
        frames = []
        for index in range(plant.frame_stack):
            where = f"frame {index} of camera '{camera.name}'"
            data = named.get(f"{camera.name}/{index}")
            if data is None:
                raise ValueError(f"{where} is missing")
            frames.append(_frame(where, data.tobytes(), (camera.width, camera.height)))
        stack = frames if camera.colour_order == "rgb" else [frame[..., ::-1] for frame in frames]
        found[camera.name] = np.concatenate(stack, axis=-1)[None]
    return found


def _frame(where: str, data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One frame `[H, W, 3]`; `size` is (width, height)."""
    from PIL import Image

    if len(data) > MAX_JPEG_BYTES:
        raise ValueError(f"{where} has more than 1 MiB")
    if data.count(_SCAN) > MAX_SCANS:
        raise ValueError(f"{where} has more than {MAX_SCANS} scans")
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
            sent, mode, turned = picture.size, picture.mode, picture.getexif().get(_ORIENTATION, 1)
            if sent == size and mode == "RGB" and turned == 1:
                return np.asarray(picture)
    except Exception as failure:  # hostile input: Pillow raises classes without a common base
        # Pillow names the object in memory that it read from.
        reason = str(failure).partition(" <_io")[0] or type(failure).__name__
        raise ValueError(f"{where} cannot be decoded ({reason})") from failure
    if mode != "RGB":
        raise ValueError(f"{where} is not in colour (mode {mode}): encode three channels, RGB")
    if turned != 1:
        raise ValueError(f"{where} is to be turned (Exif orientation {turned}): turn it before you encode it")
    raise ValueError(f"{where} sent {sent[1]} x {sent[0]} pixels, the contract says {size[1]} x {size[0]}")
