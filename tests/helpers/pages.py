"""HTML pages as tests read them: parsed, and shown by a browser that has no network."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest


class Page(HTMLParser):
    """Tags in order, every address, and whether all that was opened was closed."""

    VOID = ("meta", "i", "circle", "line", "rect", "polyline", "polygon")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "poster", "action")
        ]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def write_film(path: Path) -> Path:
    """A film of five small frames."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(5):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * shade, np.uint8), format="rgb24")
                )
            )
        container.mux(stream.encode())
    return path


def assert_shown_offline(page: Path) -> None:
    """Chromium shows it without a complaint in light and in dark, and nothing is wider than a phone."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    from PIL import Image

    offline = (
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    )
    corners = {}
    for name, options in {
        "light": (),
        "dark": ("--force-dark-mode", "--blink-settings=preferredColorScheme=0"),
    }.items():
        picture = page.parent / f"{name}.png"
        command = (
            *offline,
            *options,
            "--enable-logging=stderr",
            "--window-size=500,3000",
            f"--screenshot={picture}",
            page.as_uri(),
        )
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
        assert "CONSOLE" not in done.stderr, done.stderr
        image = Image.open(picture).convert("RGB")
        # Something wider than the page would be cut at its right edge: the margin there is empty.
        edge = np.asarray(image)[:, -4:]
        assert (edge == edge[0, 0]).all()
        corners[name] = image.getpixel((1, 1))
    assert corners == {"light": (255, 255, 255), "dark": (21, 24, 28)}
