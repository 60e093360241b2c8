"""The page of `rql-deploy view`: its frame. What moves is in rql_deploy/assets/view."""

from __future__ import annotations

from html import escape
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets" / "view"
STYLES, SCRIPTS = "view.css", ("scene.js", "plots.js", "view.js")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""A browser that is told so asks no network for anything."""
_VERDICTS = (
    ("k2", "the policy's action"),
    ("k1", "clamped"),
    ("kb", "held"),
    ("k0", "a human's"),
    ("k3", "not reported"),
)


def render(title: str, data: str) -> str:
    """The whole page; `data` is the JSON text that the script shows."""
    from rql_deploy.sim.evaluation.page import STYLE

    script = "".join((ASSETS / name).read_text() for name in SCRIPTS)
    # The text may hold anything, also what would end the element.
    data = data.replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}{(ASSETS / STYLES).read_text()}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{_bar()}{_stage()}{_plots()}</main>"
        f'<script type="application/json" id="data">{data}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _bar() -> str:
    jumps = "".join(
        f'<button id="to-{name}" data-label="{label}">{label}</button>'
        for name, label in (("seam", "Largest seams"), ("value", "Lowest V"), ("miss", "Misses"))
    )
    return (
        '<div class="bar"><select id="episode" aria-label="episode"></select>'
        '<button id="play">Play</button>'
        '<input id="slider" type="range" min="0" value="0" aria-label="time"/>'
        f'<span id="time" class="time"></span>{jumps}</div>'
    )


def _stage() -> str:
    return (
        '<div class="stage"><figure><canvas id="scene"></canvas><img id="film" alt="the camera\'s picture"/>'
        '<button id="switch" class="switch">Film or paths</button>'
        '<p id="none" class="soft">This plant has no end effector that its actions move along x, y and z: '
        "see its commands below.</p>"
        '<figcaption id="paths"><span class="scale">V, low <i id="scale"></i> high</span>'
        "Paths of the set-points: thick is the chunk that was sent, thin are the other candidates, faint its "
        "previews after earlier refinement steps. Drag to turn, scroll to zoom.</figcaption></figure>"
        '<figure><table id="facts"></table></figure></div>'
    )


def _plots() -> str:
    verdicts = " ".join(f'<span class="key {key}">{name}</span>' for key, name in _VERDICTS)
    parts = (
        ("value", "V of every candidate; the line is the chunk that was sent."),
        (
            "latency",
            'Milliseconds on the server: <span class="key k1">queue</span> '
            '<span class="key k0">inference</span> <span class="key k3">the rest</span>; the mark is the '
            "budget, red where it was missed.",
        ),
        (
            "commands",
            'Commands as shares of their range, thick the chunk now played: <span id="names"></span>',
        ),
    )
    figures = "".join(
        f'<figure><canvas id="{name}"></canvas><figcaption>{caption}</figcaption></figure>'
        for name, caption in parts
    )
    return (
        '<figure id="wide"><canvas id="verdicts"></canvas>'
        f"<figcaption>Each tick's command: {verdicts}. The bar below marks success.</figcaption></figure>"
        f'<div class="plots">{figures}</div>'
    )
