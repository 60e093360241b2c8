"""HTML pages that need nothing else: no network, no script, no other file; light and dark, any width."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2024;--soft:#667;--line:#dde;--c0:#2563eb;
--c1:#d97706;--c2:#059669;--c3:#6b7280;--bad:#dc2626}
@media(prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e6e8eb;--soft:#9aa3ad;--line:#30363d;
--c0:#60a5fa;--c1:#fbbf24;--c2:#34d399;--c3:#9ca3af;--bad:#f87171}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1040px;margin:0 auto;padding:16px}
h1{font-size:1.5rem;line-height:1.25;margin:.4em 0}h1+p{margin-bottom:.8em}
h2{font-size:1.1rem;margin:1.6em 0 .4em}
p{margin:.3em 0;max-width:75ch}.soft{color:var(--soft)}
.tiles,.charts,.films{display:grid;gap:12px}
.tiles{grid-template-columns:repeat(auto-fit,minmax(160px,1fr))}
.charts{grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.charts.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
.films{grid-template-columns:repeat(auto-fit,minmax(min(100%,180px),1fr))}
.tile{border:1px solid var(--line);border-radius:8px;padding:10px 12px}.tile b{display:block;font-size:1.4rem}
figure{margin:0;border:1px solid var(--line);border-radius:8px;padding:8px}
figcaption{font-size:.85rem;color:var(--soft)}figcaption b{color:var(--ink)}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--soft);font-size:13px;paint-order:stroke;stroke:var(--paper);stroke-width:4px}
.small svg text{font-size:17px}
svg text.name{fill:var(--ink)}
.grid{stroke:var(--line)}.axis{stroke:var(--soft)}.rule{stroke:var(--soft);stroke-dasharray:4 4}
.stroke{fill:none;stroke-width:2}.band{opacity:.2}.soft-fill{opacity:.7}.thick{stroke-width:5;stroke-linecap:round}
.c0.stroke,.c0.hollow{stroke:var(--c0)}.c1.stroke,.c1.hollow{stroke:var(--c1)}
.c2.stroke,.c2.hollow{stroke:var(--c2)}.c3.stroke,.c3.hollow{stroke:var(--c3)}
.c0.fill,.c0.band{fill:var(--c0)}.c1.fill,.c1.band{fill:var(--c1)}
.c2.fill,.c2.band{fill:var(--c2)}.c3.fill,.c3.band{fill:var(--c3)}
.hollow{fill:var(--paper);stroke-width:2}.thick{opacity:.35}
.key::before{content:"";display:inline-block;width:14px;height:3px;margin:0 5px 4px 0;background:currentColor}
.k0{color:var(--c0)}.k1{color:var(--c1)}.k2{color:var(--c2)}.k3{color:var(--c3)}
.strip{display:flex;flex-wrap:wrap;gap:3px;margin:.4em 0}
.marks{display:flex;gap:3px}.marks i{flex:none}
.strip i,.marks i{display:inline-block;width:12px;height:12px;border-radius:3px;background:var(--c2)}
.strip i.no,.marks i.no{background:var(--bad)}
video{width:100%;max-width:640px;border-radius:8px;background:#000;display:block}
.scroll{overflow-x:auto;margin:.6em 0}table{border-collapse:collapse;font-size:.9rem}
td,th{padding:3px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
.words td,.words th,.names td:first-child,.names th:first-child{
text-align:left;padding-left:0;vertical-align:top}
.words td{white-space:normal}
pre{margin:.4em 0;padding:10px 12px;border:1px solid var(--line);border-radius:8px;overflow-x:auto;
font-size:.85rem}
code{font-family:ui-monospace,monospace}
h1,li,figcaption,.words td{overflow-wrap:anywhere}ul{margin:.3em 0;padding-left:1.2em}
.warnings{border:1px solid var(--bad);border-left-width:6px;border-radius:8px;padding:2px 14px 8px;
margin:.8em 0}.warnings h2{margin:.4em 0;color:var(--bad)}.warnings li{margin:.2em 0}
svg.range{width:160px;display:inline-block;vertical-align:middle}.frame{fill:none;stroke:var(--soft)}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
"""A browser that is told so refuses what the page does not bring itself."""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document, from parts that are HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def write_page(path: Path, text: str) -> None:
    """Write the page, complete or not at all."""
    partial = path.with_name(path.name + ".writing")
    partial.write_text(text)
    partial.replace(path)


def figure(content: object, caption: str) -> str:
    """A chart, or HTML as a string, with a caption of plain text."""
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def video(path: Path, attributes: str = "") -> str:
    """A film, inside the page; the page holds it, so that it plays wherever the page is opened."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<video controls muted playsinline{attributes} src="data:video/mp4;base64,{data}"></video>'
