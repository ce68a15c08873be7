"""Pieces of pages: what is in them comes out again, and nothing that users wrote becomes HTML."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from keyekit.cli.data import page
from keyekit.data.hygiene.statistics import Bar


def test_pictures_are_inside(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = (250, 120, 10)
    found = re.search(r'base64,([^"]+)"', page.picture(pixels, "<b>", height=96))
    assert found
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")).astype(int)
    assert shown.shape == pixels.shape
    assert np.abs(shown - pixels).mean() < 8
    assert "<b>" not in page.picture(pixels, "<b>")
    large = re.search(r'base64,([^"]+)"', page.picture(np.zeros((400, 600, 3), np.uint8), height=50))
    assert large
    assert Image.open(io.BytesIO(base64.b64decode(large[1]))).size == (150, 100)


def test_a_page_appears_whole(tmp_path: Path) -> None:
    sections = [page.cards([("1 < 2", "a & b")]), page.table(["x", "n"], [["one", "2"]]), page.bars([Bar(1, 2, 5)])]
    page.write_page(tmp_path / "deep/page.html", "A <title>", "lead", sections, ".mine{}")
    text = (tmp_path / "deep/page.html").read_text()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]
    assert "A &lt;title&gt;" in text
    assert "1 &lt; 2" in text
    assert '<td>one</td><td class="n">2</td>' in text
    assert "width:100.0%" in text
    assert ".mine{}" in text
    assert page.bars([]) == '<div class="hist"></div>'
