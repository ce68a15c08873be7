"""Pages that stand alone: one HTML file with its style and pictures inside, light or dark as the reader's system is."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from keyekit.data.hygiene.statistics import Bar

__all__ = ["bars", "cards", "picture", "table", "write_page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #687076; --line: #e2e5e9; --paper: #fff; --wash: #f6f7f9;
  --text: #8b8d98; --image: #0d9488; --video: #4f46e5; --learnt: #d3f4d9; --learnt-line: #46a758; }
@media (prefers-color-scheme: dark) { :root { --ink: #eceef0; --soft: #9ba1a6; --line: #2f3439; --paper: #16181a;
  --wash: #1e2124; --text: #7d8189; --image: #2dd4bf; --video: #8b85f5; --learnt: #1d3d27; --learnt-line: #55b467; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 26px; margin: 0; letter-spacing: -0.02em; } h2 { font-size: 18px; margin: 40px 0 12px; }
h3 { font-size: 15px; margin: 0; } p.lead { color: var(--soft); margin: 4px 0 24px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); gap: 12px; }
.card { background: var(--wash); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 20px; white-space: nowrap; font-variant-numeric: tabular-nums; letter-spacing: -0.01em; }
.card span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 7px 10px; border-bottom: 1px solid var(--line); } td.n, th.n { text-align: right; }
.hist { display: grid; grid-template-columns: max-content 1fr max-content; gap: 3px 12px; align-items: center;
  font-size: 13px; font-variant-numeric: tabular-nums; }
.hist div:nth-child(3n+1) { text-align: right; color: var(--soft); } .hist .bar { background: var(--video); height: 14px;
  border-radius: 3px; min-width: 1px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 8px 40px; }
.mix { display: flex; height: 14px; border-radius: 4px; overflow: hidden; min-width: 120px; }
.text { background: var(--text); } .image { background: var(--image); } .video { background: var(--video); }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 5px 0 12px; }
.frames { display: flex; flex-wrap: wrap; gap: 8px; margin: 12px 0; }
figure { margin: 0; max-width: 220px; } figure img { display: block; border-radius: 5px; border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.note { color: var(--soft); font-size: 13px; }
"""


def write_page(path: Path, title: str, lead: str, sections: Iterable[str], style: str = "") -> None:
    """Write a page; it appears whole or not at all.

    Args:
        path: Where to.
        title: Its title.
        lead: A sentence below it.
        sections: HTML.
        style: Rules beside the common ones.
    """
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>' + "\n".join(sections)
    text = (
        f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}{style}</style></head><body>{body}</body></html>\n'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def cards(values: Sequence[tuple[str, str]]) -> str:
    """Big numbers with what they are: pairs of a number and a name."""
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in values
    )
    return f'<div class="cards">{inner}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 1) -> str:
    """A table of HTML cells.

    Args:
        head: Names of the columns.
        rows: Cells, already escaped.
        numbers: From which column on there are numbers, written to the right.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        marks = ["" if place < numbers else ' class="n"' for place in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{m}>{c}</{tag}>" for c, m in zip(cells, marks, strict=True)) + "</tr>"

    return f"<table>{line(list(map(escape, head)), 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def bars(found: Sequence[Bar], color: str = "video") -> str:
    """A histogram, one bar a line."""
    largest = max((bar.count for bar in found), default=1) or 1
    lines = [
        f'<div>{bar.label}</div><div><div class="bar {color}" style="width:{100 * bar.count / largest:.1f}%"></div></div>'
        f"<div>{bar.count:,}</div>"
        for bar in found
    ]
    return f'<div class="hist">{"".join(lines)}</div>'


def picture(pixels: np.ndarray, caption: str = "", height: int = 96) -> str:
    """A picture inside the page.

    Args:
        pixels: ``[height, width, 3]`` uint8.
        caption: What stands below it.
        height: Height that it is shown with; it is stored no larger than twice that.
    """
    image = Image.fromarray(pixels)
    if image.height > 2 * height:
        image = image.resize((max(image.width * 2 * height // image.height, 1), 2 * height), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "WEBP", quality=80)
    source = base64.b64encode(data.getvalue()).decode()
    shown = f'<img src="data:image/webp;base64,{source}" height="{height}" alt="{escape(caption)}">'
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"
