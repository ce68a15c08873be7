"""Statistics as text and as a page that stands alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from keyekit.cli.main import main


def test_text_and_page(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert (
        main(["data", "stats", str(folder), "--html", "out/page.html", "--cost", "keye_vl_8b_tiny", "--ranks", "1"])
        == 0
    )
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("  pict", "  deep"))}
    # samples … images, videos
    assert [rows["pictures.jsonl"][place] for place in (0, 4, 7, 8)] == ["5", "0", "5", "0"]
    assert [rows["deep/more.json"][place] for place in (0, 3, 7, 8)] == ["2", "0", "0", "1"]
    assert "…" not in out
    assert "packing efficiency" in out
    assert "sizes of images as the model sees them: 84×56 (5)" in out
    assert "FLOP  to train on all once" in out
    page = Path("out/page.html").read_text()
    assert page.count("<img ") == 6
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)  # nothing is fetched from anywhere
    assert "missing_media" in page


def test_help(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "stats", "--help"])
    assert ended.value.code == 0
    assert "--html" in capsys.readouterr().out
