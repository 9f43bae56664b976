"""Self-contained HTML pages: one style, pictures inside the file, no scripts and nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .6rem; }
.numbers div { border: 1px solid #8885; border-radius: .5rem; padding: .5rem .7rem; }
.numbers b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.numbers small, p small { opacity: .7; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .8rem .2rem 0; text-align: right; } td:first-child, th:first-child { text-align: left; }
.bar { display: inline-block; height: .7rem; background: #1f8fb8; border-radius: .2rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
.small { grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); margin: .8rem 0; }
figure { margin: 0; } figure img { width: 100%; border-radius: .4rem; }
figcaption { font-size: .85rem; opacity: .8; overflow-wrap: anywhere; }
details { border: 1px solid #8885; border-radius: .5rem; padding: .4rem .8rem; margin: .5rem 0; }
summary { cursor: pointer; } details ul { font-size: .85rem; padding-left: 1.2rem; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); gap: 1rem; }
.chart { display: block; width: 100%; height: auto; } .chart text { fill: currentColor; font-size: 13px; }
.chart .grid { stroke: #8885; } .interval { width: 7rem; height: .8rem; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: 0 .9rem; font-size: .85rem; padding-left: 3rem; }
h3 { font-size: 1rem; } .range { white-space: nowrap; }
@media (max-width: 30rem) { .scroll table { font-size: .85rem; } .scroll td, .scroll th { padding-right: .5rem; } }
.scroll td:has(.swatch) { white-space: nowrap; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .35rem; }
.scroll { overflow-x: auto; margin: .8rem 0; } .scroll .left { text-align: left; }
.scroll th { font-size: .85rem; opacity: .8; } nav { font-size: .9rem; }
.cell { display: block; padding: 0 .4rem; border-radius: .2rem; }
.cell { background: color-mix(in srgb, #1f8fb8 var(--share), transparent); }
.error, .warning, .note { border-radius: .3rem; padding: 0 .4rem; font-size: .8rem; color: #fff; background: #6b7680; }
.error { background: #b3261e; } .warning { background: #9a6200; }
"""


def document(title: str, body: str) -> str:
    """The page; ``title`` is plain text, ``body`` is HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
{body}</body></html>
"""


def number_card(name: str, value: str, explained: str) -> str:
    """A number with its name and meaning, for a ``<div class="numbers">``."""
    name, value, explained = map(html.escape, (name, value, explained))
    return f"<div><small>{name}</small><b>{value}</b><small>{explained}</small></div>"


def picture(image: npt.NDArray[np.uint8], caption: str, longest: int = 720) -> str:
    """A picture, uint8 RGB ``(H, W, 3)``, for a ``<div class="pictures">``; ``caption`` is plain text."""
    small = Image.fromarray(image)
    small.thumbnail((longest, longest))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return _figure(_data_url(buffer, "jpeg"), caption)


def plot(figure: Figure, caption: str = "") -> str:
    """A matplotlib figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _figure(_data_url(buffer, "png"), caption)


def _figure(source: str, caption: str) -> str:
    text = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img loading="lazy" alt="" src="{source}">{text}</figure>'


def _data_url(content: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content.getvalue()).decode()
