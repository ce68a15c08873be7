"""A check finds what was planted, and nothing in clean data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from keyekit.cli.main import main


def test_everything_that_was_planted_is_found(folder: Path, capsys) -> None:
    copy = np.asarray(Image.open(folder / "2.png").resize((140, 98)))
    for name, pixels in (("MMBench/known.jpg", copy), ("AI2D/other.jpg", copy[:, ::-1])):
        path = Path("benchmarks") / name
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path, quality=90)
    (Path("benchmarks/AI2D") / "cut.png").write_bytes(b"nothing")
    words = ["data", "check", str(folder), "--benchmarks", "benchmarks", "--report", "out/report.jsonl"]
    assert main(words) == 1
    records = [json.loads(line) for line in Path("out/report.jsonl").read_text().splitlines()]
    shown = [(r["finding"], r.get("reason") or r.get("benchmark") or r.get("of"), r.get("sample")) for r in records]
    assert shown == [
        ("unusable", "missing_media", None),
        ("unusable", "bad_line", None),
        ("duplicate", "pictures.jsonl[1] i1", "pictures.jsonl[4] twin"),
        ("contaminated", "MMBench", "pictures.jsonl[2] i2"),
    ]
    out = capsys.readouterr().out
    assert "7 of 9 entries can be used" in out
    assert "benchmark medium left out" in out


def test_clean_data_pass(folder: Path, capsys) -> None:
    assert main(["data", "check", str(folder / "deep")]) == 0
    assert "2 of 2 entries can be used" in capsys.readouterr().out


def test_what_no_pack_holds_cannot_be_used(folder: Path, capsys) -> None:
    recipe = str(Path(__file__).parents[4] / "recipes/tiny/temporal.yaml")
    assert main(["data", "check", str(folder / "deep"), "--like", recipe, "--data.pack_tokens=30"]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 entries can be used" in out
    assert "too_long" in out


def test_mistakes_are_explained(folder: Path, capsys) -> None:
    assert main(["data", "check", str(folder), "--media-threshold", "1"]) == 2
    assert "threshold=1.0" in capsys.readouterr().err
    assert main(["data", "check", str(folder), "--benchmarks", "nowhere"]) == 2
    assert "no such folder of benchmarks" in capsys.readouterr().err
